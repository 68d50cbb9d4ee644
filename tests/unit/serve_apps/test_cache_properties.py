"""Any interleaving of requests, cancellations, deadlines, refusals, failures and changes of model: each request is
answered exactly once, with its own content's answer by a model that was resident when it came, and never late."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.errors import DeadlineExceeded, InferenceFailed, NotReady, Overloaded, SluiceError
from serve_apps.cache import ARRAY_BYTES, ENTRY_BYTES
from tests.unit.serve_apps.cached import Answer, ManualBatcher, Request, cache_of, of

ENTRY = ENTRY_BYTES + 2 * ARRAY_BYTES + 4 + 8  # with the input and the output
OWN = (Overloaded, DeadlineExceeded, NotReady)
TIMEOUTS = st.sampled_from([math.inf, 0.5, 1.0, 3.0, 9.0])
ERRORS = st.sampled_from([DeadlineExceeded, Overloaded, NotReady, InferenceFailed])


class CacheMachine(RuleBasedStateMachine):
    @initialize(entries=st.integers(0, 3), spare=st.integers(0, ENTRY - 1))
    def start(self, entries: int, spare: int) -> None:
        self.batcher = ManualBatcher()
        self.cache = cache_of(self.batcher, max_bytes=entries * ENTRY + spare)
        self.due: dict[Request, float] = {}
        self.sent: list[Request] = []
        self.came: dict[Request, tuple[int, int]] = {}  # the model then, and the content
        self.cancelled: set[Request] = set()
        self.blamed: set[int] = set()

    def open(self) -> list[Request]:
        return [request for request in self.sent if not request.outcomes and request not in self.cancelled]

    @rule(
        number=st.integers(0, 1), wish=st.sampled_from(["best", "best", "fast"]),
        wishes=st.lists(st.tuples(TIMEOUTS, st.integers(1, 2), st.booleans(), st.booleans()), min_size=1, max_size=4),
    )  # fmt: skip
    def put(self, number: int, wish: str, wishes: list[tuple[float, int, bool, bool]]) -> None:
        """Several of one content, as they come when a picture is popular."""
        for timeout, priority, leaves, asks_again in wishes:

            def then(request: Request, leaves: bool = leaves, asks_again: bool = asks_again) -> None:
                """What fronts do while they are answered."""
                if leaves and (others := self.open()):
                    self.leave(others[-1])
                if asks_again:
                    self.send(of(number, wish=wish, priority=3))

            self.send(of(number, wish=wish, priority=priority, timeout_s=timeout, then=then))

    def send(self, request: Request) -> None:
        self.sent.append(request)
        self.came[request] = self.batcher.model, int(request.inputs["x"][0, 0])
        self.due[request] = self.batcher.now + (math.inf if request.timeout_s is None else request.timeout_s)
        self.cache.put(request)

    def leave(self, request: Request) -> None:
        self.cancelled.add(request)
        self.cache.cancel(request)

    @rule(data=st.data())
    @precondition(lambda self: self.open())
    def cancel(self, data: st.DataObject) -> None:
        self.leave(data.draw(st.sampled_from(self.open())))

    @rule(data=st.data())
    @precondition(lambda self: self.batcher.waiting)
    def answer(self, data: st.DataObject) -> None:
        self.batcher.answer(data.draw(st.sampled_from(list(self.batcher.waiting))))

    @rule(data=st.data(), kind=ERRORS)
    @precondition(lambda self: self.batcher.waiting)
    def fail(self, data: st.DataObject, kind: type[SluiceError]) -> None:
        request = data.draw(st.sampled_from(list(self.batcher.waiting)))
        if kind is InferenceFailed:
            self.blamed.add(self.came[request][1])
        self.batcher.fail(request, kind("by the test"))

    @rule(seconds=st.sampled_from([0.3, 1.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        self.batcher.advance(seconds)

    @rule(kinds=st.lists(st.sampled_from([None, "answer", *OWN]), min_size=1, max_size=4))
    def next_ones_are_settled_inside_put(self, kinds: list[type[SluiceError] | str | None]) -> None:
        self.batcher.next_ones = [kind("by the test") if isinstance(kind, type) else kind for kind in kinds]

    @rule(switch=st.booleans())
    def other_models(self, switch: bool) -> None:
        if switch:
            self.batcher.model += 1
            self.cache.models_changed()
        else:
            self.cache.forget(self.batcher.model)

    @invariant()
    def nobody_is_lost_and_nobody_answered_twice(self) -> None:
        for request in self.sent:
            assert len(request.outcomes) <= 1
            if request in self.cancelled:
                assert not request.outcomes
        for request in self.open():
            flight = self.cache._flight_of[request]
            assert flight.leader in self.batcher.waiting
            assert flight.leader is request or (flight.joiners is not None and request in flight.joiners)
        assert len(self.cache._flight_of) == len(self.open())
        assert not self.cache._again

    @invariant()
    def nothing_is_executed_for_nobody(self) -> None:
        wanted = {id(self.cache._flight_of[request].leader) for request in self.open()}
        assert {id(request) for request in self.batcher.waiting} == wanted

    @invariant()
    def answers_are_the_content_s_own_and_errors_the_request_s_own(self) -> None:
        for request in self.sent:
            for outcome in request.outcomes:
                model, number = self.came[request]
                if isinstance(outcome, Answer):
                    assert outcome.model >= model
                    assert outcome.outputs["y"].tolist() == [[10 * number + outcome.model]]
                elif isinstance(outcome, OWN):
                    assert request in self.batcher.failed or self.due[request] <= self.batcher.now
                else:
                    assert number in self.blamed

    @invariant()
    def nobody_waits_beyond_his_deadline(self) -> None:
        for request in self.open():
            assert request.deadline > self.batcher.now
            assert request.deadline <= self.due[request] + 1e-9, "put again, its time does not begin anew"

    @invariant()
    def bytes_are_bounded_and_told(self) -> None:
        assert self.cache.bytes == len(self.cache) * ENTRY <= self.cache.max_bytes

    def teardown(self) -> None:
        if not hasattr(self, "batcher"):
            return
        self.batcher.next_ones = []
        while self.batcher.waiting:
            self.batcher.answer(next(iter(self.batcher.waiting)))
        assert not self.open()
        assert not self.cache._flights
        assert not self.cache._flight_of


CacheMachine.TestCase.settings = settings(max_examples=400, stateful_step_count=30, deadline=None)
TestCache = CacheMachine.TestCase
