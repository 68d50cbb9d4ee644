"""One call from its first attempt to its answer, as a generator: it says what to do next, and is told how that went.

    course -> Send(message, left) -> Reply | Broken -> course -> Wait(seconds) -> None -> course -> ... -> the answer

So the sync and the async client are the same client: each only does what it is told (clients.py). One deadline holds
for all of it: what is left of it bounds every attempt, is what the server is told as `timeout`, and a wait that would
outlast it is not begun.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from cluster.errors import DeadlineExceeded, InvalidRequest, Overloaded, ServerUnreachable, SluiceError
from serve_apps.oip.client.calls import Call, Message, Reply, retry_after_s
from serve_apps.oip.client.retries import Again, Budget, GiveUp, RetryPolicy, decide

T = TypeVar("T")


class Send(NamedTuple):
    """Send this and hear the answer, within so many seconds (None: however long it takes)."""

    message: Message
    left_s: float | None


class Wait(NamedTuple):
    """Do nothing for so many seconds."""

    seconds: float


@dataclass(frozen=True)
class Broken:
    """No answer."""

    error: SluiceError
    refused: bool = False
    """Nobody took the connection, so nothing was asked."""
    silent: bool = False
    """The connection broke before any of the answer came."""


Course = Generator[Send | Wait, Reply | Broken | None, T]


class SharedBudget:
    """The retries of all calls of one client, from whichever thread."""

    def __init__(self, policy: RetryPolicy, clock: Callable[[], float] = time.monotonic) -> None:
        self._policy, self._clock = policy, clock
        self._budget = Budget(policy.budget_burst, clock())
        self._lock = threading.Lock()

    def called(self) -> None:
        """A call begins: it adds its share."""
        with self._lock:
            self._budget = self._budget.grown(self._policy, self._clock(), calls=1)

    def decide(
        self, *, attempt: int, retry_after_s: float | None, left_s: float | None, chance: float
    ) -> Again | GiveUp:
        """See retries.decide; what is permitted is spent."""
        with self._lock:
            self._budget = self._budget.grown(self._policy, self._clock())
            decision = decide(
                self._policy, self._budget, attempt=attempt, retry_after_s=retry_after_s, left_s=left_s, chance=chance
            )
            if isinstance(decision, Again):
                self._budget = self._budget.spent()
        return decision


def course(
    call: Call[T], budget: SharedBudget, *, timeout_s: float | None, clock: Callable[[], float] = time.monotonic,
    chance: Callable[[], float] = random.random,
) -> Course[T]:  # fmt: skip
    """The attempts of one call. Raises what `call.read` does, and SluiceError where nothing was heard."""
    if timeout_s is not None and not timeout_s > 0:
        raise InvalidRequest(f"timeout_s={timeout_s} leaves no time; give seconds above 0, None for the client's own")
    began = clock()
    left_s = timeout_s
    attempt = 1
    budget.called()
    while True:
        outcome = yield Send(call.message(left_s), left_s)
        assert outcome is not None
        if isinstance(outcome, Reply) and not (outcome.status == 503 and call.retried):
            return call.read(outcome)
        if isinstance(outcome, Broken) and not (outcome.refused or (outcome.silent and call.idempotent)):
            raise outcome.error
        left_s = _left(timeout_s, began, clock)
        asked_s = retry_after_s(outcome) if isinstance(outcome, Reply) else None
        decision = budget.decide(attempt=attempt, retry_after_s=asked_s, left_s=left_s, chance=chance())
        if isinstance(decision, GiveUp):
            return _given_up(call, outcome, decision.why)
        yield Wait(decision.wait_s)
        attempt += 1
        left_s = _left(timeout_s, began, clock)
        if left_s is not None and left_s <= 0:
            raise DeadlineExceeded(f"no time is left of {timeout_s:g} s before attempt {attempt}")


def _left(timeout_s: float | None, began: float, clock: Callable[[], float]) -> float | None:
    return None if timeout_s is None else timeout_s - (clock() - began)


def _given_up(call: Call[T], outcome: Reply | Broken, why: str) -> T:
    """Raises the failure that was the last, in its own words, with the reason why it was."""
    told = f" ({why})" if why else ""
    if isinstance(outcome, Broken):
        raise ServerUnreachable(f"{outcome.error}{told}") from outcome.error
    try:
        return call.read(outcome)
    except Overloaded as error:
        raise Overloaded(f"{error}{told}", retry_after_s=error.retry_after_s) from None
