"""Requests -> batches, formed at the moment an executor frees: no fixed wait, so an idle server answers at once.

    put: quota? time enough? a place? -> its class's queue -> an executor frees: which class, how many, which model
      -> executor thread -> done(request, Answer or error)

The event loop owns the queues; each executor thread runs one batch at a time. Who is next between classes, how many
are taken together and which model answers are pure decisions (cluster/control/batching.py, latency.py, accuracy.py);
here they are carried out. What can go wrong with one request (its client leaves, its time runs out, the model chokes
on it) stays with that request: see `_settle`, and serve_apps/executor.py.

A request of more rows than `max_batch_size` is executed in pieces of that many rows, all by the same model. Only one
piece waits at a time, and each further one queues up where a new request with the same wishes would: whoever waits at
that moment goes first, so a request of ten thousand pictures costs its neighbours one piece per round and not all of
them in a row.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections.abc import Callable, Sequence

from cluster.control.accuracy import Level, Pressure, step
from cluster.control.latency import Curve
from cluster.control.quotas import Buckets
from cluster.errors import ConfigError, DeadlineExceeded, Overloaded, SluiceError
from cluster.scheduling import AccuracyWish, Scheduling
from serve_apps import refusals
from serve_apps.executor import OUT, RUNS, Answer, Arrays, Executor, Job, Model, Outputs, Request, streams_of
from serve_apps.pending import Counters, Pending, resolve
from serve_apps.queues import ClassQueue
from serve_apps.waiting import Batch, Waiting

MAX_BATCH_SIZE = 32
"""Where nobody says another."""
_LOOK_S = 0.01
_EXPIRY_GRAIN_S = 0.005
"""Expired requests are answered at most this late: one look at the queue for all that expire together."""
_log = logging.getLogger("ray.serve")


class Batcher:
    """Owns the executor threads: as many as the models have runtimes. All methods belong to the event loop that it was
    made on."""

    def __init__(
        self, models: Sequence[Model], *, scheduling: Scheduling | None = None, max_batch_size: int = MAX_BATCH_SIZE,
        max_queued_requests: int = 512, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._executor = Executor(self._done)
        self._waiting = Waiting()
        self._tickets = itertools.count()
        self._running: list[Batch | None] = []
        self._idle_threads: list[int] = []
        self._level = Level()
        self._draining = False
        self._closed = False
        self._idle: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._due = math.inf  # when `_timer` fires
        self._seconds_per_request = 0.0
        self.counters = Counters()
        self.models: tuple[Model, ...] = ()
        self.scheduling = Scheduling()
        self.max_batch_size = self.max_queued_requests = 1
        self.reconfigure(
            models=models, scheduling=scheduling or Scheduling(), max_batch_size=max_batch_size,
            max_queued_requests=max_queued_requests,
        )  # fmt: skip

    def reconfigure(
        self, *, models: Sequence[Model] | None = None, scheduling: Scheduling | None = None,
        max_batch_size: int | None = None, max_queued_requests: int | None = None,
    ) -> None:  # fmt: skip
        """Change rules and bounds, or the models for requests to come. Those that wait stay, and are executed by the
        models that they were submitted to: their inputs were checked for these. Raises ConfigError and changes nothing
        if what is asked does not go together."""
        for name, value in (("max_batch_size", max_batch_size), ("max_queued_requests", max_queued_requests)):
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} is below 1; set it in the plan or in user_config")
        by_accuracy = self.models if models is None else tuple(sorted(models, key=lambda model: -model.accuracy))
        rules = scheduling or self.scheduling
        places = max_queued_requests or self.max_queued_requests
        streams = streams_of(by_accuracy)
        rules.refuse_misfits(streams=streams, places=places)
        self.max_queued_requests = places
        self.max_batch_size = max_batch_size or self.max_batch_size
        self._waiting.resize(self.max_batch_size)
        if by_accuracy != self.models:
            self.models = by_accuracy
            self._level = Level(level=min(self._level.level, len(by_accuracy) - 1))
            self._waiting.forget(by_accuracy)
            self._grow(streams)
            self._waiting.executors = streams
        if scheduling is not None:
            self.scheduling = scheduling
            self._buckets = Buckets(scheduling) if scheduling.quota or scheduling.tenants else None
            self._waiting.rearrange(scheduling)
        self._waiting.places = places

    def _grow(self, threads: int) -> None:
        self._executor.grow(threads)
        while len(self._running) < threads:
            self._idle_threads.append(len(self._running))
            self._running.append(None)

    @property
    def queued(self) -> int:
        """Requests that wait now."""
        return self._waiting.live

    @property
    def level(self) -> int:
        """How many steps below the most accurate model requests without other wishes are served now."""
        return self._level.level

    @property
    def service_rate_rps(self) -> float:
        """What the executors do at most, by the requests of late; 0 before the first."""
        return len(self.models[0].infer) / self._seconds_per_request if self._seconds_per_request else 0.0

    def predicted_delay_s(self, priority: int = 0) -> float:
        """How long a request without a deadline that comes now would wait until it is executed."""
        return self._delay_s(self._waiting.queue(priority), math.inf, 0.0, self._clock())

    async def finished(self, models: Sequence[Model], timeout_s: float) -> bool:
        """Wait until no request waits or runs that one of these may have to execute; True if that was in time."""
        gone = set(models)
        end = self._clock() + timeout_s
        while self._waiting.need(gone) or any(batch is not None and batch.model in gone for batch in self._running):
            if self._clock() > end:
                return False
            await asyncio.sleep(_LOOK_S)
        return True

    def submit(
        self, inputs: Arrays, *, timeout_s: float | None = None, priority: int = 0, tenant: str | None = None,
        accuracy: AccuracyWish | float | None = None, models: tuple[Model, ...] | None = None,
    ) -> asyncio.Future[Answer]:  # fmt: skip
        """Queue one request; its rows are the first dimension of its inputs. Await or cancel the future. Raises as
        `put` does, and the future fails with what `done` would be given."""
        future = Pending(loop=self._loop)
        future.forget = self.cancel
        future.request = Request(
            inputs, resolve, context=future, timeout_s=timeout_s, priority=priority, tenant=tenant, accuracy=accuracy,
            models=models,
        )  # fmt: skip
        self.put(future.request)
        return future

    def put(self, request: Request) -> None:
        """Queue one request; `request.done` is called once, with the answer or what went wrong: DeadlineExceeded if its
        time runs out before (the last piece of) it is executed, Overloaded if it is pushed out by a higher class or
        found to be late, InferenceFailed if the model raises on it, NotReady if the batcher closes.

        Raises NotReady when draining, QuotaExceeded, InvalidRequest for an accuracy that no model reaches, Overloaded
        when there is no place, and Overloaded or DeadlineExceeded, as `Scheduling.late` says, when it would not be done
        in time; `done` is not called then.
        """
        if self._draining:
            raise refusals.draining()
        waiting = self._waiting
        now = self._clock()
        if self._buckets is not None:
            self._charge(self._buckets, request.tenant or "", now)
        if request.models is None:
            request.models = self.models
        queue = waiting.queue(request.priority)
        lane = waiting.lane(queue, request)
        curve = lane.curves[lane.index(self._level.level)]
        timeout_s = request.timeout_s
        request.arrived = now
        request.deadline = deadline = math.inf if timeout_s is None else now + timeout_s
        cost_s = request.rows * curve.row_s
        if timeout_s is not None and curve.known:
            delay_s = queue.caution.factor * self._delay_s(queue, deadline, cost_s, now)
            least_s = lane.least_s(min(request.rows, self.max_batch_size))
            if delay_s + least_s > timeout_s and not (
                self._may_try(request, curve, now) or self._is_owed(request, queue, now)
            ):
                self.counters.refused += 1
                raise refusals.would_be_late(self.scheduling.late, delay_s + least_s, timeout_s)
        victim = None if waiting.has_place(queue) else self._evict(queue)
        waiting.push(queue, lane, (deadline, next(self._tickets), request), cost_s)
        if deadline < self._due:
            self._wake_at(deadline)
        if self._idle_threads:
            for thread in self._idle_threads.copy():
                self._start(thread)
        if victim is not None:
            self._settle(victim, refusals.pushed_out())

    def cancel(self, request: Request) -> None:
        """Its client left: forget it if it waits, and its outcome if it is being executed. `done` is not called."""
        if request.ticket == OUT:
            return
        if request.ticket == RUNS:
            request.ticket = OUT
        else:
            self._waiting.drop(request, OUT)
        self.counters.cancelled += 1

    async def drain(self, timeout_s: float) -> bool:
        """Take nothing new, finish what waits; True if all was done in time."""
        self._draining = True
        if self._is_busy():
            self._idle = self._idle or self._loop.create_future()
            await asyncio.wait([self._idle], timeout=timeout_s)
        return not self._is_busy()

    def close(self) -> None:
        """Refuse what waits and free the threads once their batches are done. A second call does nothing."""
        if self._closed:
            return
        self._draining = self._closed = True
        self._wake_at(math.inf)
        for request in self._waiting.clear():
            self._settle(request, refusals.closing())
        self._executor.close()

    def expired(self, why: str = refusals.NOT_EXECUTED) -> DeadlineExceeded:
        """For a request whose time is over, here or before it came here, whatever `Scheduling.late` says; when to try
        again is told where that wants it told."""
        retry_after_s = None if self.scheduling.late == "408" else max(1.0, self.predicted_delay_s())
        return DeadlineExceeded(why, retry_after_s=retry_after_s)

    def _charge(self, buckets: Buckets, tenant: str, now: float) -> None:
        wait_s, quota = buckets.take(tenant, now), buckets.quota(tenant)
        if wait_s > 0 and quota is not None:
            self.counters.refused += 1
            raise refusals.over_quota(tenant, quota, wait_s)

    def _may_try(self, request: Request, curve: Curve, now: float) -> bool:
        """What is always refused teaches nothing: where nothing waits, one may show whether the curve is still true."""
        if self._waiting.live or now - curve.checked_at < 1.0:
            return False
        curve.checked_at = now
        request.sure = True
        return True

    def _is_owed(self, request: Request, queue: ClassQueue, now: float) -> bool:
        """The floor against starvation holds at the door too: a class whose every request is refused gets one in."""
        queue.refused_at = min(queue.refused_at, now)
        wait_s = queue.spec.max_wait_s
        if wait_s is None or queue.live or now - queue.refused_at < wait_s:
            return False
        queue.owed = request
        request.sure = True
        return True

    def _evict(self, queue: ClassQueue) -> Request:
        """Who leaves a full queue for a request of this class; raises Overloaded if none has to."""
        victim = self._waiting.evict(queue)
        if victim is None:
            self.counters.refused += 1
            raise refusals.full(self._waiting.live, self.max_queued_requests, self._seconds_per_request)
        return victim

    def _wake_at(self, due: float) -> None:
        """One timer for the earliest deadline: requests are many, and most are answered long before theirs."""
        if self._timer is not None:
            self._timer.cancel()
        self._due = due
        self._timer = None if due == math.inf else self._loop.call_later(max(0.0, due - self._clock()), self._sweep)

    def _sweep(self) -> None:
        """Settle what expired while the executors were busy, wake for the next deadline."""
        now = self._clock()
        expired, earliest = self._waiting.expired(now)
        self._wake_at(max(now + _EXPIRY_GRAIN_S, earliest))
        for request in expired:
            self._settle(request, self.expired())

    def _is_busy(self) -> bool:
        return len(self._idle_threads) < len(self._running) or self._waiting.live > 0

    def _delay_s(self, queue: ClassQueue, deadline: float, own_s: float, now: float) -> float:
        """Until such a request is executed: see `wait_s` in control/batching.py."""
        return self._waiting.delay_s(queue, deadline, own_s, now, self._free_in_s(queue, now))

    def _free_in_s(self, queue: ClassQueue, now: float) -> float:
        """Until the first executor of this class is free, by what the curves say."""
        if len(self._running) == 1:
            batch = self._running[0]
            return 0.0 if batch is None or batch.until <= now else batch.until - now
        return min(
            0.0 if batch is None else max(0.0, batch.until - now)
            for thread, batch in enumerate(self._running)
            if self._waiting.serves(thread, queue)
        )

    def _start(self, thread: int) -> None:
        """Give this idle executor its next batch, if there is one."""
        now = self._clock()
        batch, late = self._waiting.form(thread, now, self._level.level)
        if len(self.models) > 1:
            self._observe_pressure(now)
        if batch is not None:
            self._idle_threads.remove(thread)
            self._running[thread] = batch
            self.counters.batches += 1
            self.counters.batch_sizes[batch.rows] = self.counters.batch_sizes.get(batch.rows, 0) + 1
            self._executor.submit(thread, Job(batch.requests, batch.model.infer[thread], batch.model.spent[thread]))
        for request in late:
            self._refuse_late(request, now)
        if self._idle is not None and not self._idle.done() and not self._is_busy():
            self._idle.set_result(None)

    def _refuse_late(self, request: Request, now: float) -> None:
        if request.deadline <= now:
            error: SluiceError = self.expired()
        else:
            error = refusals.became_late(self.scheduling.late, request.deadline - now)
        self.counters.expired += 1
        request.queue.caution.missed(now)
        self._finish(request, error)

    def _observe_pressure(self, now: float) -> None:
        """By what had to be left behind: one batch that takes long is no pressure."""
        waiting, level, threads = self._waiting, self._level.level, self._waiting.executors
        pressure = Pressure(waiting.total_s(level) / threads, waiting.busy_above(self.models, level, now) / threads)
        self._level = step(pressure, self._level, now, policy=self.scheduling.accuracy, levels=len(self.models))
        if self._level.level != level:
            waiting.revalue(self._level.level)

    def _done(self, thread: int, outcomes: list[Outputs | SluiceError]) -> None:
        """On the event loop, after each batch."""
        batch = self._running[thread]
        assert batch is not None
        now, requests = self._clock(), batch.requests
        self._seconds_per_request += 0.1 * ((now - batch.started) / len(requests) - self._seconds_per_request)
        self._waiting.account(batch, now, learn=not any(isinstance(outcome, SluiceError) for outcome in outcomes))
        self._running[thread] = None
        self._idle_threads.append(thread)
        if requests[0].stop < requests[0].rows and self._goes_on(requests[0], batch.model, outcomes, now):
            requests = []  # a piece fills its batch alone
        self._start(thread)  # first the executor, then the answers: it must not wait for our JSON
        model, counters = batch.model, self.counters
        for request, outcome in zip(requests, outcomes, strict=False):
            if request.ticket == OUT:
                continue
            if isinstance(outcome, SluiceError):
                self._settle(request, outcome)
            else:
                counters.answered += 1
                if now > request.deadline:
                    request.queue.caution.missed(now)
                else:
                    request.queue.caution.kept()
                self._finish(request, Answer(outcome, model))

    def _goes_on(self, request: Request, model: Model, outcomes: list[Outputs | SluiceError], now: float) -> bool:
        """Queue the next piece, unless this one failed or its client left."""
        if isinstance(outcomes[0], SluiceError) or request.ticket == OUT:
            return False
        if self._closed:
            outcomes[0] = refusals.closing()
            return False
        request.start = request.stop
        request.models, request.accuracy = (model,), "best"
        queue = self._waiting.queue(request.priority)
        lane = self._waiting.lane(queue, request)
        # As if it came now: its own deadline would put all its pieces in front of whoever came after it.
        order_by = now + request.timeout_s if request.timeout_s is not None else math.inf
        request.arrived = now
        cost_s = (request.rows - request.start) * lane.curves[0].row_s
        self._waiting.push(queue, lane, (order_by, next(self._tickets), request), cost_s)
        if request.deadline < self._due:
            self._wake_at(request.deadline)
        return True

    def _settle(self, request: Request, error: SluiceError) -> None:
        """Nobody executes it any more."""
        if isinstance(error, DeadlineExceeded):
            self.counters.expired += 1
            request.queue.caution.missed(self._clock())
        elif isinstance(error, Overloaded):
            self.counters.evicted += 1
        else:
            self.counters.failed += 1
        self._finish(request, error)

    def _finish(self, request: Request, outcome: Answer | SluiceError) -> None:
        request.ticket = OUT
        try:
            request.done(request, outcome)
        except Exception:  # must not cost the neighbours in its batch their answers
            _log.exception("what was to be done with an answer failed")
