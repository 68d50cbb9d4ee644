"""Any interleaving of requests, cancellations, deadlines, refusals, failures and changes of model: each request is
answered exactly once, with its own content's answer by a model that was resident when it came, and never late."""

from __future__ import annotations

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cluster.errors import DeadlineExceeded, InferenceFailed, NotReady, Overloaded, SluiceError
from serve_apps.cache import ARRAY_BYTES, ENTRY_BYTES, ResponseCache
from tests.unit.serve_apps.cached import Answer, ManualBatcher, Request, of

ENTRY = ENTRY_BYTES + 2 * ARRAY_BYTES + 8
OWN = (Overloaded, DeadlineExceeded, NotReady)
ERRORS = st.sampled_from([DeadlineExceeded, Overloaded, NotReady, InferenceFailed])


class CacheMachine(RuleBasedStateMachine):
    @initialize(entries=st.integers(0, 3), spare=st.integers(0, ENTRY - 1))
    def start(self, entries: int, spare: int) -> None:
        self.batcher = ManualBatcher()
        self.cache: ResponseCache[Request, Answer] = ResponseCache(
            self.batcher, Answer, max_bytes=entries * ENTRY + spare
        )
        self.sent: list[Request] = []
        self.came: dict[Request, tuple[int, int]] = {}  # the model then, and the content
        self.cancelled: set[Request] = set()
        self.blamed: set[int] = set()

    def open(self) -> list[Request]:
        return [request for request in self.sent if not request.outcomes and request not in self.cancelled]

    @rule(
        number=st.integers(0, 2), wish=st.sampled_from(["best", "fast"]), priority=st.integers(1, 2),
        timeout=st.sampled_from([math.inf, 0.5, 1.0, 3.0, 9.0]), leaves=st.booleans(), asks_again=st.booleans(),
    )  # fmt: skip
    def put(
        self, number: int, wish: str, priority: int, timeout: float, *, leaves: bool, asks_again: bool
    ) -> None:
        def then(request: Request) -> None:
            """What fronts do while they are answered."""
            if leaves and (others := self.open()):
                self.leave(others[0])
            if asks_again:
                self.send(of(number, wish=wish, priority=3))

        self.send(of(number, wish=wish, priority=priority, deadline=self.batcher.now + timeout, then=then))

    def send(self, request: Request) -> None:
        self.sent.append(request)
        self.came[request] = self.batcher.model, int(request.inputs["x"][0, 0])
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

    @rule(kinds=st.lists(st.one_of(st.none(), st.sampled_from(OWN)), max_size=4))
    def next_ones_are_refused(self, kinds: list[type[SluiceError] | None]) -> None:
        self.batcher.refusals = [kind("by the test") if kind else None for kind in kinds]

    @rule(at_once=st.booleans())
    def idle_batcher_answers_inside_put(self, at_once: bool) -> None:
        self.batcher.at_once = at_once

    @rule()
    def change_models(self) -> None:
        self.batcher.model += 1
        self.cache.models_changed()

    @rule()
    def forget(self) -> None:
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
                    assert request in self.batcher.failed
                else:
                    assert number in self.blamed

    @invariant()
    def nobody_waits_beyond_his_deadline(self) -> None:
        for request in self.open():
            assert request.deadline > self.batcher.now

    @invariant()
    def bytes_are_bounded_and_told(self) -> None:
        assert self.cache.bytes == len(self.cache) * ENTRY <= self.cache.max_bytes

    def teardown(self) -> None:
        if not hasattr(self, "batcher"):
            return
        while self.batcher.waiting:
            self.batcher.answer(next(iter(self.batcher.waiting)))
        assert not self.open()
        assert not self.cache._flights
        assert not self.cache._flight_of


CacheMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestCache = CacheMachine.TestCase
