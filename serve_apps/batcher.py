"""Requests -> batches, formed at the moment the executor frees: no fixed wait, so an idle server answers at once.

The event loop owns the queue; one executor thread runs the model. A batch leaves the queue by priority, then earliest
deadline, then arrival. What can go wrong with one request (its client leaves, its time runs out, the model chokes on
it) stays with that request: see `_settle`, and serve_apps/executor.py.

A request of more rows than `max_batch_size` is executed in pieces of that many rows. Only one piece waits at a time,
and each further one queues up where a new request with the same wishes would: whoever waits at that moment goes first,
so a request of ten thousand pictures costs its neighbours one piece per round and not all of them in a row.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.errors import ConfigError, DeadlineExceeded, NotReady, Overloaded, SluiceError
from serve_apps.executor import Arrays, Executor, Infer, Outputs, Request

MAX_BATCH_SIZE = 32
"""Where nobody says another."""
NO_PRIORITY = 1 << 63
"""Where priority 0, "no wish", stands: behind every request that names a level (1 is the highest)."""
_LOOK_S = 0.01
_EXPIRY_GRAIN_S = 0.005
"""Expired requests are answered at most this late: one look at the queue for all that expire together."""


@dataclass
class Counters:
    """Since the start. Each accepted request ends in one of answered, failed, expired and cancelled; `batch_sizes`
    counts batches by their rows."""

    answered: int = 0
    failed: int = 0
    expired: int = 0
    refused: int = 0
    cancelled: int = 0
    batches: int = 0
    batch_sizes: dict[int, int] = field(default_factory=dict)


class Batcher:
    """Owns one executor thread. All methods belong to the event loop that it was made on."""

    max_batch_size: int = 1
    max_queued_requests: int = 1

    def __init__(
        self, infer: Infer, *, max_batch_size: int = MAX_BATCH_SIZE, max_queued_requests: int = 512,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._infer = infer
        self._clock = clock
        self._queue: list[tuple[int, float, int, Request]] = []
        self._numbers = itertools.count()
        self._busy = False
        self._executing: list[Request] = []
        self._draining = False
        self._closed = False
        self._idle: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when `_timer` fires
        self._looks_to_skip = 0
        self._seconds_per_request = 0.0
        self.counters = Counters()
        self.reconfigure(max_batch_size=max_batch_size, max_queued_requests=max_queued_requests)
        self._loop = asyncio.get_running_loop()
        self._executor = Executor()

    def reconfigure(
        self, *, max_batch_size: int | None = None, max_queued_requests: int | None = None, infer: Infer | None = None
    ) -> None:
        """Change bounds, or the model for requests to come. Those that wait stay, and are executed by the model that
        they were submitted to: their inputs were checked for that one, and its name is in their answer."""
        for name, value in (("max_batch_size", max_batch_size), ("max_queued_requests", max_queued_requests)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} is below 1; set it in the plan or in user_config")
        self.max_batch_size = max_batch_size or self.max_batch_size
        self.max_queued_requests = max_queued_requests or self.max_queued_requests
        self._infer = infer or self._infer

    @property
    def queued(self) -> int:
        """Requests that wait now."""
        return len(self._queue)

    async def finished(self, infer: Infer, timeout_s: float) -> bool:
        """Wait until no request that was submitted to this model waits or runs; True if that was in time."""
        end = self._clock() + timeout_s
        while any(request.infer == infer for request in (*self._executing, *(entry[3] for entry in self._queue))):
            if self._clock() > end:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    def submit(
        self, inputs: Arrays, *, timeout_s: float | None = None, priority: int = 0
    ) -> asyncio.Future[Outputs]:
        """Queue one request; its rows are the first dimension of its inputs. Await or cancel the future.

        Raises Overloaded when the queue is full, NotReady when closed. The future fails with DeadlineExceeded if
        `timeout_s` runs out before (the last piece of) the request is executed, InferenceFailed if the model raises
        on it. The arrays of its result are read-only: they may share memory with other answers.
        """
        if self._draining:
            raise NotReady("this replica is draining; send the request again, another one will take it")
        if len(self._queue) >= self.max_queued_requests:
            self._make_room()
        deadline = self._clock() + timeout_s if timeout_s is not None else math.inf
        future: asyncio.Future[Outputs] = self._loop.create_future()
        self._push(Request(inputs, self._infer, priority or NO_PRIORITY, timeout_s, deadline, future), deadline)
        if not self._busy:
            self._start()
        return future

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, finish what waits; True if all was done in time."""
        self._draining = True
        if self._busy:
            self._idle = self._idle or self._loop.create_future()
            await asyncio.wait([self._idle], timeout=timeout_s)
        return not self._busy

    def close(self) -> None:
        """Refuse what waits and free the thread once its batch is done. A second call does nothing."""
        self._draining = self._closed = True
        self._wake_at(math.inf)
        for *_, request in self._queue:
            self._settle(request, NotReady("this replica is shutting down; send the request again"))
        self._queue.clear()
        self._executor.close()

    def _push(self, request: Request, order_by: float) -> None:
        """Queue up, ordered as if `order_by` were the deadline."""
        # Tuples are compared in C, and their numbers differ: a comparison never gets to the request.
        heapq.heappush(self._queue, (request.priority, order_by, next(self._numbers), request))
        if request.deadline < self._due:
            self._wake_at(request.deadline)

    def _wake_at(self, due: float) -> None:
        """One timer for the earliest deadline: requests are many, and most are answered long before theirs."""
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = None if due == math.inf else self._loop.call_later(max(0.0, due - self._clock()), self._sweep)

    def _sweep(self) -> None:
        """Settle what expired while the executor was busy, forget what was cancelled, wake for the next deadline."""
        now = self._clock()
        self._queue = [entry for entry in self._queue if not self._is_over(entry[3], now)]
        heapq.heapify(self._queue)
        self._wake_at(max(now + _EXPIRY_GRAIN_S, min((entry[3].deadline for entry in self._queue), default=math.inf)))

    def _make_room(self) -> None:
        """Raises Overloaded if the queue is full of requests that somebody still waits for."""
        # Looking through a full queue for the sake of one refused request would cost most when there is least to spare:
        # after a look in vain, the next ones wait.
        if self._looks_to_skip:
            self._looks_to_skip -= 1
        else:
            self._sweep()
            self._looks_to_skip = len(self._queue) // 8 if len(self._queue) >= self.max_queued_requests else 0
        if len(self._queue) >= self.max_queued_requests:
            self.counters.refused += 1
            wait_s = max(1.0, math.ceil(len(self._queue) * self._seconds_per_request))
            raise Overloaded(
                f"{len(self._queue)} requests wait already (max_queued_requests={self.max_queued_requests}); "
                f"try again in {wait_s:g} s",
                retry_after_s=wait_s,
            )

    def _is_over(self, request: Request, now: float) -> bool:
        """True if nobody waits for this queued request any more; settles it if its time ran out."""
        if request.future.done():  # while it waits only its client can have done that
            self.counters.cancelled += 1
            return True
        if request.deadline <= now:
            self._settle(request, DeadlineExceeded("the timeout ran out before the request was executed"))
            return True
        return False

    def _take(self) -> list[Request]:
        """The next batch: the first live request, and those behind it that fit and are shaped alike."""
        batch: list[Request] = []
        rows, limit = 0, self.max_batch_size
        passed_over = []
        now = self._clock()
        while self._queue:
            entry = heapq.heappop(self._queue)
            request = entry[3]
            if self._is_over(request, now):
                continue
            need = min(request.rows - request.start, limit)
            if batch and request.key != batch[0].key:
                passed_over.append(entry)
                continue
            if batch and rows + need > limit:
                passed_over.append(entry)
                break
            request.stop = request.start + need
            batch.append(request)
            rows += need
            if rows >= limit:
                break
        for entry in passed_over:
            heapq.heappush(self._queue, entry)
        return batch

    def _start(self) -> None:
        """Give the executor its next batch, if there is one."""
        batch = self._executing = self._take()
        self._busy = bool(batch)
        if batch:
            rows = sum(request.stop - request.start for request in batch)
            self.counters.batches += 1
            self.counters.batch_sizes[rows] = self.counters.batch_sizes.get(rows, 0) + 1
            self._executor.submit(batch, self._done)
        elif self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    def _done(self, batch: list[Request], outcomes: list[Outputs | SluiceError], took_s: float) -> None:
        """On the event loop, after each batch."""
        self._seconds_per_request += 0.1 * (took_s / len(batch) - self._seconds_per_request)
        if batch[0].stop < batch[0].rows and self._goes_on(batch[0], outcomes):
            batch = []  # a piece fills its batch alone
        self._start()  # first the executor, then the answers: it must not wait for our JSON
        for request, outcome in zip(batch, outcomes, strict=False):
            self._settle(request, outcome)

    def _goes_on(self, request: Request, outcomes: list[Outputs | SluiceError]) -> bool:
        """Queue the next piece, unless this one failed. (If its client left, `_take` drops it.)"""
        if isinstance(outcomes[0], SluiceError):
            return False
        if self._closed:
            outcomes[0] = NotReady("this replica is shutting down; send the request again")
            return False
        request.start = request.stop
        # As if it came now: its own deadline would put all its pieces in front of whoever came after it.
        self._push(request, self._clock() + request.timeout_s if request.timeout_s is not None else math.inf)
        return True

    def _settle(self, request: Request, outcome: Outputs | SluiceError) -> None:
        future = request.future
        if future.done():
            # Its client left; setting a result would raise in the middle of its neighbours' batch.
            self.counters.cancelled += 1
        elif not isinstance(outcome, SluiceError):
            self.counters.answered += 1
            future.set_result(outcome)
        else:
            if isinstance(outcome, DeadlineExceeded):
                self.counters.expired += 1
            else:
                self.counters.failed += 1
            future.set_exception(outcome)
