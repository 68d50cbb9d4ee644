"""A batch -> what each of its requests gets, on a thread of its own: inference never runs on the event loop.

One thread, one batch at a time. It outlives whatever a model may throw or return: without it nobody would be answered
again. A batch that fails is tried in halves, so that one poisonous request fails alone (and a batch too big for the
memory is not lost).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping
from queue import SimpleQueue
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InferenceFailed, SluiceError

Arrays = Mapping[str, NDArray[np.generic]]
Outputs = dict[str, NDArray[np.generic]]
Infer = Callable[[Arrays], Outputs]


class Request:
    """What waits. Rows `start` to `stop` are the piece that is executed next: all of them, if they fit into a batch."""

    __slots__ = (
        "deadline", "future", "infer", "inputs", "key", "priority", "rows", "start", "stop", "timeout_s", "whole",
    )  # fmt: skip

    def __init__(
        self, inputs: Arrays, infer: Infer, priority: int, timeout_s: float | None, deadline: float,
        future: asyncio.Future[Outputs],
    ) -> None:  # fmt: skip
        self.inputs = inputs
        self.infer = infer
        self.priority = priority
        self.timeout_s = timeout_s
        self.deadline = deadline
        self.future = future
        # Requests of one batch have equal keys: one model, and inputs that can be joined.
        self.key: tuple[Any, ...]
        if len(inputs) == 1:
            [(name, array)] = inputs.items()
            shape = array.shape
            self.key = (infer, name, array.dtype, shape[1:])
        else:
            shape = next(iter(inputs.values())).shape
            self.key = (infer, *((name, inputs[name].dtype, inputs[name].shape[1:]) for name in sorted(inputs)))
        self.rows: int = shape[0]
        self.start = 0
        self.stop: int = shape[0]
        self.whole: Outputs | None = None

    def piece(self) -> Arrays:
        """The inputs of rows `start` to `stop`."""
        if self.stop - self.start == self.rows:
            return self.inputs
        return {name: array[self.start : self.stop] for name, array in self.inputs.items()}

    def keep(self, part: Outputs) -> Outputs:
        """Put the outputs of rows `start` to `stop` in their place in the answer, and return the answer so far."""
        if self.stop - self.start == self.rows:
            return part
        if self.whole is None:
            self.whole = {name: np.empty((self.rows, *array.shape[1:]), array.dtype) for name, array in part.items()}
        for name, whole in self.whole.items():
            array = part.get(name)
            if array is None or array.shape[1:] != whole.shape[1:] or array.dtype != whole.dtype:
                raise InferenceFailed(f"output {name!r} differs in shape or datatype between two pieces of a request")
            whole[self.start : self.stop] = array
        return self.whole


Done = Callable[[list[Request], list[Outputs | SluiceError], float], None]
"""Called on the event loop with the batch, what each request gets, and the seconds it took."""


class Executor:
    """The thread. `submit` and `close` belong to the event loop that it was made on."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[tuple[list[Request], Done] | None] = SimpleQueue()
        # Daemon: a model that never returns must not keep the process from ending.
        thread = threading.Thread(target=_work, args=(self._jobs, asyncio.get_running_loop()), daemon=True)
        thread.name = "executor"
        thread.start()

    def submit(self, batch: list[Request], done: Done) -> None:
        """Execute when what was submitted before is done."""
        self._jobs.put((batch, done))

    def close(self) -> None:
        """Free the thread once its batch is done."""
        self._jobs.put(None)


def _work(jobs: SimpleQueue[tuple[list[Request], Done] | None], loop: asyncio.AbstractEventLoop) -> None:
    while (job := jobs.get()) is not None:
        batch, done = job
        started = time.perf_counter()
        outcomes = _outcomes(batch)
        try:
            loop.call_soon_threadsafe(done, batch, outcomes, time.perf_counter() - started)
        except RuntimeError:  # the loop is closed: nobody waits, nor ever will
            return
        del job, batch, done, outcomes  # while it waits it must not keep tensors alive


def _outcomes(batch: list[Request]) -> list[Outputs | SluiceError]:
    """What each request gets. Never raises."""
    try:
        return list(_run(batch))
    except BaseException as error:  # SystemExit too: a model that ends its thread must not end ours
        if len(batch) == 1:
            return [_as_ours(error)]
    middle = len(batch) // 2
    return _outcomes(batch[:middle]) + _outcomes(batch[middle:])


def _run(batch: list[Request]) -> list[Outputs]:
    """One execution for the whole batch, its outputs split back by rows."""
    if len(batch) == 1:
        rows = batch[0].stop - batch[0].start
        return [batch[0].keep(_checked(batch[0].infer(batch[0].piece()), rows))]
    pieces = [request.piece() for request in batch]
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    sizes = [request.stop - request.start for request in batch]
    outputs = _checked(batch[0].infer(joined), sum(sizes))
    answers, start = [], 0
    for request, size in zip(batch, sizes, strict=True):
        part = {name: array[start : start + size] for name, array in outputs.items()}
        answers.append(request.keep(part))
        start += size
    return answers


def _checked(outputs: Any, rows: int) -> Outputs:
    """Read-only views of the outputs: requests of a batch share them. Raises InferenceFailed for anything but arrays of
    `rows` rows."""
    if not isinstance(outputs, Mapping) or not outputs:
        raise InferenceFailed(f"the model returned {type(outputs).__name__}; it must return arrays by name")
    views: Outputs = {}
    for name, array in outputs.items():
        if not isinstance(array, np.ndarray) or array.shape[:1] != (rows,):
            got = list(array.shape) if isinstance(array, np.ndarray) else type(array).__name__
            raise InferenceFailed(f"output {name!r} is {got} for {rows} rows; its first dimension must be the rows")
        views[name] = array.view()
        views[name].flags.writeable = False
    return views


def _as_ours(error: BaseException) -> SluiceError:
    if isinstance(error, SluiceError):
        return error
    try:
        what = repr(error)[:500]
    except BaseException:
        what = type(error).__name__  # whatever its __repr__ does
    return InferenceFailed(f"the model raised {what}")
