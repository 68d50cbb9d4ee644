"""Requests -> batches, formed at the moment the executor frees: no fixed wait, so an idle server answers at once.

The event loop owns the queue; one executor thread runs the model. A batch leaves the queue by priority, then earliest
deadline, then arrival. What can go wrong with one request (its client leaves, its time runs out, the model chokes on it)
stays with that request: see `_settle`, and the second chance in `_execute`.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import DeadlineExceeded, InferenceFailed, InvalidRequest, NotReady, Overloaded, SluiceError

Arrays = Mapping[str, NDArray[np.generic]]
Infer = Callable[[Arrays], dict[str, NDArray[np.generic]]]

DEFAULT_PRIORITY = 1 << 16
"""Where priority 0, "no wish", stands: behind every request that names a level (1 is the highest)."""


@dataclass(order=True)
class _Request:
    priority: int
    deadline: float
    number: int
    inputs: Arrays = field(compare=False)
    rows: int = field(compare=False)
    shape: tuple[Any, ...] = field(compare=False)
    future: asyncio.Future[dict[str, NDArray[np.generic]]] = field(compare=False)


@dataclass
class Counters:
    """Since the start; `batch_sizes` counts batches by their rows."""

    answered: int = 0
    failed: int = 0
    expired: int = 0
    refused: int = 0
    cancelled: int = 0
    batches: int = 0
    batch_sizes: dict[int, int] = field(default_factory=dict)


class Batcher:
    """Owns one executor thread. All methods belong to the event loop that it was made on."""

    def __init__(
        self, infer: Infer, *, max_batch_size: int = 32, max_queued_requests: int = 512,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._infer = infer
        self._clock = clock
        self._queue: list[_Request] = []
        self._numbers = itertools.count()
        self._busy = False
        self._closed = False
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="executor")
        self._seconds_per_request = 0.0
        self.counters = Counters()
        self.reconfigure(max_batch_size=max_batch_size, max_queued_requests=max_queued_requests)

    def reconfigure(
        self, *, max_batch_size: int | None = None, max_queued_requests: int | None = None, infer: Infer | None = None
    ) -> None:
        """Change bounds or the model between two batches; queued requests stay queued."""
        for name, value in (("max_batch_size", max_batch_size), ("max_queued_requests", max_queued_requests)):
            if value is not None and value < 1:
                raise InvalidRequest(f"{name}={value} is below 1; set it in the plan or in user_config")
        self.max_batch_size = max_batch_size or self.max_batch_size
        self.max_queued_requests = max_queued_requests or self.max_queued_requests
        self._infer = infer or self._infer

    max_batch_size: int = 1
    max_queued_requests: int = 1

    @property
    def queued(self) -> int:
        """Requests that wait now."""
        return len(self._queue)

    def submit(
        self, inputs: Arrays, *, timeout_s: float | None = None, priority: int = 0
    ) -> asyncio.Future[dict[str, NDArray[np.generic]]]:
        """Queue one request; its rows are the first dimension of its inputs. Await or cancel the future.

        Raises Overloaded when the queue is full, NotReady when closed. The future fails with DeadlineExceeded if
        `timeout_s` runs out before execution, InferenceFailed if the model raises on it.
        """
        if self._closed:
            raise NotReady("this replica is draining; send the request again, another one will take it")
        if len(self._queue) >= self.max_queued_requests:
            self._drop_dead()
        if len(self._queue) >= self.max_queued_requests:
            self.counters.refused += 1
            wait_s = max(1.0, math.ceil(len(self._queue) * self._seconds_per_request))
            raise Overloaded(
                f"{len(self._queue)} requests wait already (max_queued_requests={self.max_queued_requests}); "
                f"try again in {wait_s:g} s",
                retry_after_s=wait_s,
            )
        first = next(iter(inputs.values()))
        request = _Request(
            priority=priority or DEFAULT_PRIORITY,
            deadline=self._clock() + timeout_s if timeout_s is not None else math.inf,
            number=next(self._numbers),
            inputs=inputs,
            rows=first.shape[0],
            shape=tuple((name, array.dtype, array.shape[1:]) for name, array in sorted(inputs.items())),
            future=self._loop.create_future(),
        )
        heapq.heappush(self._queue, request)
        if timeout_s is not None:
            # Answered at its deadline, not when the executor next looks; the timer of an answered one does nothing.
            self._loop.call_later(timeout_s, self._expire, request)
        if not self._busy:
            self._start()
        return request.future

    def close(self) -> None:
        """Refuse what waits and free the thread once its batch is done."""
        self._closed = True
        for request in self._queue:
            self._settle(request, error=NotReady("this replica is shutting down; send the request again"))
        self._queue.clear()
        self._thread.shutdown(wait=False)

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, finish what waits; True if all was done in time."""
        self._closed = True
        end = self._clock() + timeout_s
        while (self._busy or self._queue) and self._clock() < end:
            await asyncio.sleep(0.005)
        return not self._busy and not self._queue

    def _drop_dead(self) -> None:
        """Forget requests that are settled already, so that they don't fill the queue."""
        self._queue = [request for request in self._queue if not request.future.done()]
        heapq.heapify(self._queue)

    def _expire(self, request: _Request) -> None:
        if not request.future.done() and request in self._queue:
            self.counters.expired += 1
            self._settle(request, error=DeadlineExceeded("the timeout ran out before the request was executed"))

    def _take(self) -> list[_Request]:
        """The next batch: the first live request, and those behind it that fit and are shaped alike."""
        batch: list[_Request] = []
        rows = 0
        others: list[_Request] = []
        now = self._clock()
        while self._queue:
            request = heapq.heappop(self._queue)
            if request.future.done():  # cancelled by its client, or expired
                self.counters.cancelled += request.future.cancelled()
            elif request.deadline <= now:
                self.counters.expired += 1
                self._settle(request, error=DeadlineExceeded("the timeout ran out before the request was executed"))
            elif batch and request.shape != batch[0].shape:
                others.append(request)
            elif batch and rows + request.rows > self.max_batch_size:
                others.append(request)
                break
            else:
                batch.append(request)
                rows += request.rows
                if rows >= self.max_batch_size:
                    break
        for request in others:
            heapq.heappush(self._queue, request)
        return batch

    def _start(self) -> None:
        """Give the executor its next batch, if there is one."""
        batch = self._take()
        self._busy = bool(batch)
        if not batch:
            return
        rows = sum(request.rows for request in batch)
        self.counters.batches += 1
        self.counters.batch_sizes[rows] = self.counters.batch_sizes.get(rows, 0) + 1
        self._thread.submit(self._execute, batch, self._infer)

    def _execute(self, batch: list[_Request], infer: Infer) -> None:
        """In the executor thread: run the batch, or each request alone if the batch fails. Never raises."""
        started = time.perf_counter()
        outcomes: list[dict[str, NDArray[np.generic]] | SluiceError]
        try:
            outcomes = list(_run(batch, infer))
        except Exception as error:
            # One poisonous request must not take its neighbours with it.
            outcomes = [_run_alone(request, infer) for request in batch] if len(batch) > 1 else [_as_ours(error)]
        took = time.perf_counter() - started
        self._loop.call_soon_threadsafe(self._done, batch, outcomes, took)

    def _done(
        self, batch: list[_Request], outcomes: list[dict[str, NDArray[np.generic]] | SluiceError], took_s: float
    ) -> None:
        each = took_s / len(batch)
        self._seconds_per_request += 0.1 * (each - self._seconds_per_request)
        self._start()  # first the executor, then the answers: it must not wait for our JSON
        for request, outcome in zip(batch, outcomes, strict=True):
            if isinstance(outcome, SluiceError):
                self.counters.failed += 1
                self._settle(request, error=outcome)
            else:
                self.counters.answered += 1
                self._settle(request, result=outcome)

    @staticmethod
    def _settle(
        request: _Request, *, result: dict[str, NDArray[np.generic]] | None = None, error: SluiceError | None = None
    ) -> None:
        # A future whose client left is cancelled, and setting it would raise in the middle of its neighbours' batch.
        if request.future.done():
            return
        if error is not None:
            request.future.set_exception(error)
        elif result is not None:
            request.future.set_result(result)


def _as_ours(error: Exception) -> SluiceError:
    return error if isinstance(error, SluiceError) else InferenceFailed(f"the model raised {error!r}")


def _run(batch: list[_Request], infer: Infer) -> list[dict[str, NDArray[np.generic]]]:
    """One execution for the whole batch, its outputs split back by rows."""
    if len(batch) == 1:
        return [infer(batch[0].inputs)]
    joined = {name: np.concatenate([request.inputs[name] for request in batch]) for name in batch[0].inputs}
    outputs = infer(joined)
    rows = sum(request.rows for request in batch)
    for name, array in outputs.items():
        if array.shape[:1] != (rows,):
            raise InferenceFailed(f"output {name!r} has shape {list(array.shape)} for {rows} rows")
    split, start = [], 0
    for request in batch:
        split.append({name: array[start : start + request.rows] for name, array in outputs.items()})
        start += request.rows
    return split


def _run_alone(request: _Request, infer: Infer) -> dict[str, NDArray[np.generic]] | SluiceError:
    try:
        return infer(request.inputs)
    except Exception as error:
        return _as_ours(error)
