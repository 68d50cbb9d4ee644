"""Several classes, models, executors and shapes, with all that may happen to them in any order: nothing is lost,
nothing answered twice, every answer is the request's own and from a model that it allowed, and within a class nobody is
overtaken by a later deadline."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.errors import (
    DeadlineExceeded,
    InferenceFailed,
    InvalidRequest,
    NotReady,
    Overloaded,
    QuotaExceeded,
    SluiceError,
)
from cluster.scheduling import PriorityClass, Quota, Scheduling
from serve_apps.executor import Answer, Model, Request
from serve_apps.waiting import Batch
from tests.unit.serve_apps.gated_model import GatedModel, WatchedBatcher, until

CLASSES = (
    PriorityClass(name="high", weight=16, slots=1, accuracy="best"),
    PriorityClass(name="normal", weight=4, share=0.2),
    PriorityClass(name="low", weight=1, accuracy="fast", max_wait_s=2.0),
)
RULES = [
    Scheduling(),
    Scheduling(classes=CLASSES),
    Scheduling(classes=CLASSES, late="408", tenants={"bounded": Quota(rate_rps=0.5, burst=2)}),
    Scheduling(classes=CLASSES[:2]),
]


@dataclass
class Sent:
    request: Request
    ids: list[int]
    allowed: tuple[Model, ...]
    outcomes: list[Answer | SluiceError] = field(default_factory=list)
    cancelled: bool = False
    poisoned: bool = False


class SchedulingMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.now = 1000.0
        self.next_id = 1
        self.sent: list[Sent] = []
        self.poison: set[int] = set()
        self.gates: list[GatedModel] = []
        self.draining = False
        self.late_batches: list[str] = []

    def model(self, name: str, accuracy: float, factor: int) -> Model:
        gates = [GatedModel(self.spoil(factor)) for _ in range(self.threads)]
        self.gates += gates
        return Model(name, f"{name}/{factor}", accuracy, tuple(gates))

    def spoil(self, factor: int) -> Any:
        def outputs(ids: list[int]) -> Any:
            if self.poison & set(ids):
                raise ValueError("poison")
            return ({"y": np.array(ids) * factor},)

        return outputs

    @initialize(
        limit=st.integers(1, 5), places=st.integers(2, 8), threads=st.integers(1, 2), rules=st.sampled_from(RULES),
    )  # fmt: skip
    def start(self, limit: int, places: int, threads: int, rules: Scheduling) -> None:
        self.threads = threads
        models = [self.model("exact", 0.9, 10), self.model("quick", 0.8, 20)]

        async def make() -> WatchedBatcher:
            options: dict[str, Any] = {"max_batch_size": limit, "max_queued_requests": places, "scheduling": rules}
            return WatchedBatcher(*models, clock=lambda: self.now, **options)

        self.batcher = self.loop.run_until_complete(make())
        self.watch()

    def watch(self) -> None:
        """Look at each batch as it is formed."""
        waiting = self.batcher._waiting
        form = waiting.form

        def watched(thread: int, now: float, level: int) -> tuple[Batch | None, list[Request]]:
            before = [entry for queue in waiting._classes for entry in queue.entries()]
            batch, late = form(thread, now, level)
            if batch is not None:
                self.check_order(batch, before, late)
            return batch, late

        waiting.form = watched  # type: ignore[method-assign]

    def check_order(self, batch: Batch, before: list[Any], late: list[Request]) -> None:
        order = {id(entry[2]): entry[:2] for entry in before}
        taken = set(map(id, batch.requests))
        gone = taken | set(map(id, late))
        # The first may be the oldest of its class, which goes next when it has waited too long.
        for request in batch.requests[1:]:
            for *_, other in before:
                if other.lane is request.lane and id(other) not in gone:
                    assert order[id(request)] < order[id(other)], "overtaken by a later deadline"
        assert len({request.signature for request in batch.requests}) == 1
        assert batch.rows <= self.batcher.max_batch_size
        for request in batch.requests:
            assert request.deadline > self.now
            assert request.sure or request.deadline >= self.now + batch.curve.seconds(batch.rows) - 1e-9

    @rule(
        rows=st.integers(1, 7), wide=st.booleans(), priority=st.integers(0, 4),
        timeout_s=st.sampled_from([None, None, 0.5, 1.0, 5.0]), poison=st.booleans(), many=st.integers(1, 4),
        accuracy=st.sampled_from([None, "best", "balanced", "fast", 0.8, 0.85, 0.99]),
        tenant=st.sampled_from([None, "bounded"]),
    )  # fmt: skip
    def put(
        self, rows: int, wide: bool, priority: int, timeout_s: float | None, poison: bool, many: int, accuracy: Any,
        tenant: str | None,
    ) -> None:  # fmt: skip
        for _ in range(many):
            self.put_one(rows, wide, priority, timeout_s, poison and rows == 3, accuracy, tenant)
        self.settle()

    def put_one(
        self, rows: int, wide: bool, priority: int, timeout_s: Any, poison: bool, accuracy: Any, tenant: Any
    ) -> None:
        ids = list(range(self.next_id, self.next_id + rows))
        self.next_id += rows
        x = np.array(ids)
        allowed = self.batcher.models
        if isinstance(accuracy, float):
            allowed = tuple(model for model in allowed if model.accuracy >= accuracy)
        elif accuracy == "best":
            allowed = allowed[:1]

        def done(request: Request, outcome: Answer | SluiceError) -> None:
            request.context.outcomes.append(outcome)

        request = Request(
            {"x": np.stack([x, x], axis=1) if wide else x}, done, timeout_s=timeout_s, priority=priority,
            accuracy=accuracy, tenant=tenant,
        )  # fmt: skip
        sent = request.context = Sent(request, ids, allowed, poisoned=poison)
        if poison:
            self.poison.add(ids[-1])

        async def put() -> None:
            self.batcher.put(request)

        before = self.batcher.counters.refused
        try:
            self.loop.run_until_complete(put())
        except InvalidRequest:
            assert not allowed
        except NotReady:
            assert self.draining
        except (Overloaded, QuotaExceeded, DeadlineExceeded):
            assert self.batcher.counters.refused == before + 1
            assert not sent.outcomes
        else:
            assert not self.draining
            assert allowed
            self.sent.append(sent)

    def settle(self) -> None:
        """Every executor with a batch stands at its gate."""
        self.loop.run_until_complete(until(lambda: sum(g.waiting for g in self.gates) == self.running()))

    def running(self) -> int:
        return sum(batch is not None for batch in self.batcher._running)

    @precondition(lambda self: self.running())
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.01, 0.2, 1.0]))
    def finish_batch(self, data: st.DataObject, seconds: float) -> None:
        self.now += seconds
        gate = data.draw(st.sampled_from([n for n, gate in enumerate(self.gates) if gate.waiting]))
        self.loop.run_until_complete(self.through(self.gates[gate]))
        self.settle()

    async def through(self, gate: GatedModel) -> None:
        before = self.batcher.handled
        while self.batcher.handled == before:  # with its retries, if it fails
            await until(lambda: gate.waiting or self.batcher.handled > before)
            if self.batcher.handled == before:
                gate.permit()

    @precondition(lambda self: self.sent)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        sent = data.draw(st.sampled_from(self.sent))
        self.batcher.cancel(sent.request)
        self.batcher.cancel(sent.request)
        if not sent.outcomes:
            sent.cancelled = True

    @rule(seconds=st.sampled_from([0.1, 0.5, 2.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.batcher._sweep()
        for sent in self.sent:
            assert sent.outcomes or sent.cancelled or sent.request.ticket < 0 or sent.request.deadline > self.now

    @rule(limit=st.integers(1, 5), places=st.integers(2, 8), rules=st.sampled_from(RULES))
    def new_rules(self, limit: int, places: int, rules: Scheduling) -> None:
        self.batcher.reconfigure(scheduling=rules, max_batch_size=limit, max_queued_requests=places)

    @rule(factor=st.integers(3, 9))
    def new_models(self, factor: int) -> None:
        if len(self.gates) < 24:
            self.batcher.reconfigure(models=[self.batcher.models[0], self.model("other", 0.8, factor)])

    @rule(draws=st.integers(0, 9))
    def drain(self, draws: int) -> None:
        if draws == 0:
            self.draining = True
            self.loop.run_until_complete(self.batcher.drain(0))

    @invariant()
    def at_most_one_outcome(self) -> None:
        for sent in self.sent:
            assert len(sent.outcomes) <= 1
            assert not (sent.cancelled and sent.outcomes)
        if hasattr(self, "batcher"):
            waiting = self.batcher._waiting
            assert self.batcher.queued == sum(sent.request.ticket >= 0 for sent in self.sent)
            assert all(queue.work_s > -1e-6 for queue in waiting._classes)
            assert not waiting.live or self.running(), "work waits and an executor is idle"

    def teardown(self) -> None:
        if hasattr(self, "batcher"):
            while self.running():
                gate = next(gate for gate in self.gates if gate.waiting)
                self.loop.run_until_complete(self.through(gate))
                self.settle()
            assert self.batcher.queued == 0
            self.batcher.close()
            self.check_outcomes()
        self.loop.close()

    def check_outcomes(self) -> None:
        for sent in self.sent:
            if sent.cancelled:
                continue
            [outcome] = sent.outcomes
            if isinstance(outcome, Answer):
                assert not sent.poisoned
                assert outcome.model in sent.allowed
                factor = int(outcome.model.version.rpartition("/")[2])
                assert outcome.outputs["y"].tolist() == [factor * each for each in sent.ids]
            else:
                assert isinstance(outcome, (InferenceFailed, DeadlineExceeded, Overloaded))
                assert sent.poisoned or not isinstance(outcome, InferenceFailed)
                assert sent.request.timeout_s is not None or not isinstance(outcome, DeadlineExceeded)
        counters = self.batcher.counters
        assert len(self.sent) == (
            counters.answered + counters.failed + counters.expired + counters.evicted + counters.cancelled
        )


SchedulingMachine.TestCase.settings = settings(
    max_examples=150, stateful_step_count=30, deadline=None, suppress_health_check=list(HealthCheck)
)
TestSchedulingMachine = SchedulingMachine.TestCase
