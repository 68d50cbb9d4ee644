"""The retry policy as the pure function that it is: its bounds hold whatever happens."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from serve_apps.oip.client.retries import NO_RETRIES, USUAL, Again, Budget, GiveUp, RetryPolicy, decide

SECONDS = st.floats(min_value=0, max_value=1e6)
POLICIES = st.builds(
    RetryPolicy, max_attempts=st.integers(1, 10), first_wait_s=st.floats(0, 10), max_wait_s=st.floats(0, 10),
    budget_share=st.floats(0, 2), budget_per_s=st.floats(0, 5), budget_burst=st.floats(0, 20),
)  # fmt: skip
CHANCES = st.floats(0, 1, exclude_max=True)
FULL = Budget(100.0, 0.0)


@given(
    POLICIES, st.floats(-1, 20), st.integers(1, 12), st.none() | SECONDS, st.none() | st.floats(-10, 1e6), CHANCES
)
def test_every_bound_can_say_no_and_none_is_broken(
    policy: RetryPolicy, tokens: float, attempt: int, retry_after_s: float | None, left_s: float | None, chance: float
) -> None:
    decision = decide(
        policy, Budget(tokens, 0.0), attempt=attempt, retry_after_s=retry_after_s, left_s=left_s, chance=chance
    )
    asked = retry_after_s or 0.0
    if isinstance(decision, Again):
        assert attempt < policy.max_attempts
        assert tokens >= 1.0
        assert left_s is None or decision.wait_s < left_s
        assert asked <= decision.wait_s <= asked + min(policy.max_wait_s, policy.first_wait_s * 2 ** (attempt - 1))
    else:
        late = left_s is not None and asked + policy.max_wait_s * chance >= left_s
        late = late or (left_s is not None and asked + policy.first_wait_s * 2 ** (attempt - 1) * chance >= left_s)
        assert attempt >= policy.max_attempts or tokens < 1.0 or late


@given(POLICIES, st.lists(st.tuples(st.floats(0, 10), st.booleans()), max_size=200))
def test_retries_are_a_share_of_what_is_called(policy: RetryPolicy, steps: list[tuple[float, bool]]) -> None:
    """Whatever comes when: at most the burst, the share of calls and the trickle of time, together."""
    budget, now, calls, retries = Budget(policy.budget_burst, 0.0), 0.0, 0, 0
    for wait, is_call in steps:
        now += wait
        budget = budget.grown(policy, now, calls=int(is_call))
        calls += is_call
        if isinstance(decide(policy, budget, attempt=1, retry_after_s=None, left_s=None, chance=0.0), Again):
            budget = budget.spent()
            retries += 1
        assert -1e-9 <= budget.tokens <= policy.budget_burst
    most = policy.budget_burst + policy.budget_share * calls + policy.budget_per_s * now
    assert retries <= most * (1 + 1e-9) + 1e-9


def test_a_server_that_refuses_everybody_is_sent_a_tenth_more() -> None:
    budget, sent = Budget(USUAL.budget_burst, 0.0), 0
    for _ in range(1000):  # within a moment
        budget = budget.grown(USUAL, 0.0, calls=1)
        for attempt in range(1, 100):
            sent += 1
            decision = decide(USUAL, budget, attempt=attempt, retry_after_s=None, left_s=None, chance=0.5)
            if isinstance(decision, GiveUp):
                break
            budget = budget.spent()
    assert 1000 < sent <= 1000 * 1.1 + USUAL.budget_burst


def test_jitter_is_full_and_its_bound_doubles() -> None:
    policy = RetryPolicy(max_attempts=20, first_wait_s=0.1, max_wait_s=0.5)

    def waits(chance: float) -> list[float]:
        made = [
            decide(policy, FULL, attempt=attempt, retry_after_s=None, left_s=None, chance=chance)
            for attempt in range(1, 6)
        ]
        return [each.wait_s for each in made if isinstance(each, Again)]

    assert waits(0.0) == [0.0] * 5
    assert waits(0.5) == pytest.approx([0.05, 0.1, 0.2, 0.25, 0.25])


def test_the_clock_may_stand_still_or_go_back() -> None:
    budget = Budget(0.0, 10.0).grown(USUAL, 5.0)
    assert budget == Budget(0.0, 10.0)


@pytest.mark.parametrize(
    "field", ["first_wait_s", "max_wait_s", "budget_share", "budget_per_s", "budget_burst"]
)
@pytest.mark.parametrize("value", [-0.1, math.inf, math.nan])
def test_a_policy_of_no_sense_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        RetryPolicy(**{field: value})  # type: ignore[arg-type]


def test_no_attempts_are_refused_and_one_is_no_retry() -> None:
    with pytest.raises(ConfigError, match="max_attempts=0 is below 1"):
        RetryPolicy(max_attempts=0)
    assert decide(NO_RETRIES, FULL, attempt=1, retry_after_s=None, left_s=None, chance=0.0) == GiveUp("")
