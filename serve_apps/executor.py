"""A batch -> what each of its requests gets, on threads of their own: inference never runs on the event loop.

Each thread runs one batch at a time, with a runtime that is its own. It outlives whatever a model may throw or return:
without it nobody would be answered again. A batch that fails is tried in halves, so that one poisonous request fails
alone (and a batch too big for the memory is not lost).
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError, InferenceFailed, SluiceError
from cluster.scheduling import AccuracyWish
from serve_apps.spent import Spent

if TYPE_CHECKING:
    from serve_apps.queues import ClassQueue, Lane

Arrays = Mapping[str, NDArray[np.generic]]
Outputs = dict[str, NDArray[np.generic]]
Infer = Callable[[Arrays], Outputs]


@dataclass(frozen=True, eq=False)
class Model:
    """A variant that is loaded and warm."""

    name: str
    version: str
    accuracy: float
    """Larger is better; only compared with that of the other models and with the floors of requests."""
    infer: tuple[Infer, ...]
    """One per executor thread: a runtime is used by one thread at a time."""
    seconds: Mapping[int, float] = field(default_factory=dict)
    """Batch size -> how long it took when it was warmed up; what the batcher believes at first."""
    spent: tuple[Spent, ...] = field(init=False, repr=False)
    """What its executions took, by thread."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "spent", tuple(Spent() for _ in self.infer))


def streams_of(models: Sequence[Model]) -> int:
    """How many executor threads models need that are served together. Raises ConfigError unless all have as many
    runtimes as the first, one at least."""
    streams = {len(model.infer) for model in models}
    if len(streams) != 1 or streams == {0}:
        raise ConfigError(
            f"{len(models)} models with {sorted(streams)} runtimes; give at least one, and each as many as the others"
        )
    return streams.pop()


class Answer(NamedTuple):
    """The arrays are read-only: they may share memory with other answers."""

    outputs: Outputs
    model: Model
    """Who produced it."""


RUNS = -1
"""`ticket` of a request that is being executed."""
OUT = -2
"""`ticket` of a request that the batcher does not have: not yet, or no longer."""


class Request:
    """What waits. Rows `start` to `stop` are the piece that is executed next: all of them, if they fit into a batch.

    `done(request, outcome)` is called once, on the event loop; `context` is whatever the caller wants to find again
    then. `models` narrows down who may execute it, to a version that it names, say; None: whoever serves when it comes.
    """

    __slots__ = (
        "accuracy", "arrived", "context", "cost_s", "deadline", "done", "inputs", "lane", "models", "priority", "queue",
        "rows", "signature", "start", "stop", "sure", "tenant", "ticket", "timeout_s", "whole",
    )  # fmt: skip

    def __init__(
        self, inputs: Arrays, done: Callable[[Request, Answer | SluiceError], None], *, context: Any = None,
        timeout_s: float | None = None, priority: int = 0, tenant: str | None = None,
        accuracy: AccuracyWish | float | None = None, models: tuple[Model, ...] | None = None,
    ) -> None:  # fmt: skip
        self.inputs = inputs
        self.done = done
        self.context = context
        self.timeout_s = timeout_s
        self.priority = priority
        self.tenant = tenant
        self.accuracy = accuracy
        self.models = models
        # Requests of one batch have equal signatures: inputs that can be joined.
        self.signature: tuple[Any, ...]
        if len(inputs) == 1:
            [(name, array)] = inputs.items()
            shape = array.shape
            self.signature = (name, array.dtype, shape[1:])
        else:
            shape = next(iter(inputs.values())).shape
            self.signature = tuple((name, inputs[name].dtype, inputs[name].shape[1:]) for name in sorted(inputs))
        self.rows: int = shape[0]
        self.start = 0
        self.stop: int = shape[0]
        self.whole: Outputs | None = None
        # The batcher's own, from `put` on:
        self.ticket = OUT
        self.sure = False
        self.cost_s = 0.0
        self.arrived = self.deadline = 0.0
        self.queue: ClassQueue
        self.lane: Lane

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


Done = Callable[[int, list[Outputs | SluiceError]], None]
"""Called on the event loop with the number of the thread, and what each request of its batch gets."""


class Job(NamedTuple):
    """A batch for one thread."""

    requests: list[Request]
    infer: Infer
    spent: Spent


class Executor:
    """The threads, numbered from 0. All methods belong to the event loop that it was made on."""

    def __init__(self, done: Done) -> None:
        self._done = done
        self._jobs: list[SimpleQueue[Job | None]] = []

    def grow(self, threads: int) -> None:
        """Have at least so many."""
        while len(self._jobs) < threads:
            jobs: SimpleQueue[Job | None] = SimpleQueue()
            number = len(self._jobs)
            self._jobs.append(jobs)
            # Daemon: a model that never returns must not keep the process from ending.
            thread = threading.Thread(
                target=_work, args=(number, jobs, asyncio.get_running_loop(), self._done), daemon=True,
                name=f"executor-{number}",
            )  # fmt: skip
            thread.start()

    def submit(self, thread: int, job: Job) -> None:
        """Execute when what was submitted to this thread before is done."""
        self._jobs[thread].put(job)

    def close(self) -> None:
        """Free each thread once its batch is done."""
        for jobs in self._jobs:
            jobs.put(None)


def _work(number: int, jobs: SimpleQueue[Job | None], loop: asyncio.AbstractEventLoop, done: Done) -> None:
    while (job := jobs.get()) is not None:
        outcomes = _outcomes(job.requests, job.infer, job.spent)
        try:
            loop.call_soon_threadsafe(done, number, outcomes)
        except RuntimeError:  # the loop is closed: nobody waits, nor ever will
            return
        del job, outcomes  # while it waits it must not keep tensors alive


def _outcomes(batch: list[Request], infer: Infer, spent: Spent) -> list[Outputs | SluiceError]:
    """What each request gets. Never raises."""
    try:
        return list(_run(batch, infer, spent))
    except BaseException as error:  # SystemExit too: a model that ends its thread must not end ours
        if len(batch) == 1:
            spent.failed()
            return [_as_ours(error)]
    middle = len(batch) // 2
    return _outcomes(batch[:middle], infer, spent) + _outcomes(batch[middle:], infer, spent)


def _run(batch: list[Request], infer: Infer, spent: Spent) -> list[Outputs]:
    """One execution for the whole batch, its outputs split back by rows."""
    began = time.monotonic()
    if len(batch) == 1:
        rows = batch[0].stop - batch[0].start
        outputs = _checked(infer(batch[0].piece()), rows)
        inferred = time.monotonic()
        answers = [batch[0].keep(outputs)]
        spent.executed(batch, rows, began, began, inferred, inferred)  # nothing to join or take apart
        return answers
    pieces = [request.piece() for request in batch]
    joined = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
    sizes = [request.stop - request.start for request in batch]
    rows = sum(sizes)
    ready = time.monotonic()
    outputs = _checked(infer(joined), rows)
    inferred = time.monotonic()
    answers, start = [], 0
    for request, size in zip(batch, sizes, strict=True):
        part = {name: array[start : start + size] for name, array in outputs.items()}
        answers.append(request.keep(part))
        start += size
    spent.executed(batch, rows, began, ready, inferred, time.monotonic())
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
