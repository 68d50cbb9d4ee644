"""The attempts of one call, driven by hand with a clock of its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServerUnreachable, SluiceError, UnknownModel
from serve_apps.oip.client.calls import Call, Message, Reply
from serve_apps.oip.client.course import Broken, Course, Send, SharedBudget, Wait, course
from serve_apps.oip.client.retries import RetryPolicy

BUSY = Reply(503, {"retry-after": "1"}, b'{"error": "queue is full"}')
SOON = Reply(503, {}, b'{"error": "queue is full"}')
FINE = Reply(200, {}, b"fine")
REFUSED = Broken(ServerUnreachable("nobody took the connection"), refused=True)
SILENT = Broken(ServerUnreachable("the connection broke"), silent=True)
HALF = Broken(ServerUnreachable("the connection broke"))
LATE = Broken(DeadlineExceeded("no answer"))


def read(reply: Reply) -> bytes:
    if reply.status == 503:
        raise Overloaded("queue is full", retry_after_s=0.0)
    if reply.status == 404:
        raise UnknownModel("no such model")
    return reply.body


class Driven:
    """A course, and everything that it asked for."""

    def __init__(
        self, outcomes: list[Reply | Broken], *, timeout_s: float | None = None, took_s: float = 0.0,
        policy: RetryPolicy | None = None, idempotent: bool = True, retried: bool = True, chance: float = 0.5,
    ) -> None:  # fmt: skip
        self.now = 100.0
        self.told: list[float | None] = []
        self.sent: list[float | None] = []
        self.waits: list[float] = []
        self._outcomes, self._took_s = outcomes, took_s
        clock: Callable[[], float] = lambda: self.now  # noqa: E731
        budget = SharedBudget(policy or RetryPolicy(first_wait_s=0.1), clock)
        call = Call(self._message, read, idempotent=idempotent, retried=retried)
        self._course: Course[bytes] = course(call, budget, timeout_s=timeout_s, clock=clock, chance=lambda: chance)

    def _message(self, left_s: float | None) -> Message:
        self.told.append(left_s)
        return Message("GET", "/", {}, b"")

    def run(self) -> bytes:
        try:
            step = next(self._course)
            while True:
                if isinstance(step, Send):
                    self.sent.append(step.left_s)
                    self.now += self._took_s
                    step = self._course.send(self._outcomes.pop(0))
                else:
                    assert isinstance(step, Wait)
                    self.waits.append(step.seconds)
                    self.now += step.seconds
                    step = self._course.send(None)
        except StopIteration as end:
            answer: bytes = end.value
            return answer


def test_the_first_answer_is_the_answer() -> None:
    driven = Driven([FINE], timeout_s=2.0)
    assert driven.run() == b"fine"
    assert (driven.sent, driven.told, driven.waits) == ([2.0], [2.0], [])


def test_what_was_refused_comes_through_later_and_the_server_is_told_what_is_left() -> None:
    driven = Driven([SOON, BUSY, FINE], timeout_s=5.0, took_s=0.5)
    assert driven.run() == b"fine"
    assert driven.waits == pytest.approx([0.05, 1.1])
    assert driven.sent == driven.told == pytest.approx([5.0, 4.45, 2.85])


@pytest.mark.parametrize("outcome", [REFUSED, SILENT])
def test_a_connection_that_carried_no_answer_is_made_again(outcome: Broken) -> None:
    assert Driven([outcome, outcome, FINE]).run() == b"fine"


@pytest.mark.parametrize(("outcome", "error"), [
    (HALF, ServerUnreachable), (LATE, DeadlineExceeded), (Reply(404, {}, b""), UnknownModel),
])  # fmt: skip
def test_everything_else_ends_the_call(outcome: Reply | Broken, error: type[SluiceError]) -> None:
    driven = Driven([outcome, FINE])
    with pytest.raises(error):
        driven.run()
    assert driven.waits == []


def test_a_call_that_may_not_be_made_twice_is_not_unless_nobody_took_it() -> None:
    with pytest.raises(ServerUnreachable):
        Driven([SILENT, FINE], idempotent=False).run()
    assert Driven([REFUSED, FINE], idempotent=False).run() == b"fine"


def test_where_503_is_the_answer_it_is_not_tried_again() -> None:
    driven = Driven([SOON, FINE], retried=False)
    with pytest.raises(Overloaded):
        driven.run()
    assert len(driven.sent) == 1


def test_retry_after_beyond_the_deadline_ends_it_at_once() -> None:
    driven = Driven([BUSY, FINE], timeout_s=0.9)
    with pytest.raises(Overloaded, match=r"queue is full \(attempt 1, and the next one would begin after"):
        driven.run()
    assert driven.waits == []


def test_the_last_failure_says_its_own_words_and_how_often_it_was_tried() -> None:
    with pytest.raises(Overloaded, match=r"queue is full \(attempt 4 of 4\)"):
        Driven([SOON] * 4).run()
    with pytest.raises(ServerUnreachable, match=r"nobody took the connection \(attempt 4 of 4\)"):
        Driven([REFUSED] * 4).run()
    with pytest.raises(Overloaded, match=r"queue is full \(attempt 2, and the client's retry budget is used up\)"):
        Driven([SOON] * 4, policy=RetryPolicy(budget_burst=1.0, budget_per_s=0.0)).run()


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, float("nan")])
def test_no_time_is_refused(timeout_s: float) -> None:
    with pytest.raises(InvalidRequest, match="leaves no time"):
        Driven([FINE], timeout_s=timeout_s).run()


@given(
    st.lists(st.sampled_from([SOON, BUSY, REFUSED, SILENT]), min_size=12, max_size=12), st.floats(0.01, 20),
    st.floats(0, 3), st.floats(0, 1, exclude_max=True),
)  # fmt: skip
def test_nothing_is_sent_after_the_deadline(
    outcomes: list[Reply | Broken], timeout_s: float, took_s: float, chance: float
) -> None:
    driven = Driven(outcomes, timeout_s=timeout_s, took_s=took_s, chance=chance, policy=RetryPolicy(max_attempts=10))
    with pytest.raises(SluiceError):
        driven.run()
    assert all(left_s is not None and left_s > 0 for left_s in driven.sent)
    assert driven.now - 100.0 <= timeout_s + took_s + 1e-9
