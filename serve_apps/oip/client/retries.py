"""May a call that failed be made again, and when? Pure: no clock, no chance, no socket.

Three bounds, each of which can say no: attempts of one call, the call's own deadline, and a budget that all calls of a
client share. The budget is what keeps retries from making an overload worse: a server that refuses everybody is sent a
tenth more, not four times as much (Beyer and others, "Site Reliability Engineering", 2016, chapter 21, on per-client
retry budgets; Finagle's RetryBudget is the same bucket). How long to wait is drawn from nought to a bound that doubles,
so that clients refused together do not come back together (Brooker, "Exponential Backoff and Jitter", AWS, 2015: "full
jitter"). What the server names in `Retry-After` is waited before that.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.errors import ConfigError


@dataclass(frozen=True)
class RetryPolicy:
    """How often, how soon, and how much of all that is sent."""

    max_attempts: int = 4
    """Of one call, the first one included; 1: no retries."""
    first_wait_s: float = 0.02
    """Bound of the wait before the second attempt; it doubles with each one."""
    max_wait_s: float = 1.0
    budget_share: float = 0.1
    """Retries for each call, in the long run."""
    budget_per_s: float = 0.5
    """And so many a second, for a client that calls seldom."""
    budget_burst: float = 10.0
    """What may be saved up, and is there at first."""

    def __post_init__(self) -> None:
        if self.max_attempts < 1:
            raise ConfigError(f"max_attempts={self.max_attempts} is below 1; set 1 for a call without retries")
        for name in ("first_wait_s", "max_wait_s", "budget_share", "budget_per_s", "budget_burst"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)} must be a number from 0")


USUAL = RetryPolicy()
NO_RETRIES = RetryPolicy(max_attempts=1)


@dataclass(frozen=True)
class Budget:
    """Retries that may be made now, as counted at a moment of the caller's clock."""

    tokens: float
    at: float

    def grown(self, policy: RetryPolicy, now: float, *, calls: int = 0) -> Budget:
        """With what time has added since, and what so many calls add."""
        more = policy.budget_per_s * max(0.0, now - self.at) + policy.budget_share * calls
        return Budget(min(policy.budget_burst, self.tokens + more), max(now, self.at))

    def spent(self) -> Budget:
        """After one retry."""
        return Budget(self.tokens - 1.0, self.at)


@dataclass(frozen=True)
class Again:
    """Once more, after so long."""

    wait_s: float


@dataclass(frozen=True)
class GiveUp:
    """The failure is the answer, and why it was not tried again."""

    why: str


def decide(
    policy: RetryPolicy, budget: Budget, *, attempt: int, retry_after_s: float | None, left_s: float | None,
    chance: float,
) -> Again | GiveUp:  # fmt: skip
    """After `attempt` (the first is 1) failed in a way that permits another. `retry_after_s` is what the server asked
    for, `left_s` what the deadline leaves (None: no deadline), `chance` is drawn evenly from [0, 1)."""
    if attempt >= policy.max_attempts:
        return GiveUp(f"attempt {attempt} of {policy.max_attempts}" if policy.max_attempts > 1 else "")
    if budget.tokens < 1.0:
        return GiveUp(f"attempt {attempt}, and the client's retry budget is used up")
    bound = min(policy.max_wait_s, policy.first_wait_s * 2.0 ** min(attempt - 1, 60))
    wait_s = max(0.0, retry_after_s or 0.0) + chance * bound
    if left_s is not None and wait_s >= left_s:
        return GiveUp(f"attempt {attempt}, and the next one would begin after the deadline")
    return Again(wait_s)
