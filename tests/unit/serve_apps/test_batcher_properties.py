"""Any interleaving of requests, cancellations, deadlines, failures and new bounds: each request is settled exactly
once, with its own rows, in batches that a plain sorted list foretells. (Within one class, and without what is learnt of
execution times: test_batcher_scheduling_properties.py has all of it.)"""

from __future__ import annotations

import asyncio
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.errors import DeadlineExceeded, InferenceFailed, Overloaded
from cluster.scheduling import PriorityClass, Scheduling
from serve_apps.executor import Answer
from tests.unit.serve_apps.gated_model import GatedModel, WatchedBatcher, at_gate, step

ONE_CLASS = Scheduling(classes=(PriorityClass(name="normal", max_wait_s=None),))
POISONS: list[Any] = [
    ValueError(), SystemExit(), MemoryError(), asyncio.CancelledError(), (None,), ({"y": np.zeros(99)},),
]  # fmt: skip


@dataclass
class Sent:
    """What the test knows of a request that was accepted; `done_rows` of it were executed."""

    ids: list[int]
    wide: bool
    timeout_s: float | None
    deadline: float
    key: tuple[float, int]
    future: asyncio.Future[Answer]
    done_rows: int = 0
    next_rows: int = 0
    expected: str = "answer"


class BatcherMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 1000.0
        self.number = 0
        self.next_id = 1
        self.poison: dict[int, Any] = {}
        self.all: list[Sent] = []
        self.waiting: list[Sent] = []
        self.running: list[Sent] = []
        self.refused = 0
        self.batches = 0

    @initialize(limit=st.integers(1, 5), queue=st.integers(1, 6))
    def start(self, limit: int, queue: int) -> None:
        self.model = GatedModel(self._spoil)

        async def make() -> WatchedBatcher:
            options = {"max_batch_size": limit, "max_queued_requests": queue, "scheduling": ONE_CLASS}
            return WatchedBatcher(self.model, clock=lambda: self.now, **options)

        self.batcher = self.loop.run_until_complete(make())
        self.batcher.timeless = True

    def _spoil(self, ids: list[int]) -> Any:
        for each in ids:
            outcome = self.poison.get(each)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is not None:
                return outcome
        return None

    def _next_number(self) -> int:
        self.number += 1
        return self.number

    def _alive(self) -> list[Sent]:
        return [sent for sent in self.waiting if not sent.future.cancelled() and sent.deadline > self.now]

    def _foretell_batch(self) -> None:
        """What the executor must be given now, by looking at a sorted list."""
        for sent in self.waiting:
            if not sent.future.cancelled() and sent.deadline <= self.now:
                sent.expected = "expired"
        self.running = []
        limit, rows = self.batcher.max_batch_size, 0
        self.formed_with = limit
        for sent in sorted(self._alive(), key=lambda sent: sent.key):
            need = min(len(sent.ids) - sent.done_rows, limit)
            if self.running and sent.wide != self.running[0].wide:
                continue
            if rows + need > limit:
                break
            sent.next_rows = need
            self.running.append(sent)
            rows += need
        running = {id(sent) for sent in self.running}
        self.waiting = [sent for sent in self._alive() if id(sent) not in running]
        self.batches += bool(self.running)

    def _check_batch(self) -> None:
        """The executor stands before the model with just the rows that were foretold."""
        self.loop.run_until_complete(at_gate(self.model, self.batcher))
        assert self.model.waiting == bool(self.running)
        if self.running:
            pieces = [sent.ids[sent.done_rows : sent.done_rows + sent.next_rows] for sent in self.running]
            assert self.model.calls[-1] == [each for piece in pieces for each in piece]
            assert len(self.model.calls[-1]) <= self.formed_with

    @rule(
        rows=st.integers(1, 12), wide=st.booleans(), priority=st.sampled_from([0, 1, 2]),
        timeout_s=st.sampled_from([None, 1.0, 5.0]), poison=st.sampled_from([None] * 12 + POISONS), at=st.floats(0, 1),
    )  # fmt: skip
    def submit(self, rows: int, wide: bool, priority: int, timeout_s: float | None, poison: Any, at: float) -> None:
        ids = list(range(self.next_id, self.next_id + rows))
        self.next_id += rows
        x = np.array(ids, dtype=np.int64)
        idle = not self.running
        room = len(self._alive()) < self.batcher.max_queued_requests

        async def send() -> asyncio.Future[Answer]:
            return self.batcher.submit(
                {"x": np.stack([x, x], axis=1) if wide else x}, timeout_s=timeout_s, priority=priority
            )

        occupied = self.batcher.queued
        try:
            future = self.loop.run_until_complete(send())
        except Overloaded:
            assert occupied >= self.batcher.max_queued_requests
            self.refused += 1
            return
        assert room, "a request was accepted above the bound"
        if poison is not None:
            self.poison[ids[min(int(at * rows), rows - 1)]] = poison
        deadline = math.inf if timeout_s is None else self.now + timeout_s
        sent = Sent(ids, wide, timeout_s, deadline, (deadline, self._next_number()), future)
        self.all.append(sent)
        self.waiting.append(sent)
        if idle:
            self._foretell_batch()
        self._check_batch()

    @precondition(lambda self: self.running)
    @rule()
    def finish_batch(self) -> None:
        running = self.running
        self.loop.run_until_complete(self._step())
        for sent in running:
            sent.done_rows += sent.next_rows
            executed = sent.ids[sent.done_rows - sent.next_rows : sent.done_rows]
            if sent.future.cancelled():
                continue
            if any(each in self.poison for each in executed):
                sent.expected = "failure"
            elif sent.done_rows < len(sent.ids):
                order_by = math.inf if sent.timeout_s is None else self.now + sent.timeout_s
                sent.key = (order_by, self._next_number())
                self.waiting.append(sent)
                continue
            assert sent.future.done()
        self._foretell_batch()
        self._check_batch()

    async def _step(self) -> None:
        await step(self.model, self.batcher)

    @precondition(lambda self: self.all)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        open_ones = [sent for sent in self.all if not sent.future.done()]
        if open_ones:
            sent = data.draw(st.sampled_from(open_ones))
            sent.future.cancel()
            sent.expected = "cancelled"

    @rule(seconds=st.sampled_from([0.5, 1.0, 3.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def the_alarm_goes_off(self) -> None:
        self.batcher._sweep()
        for sent in self.waiting:
            if not sent.future.cancelled() and sent.deadline <= self.now:
                sent.expected = "expired"
                assert sent.future.done()
        self.waiting = self._alive()
        assert self.batcher.queued == len(self.waiting)

    @rule(limit=st.integers(1, 5))
    def new_bound(self, limit: int) -> None:
        self.batcher.reconfigure(max_batch_size=limit)

    @invariant()
    def nothing_is_settled_early(self) -> None:
        for sent in self.waiting + self.running:
            assert not sent.future.done() or sent.future.cancelled() or sent.deadline <= self.now

    def teardown(self) -> None:
        while getattr(self, "running", None):
            self.finish_batch()
        if hasattr(self, "batcher"):
            assert not self.batcher._is_busy()
            assert self.batcher.queued == 0
            self.batcher.close()
            self._check_outcomes()
        self.loop.close()

    def _check_outcomes(self) -> None:
        counters = self.batcher.counters
        by_outcome = {"answer": 0, "failure": 0, "expired": 0, "cancelled": 0}
        for sent in self.all:
            by_outcome[sent.expected] += 1
            assert sent.future.done()
            assert sent.future.cancelled() == (sent.expected == "cancelled")
            if sent.expected == "answer":
                y = sent.future.result().outputs["y"]
                assert y.shape == ((len(sent.ids), 2) if sent.wide else (len(sent.ids),))
                assert y.reshape(len(y), -1)[:, 0].tolist() == [10 * each for each in sent.ids]
            elif sent.expected != "cancelled":
                kind = InferenceFailed if sent.expected == "failure" else DeadlineExceeded
                assert type(sent.future.exception()) is kind
        assert by_outcome == {
            "answer": counters.answered, "failure": counters.failed, "expired": counters.expired,
            "cancelled": counters.cancelled,
        }  # fmt: skip
        assert counters.refused == self.refused
        assert counters.batches == self.batches == sum(counters.batch_sizes.values())


BatcherMachine.TestCase.settings = settings(
    max_examples=250, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestBatcherMachine = BatcherMachine.TestCase
