from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ClientSaturated, ConfigError
from cluster.load import TIMEOUT, StepResult, find_slo_rate, follow_slo_rate, judge, null_server, poisson_steps
from cluster.load.http1 import build_request
from cluster.load.runner import Target
from tests.unit.cluster.load.conftest import TargetOf
from tests.unit.cluster.load.test_result import result_of


def server(capacity: float, saturated_from: float = math.inf) -> object:
    def measure(rate: float, seed: int) -> StepResult:
        met = rate <= capacity
        return StepResult(met=met, p99_s=0.01 if met else math.inf, client_saturated=rate >= saturated_from)

    return measure


@given(st.floats(11.0, 9_999.0), st.integers(1, 12))
def test_the_bisection_closes_in_on_a_monotone_server(capacity: float, steps: int) -> None:
    found = find_slo_rate(server(capacity), low=10.0, high=10_000.0, steps=steps, seeds=[1])  # type: ignore[arg-type]
    factor = 1000.0 ** (1 / 2**steps)
    assert found.median <= capacity <= found.median * factor * 1.000001
    assert not found.at_ceiling
    assert len(found.trace) <= steps + 1


def test_a_server_below_the_range_has_rate_zero() -> None:
    assert find_slo_rate(server(5.0), low=10.0, high=100.0, seeds=[1]).median == 0.0  # type: ignore[arg-type]


def test_a_server_above_the_range_is_reported_as_such() -> None:
    found = find_slo_rate(server(500.0), low=10.0, high=100.0, seeds=[1, 2])  # type: ignore[arg-type]
    assert found.median == 100.0
    assert found.at_ceiling


@given(st.integers(0, 10_000))
def test_noise_near_the_edge_moves_the_answer_no_further_than_the_noise(seed: int) -> None:
    rng = random.Random(seed)

    def measure(rate: float, _: int) -> StepResult:
        met = rate <= 1000.0 * rng.uniform(0.9, 1.1)
        return StepResult(met=met, p99_s=0.01 if met else 1.0)

    found = find_slo_rate(measure, low=100.0, high=10_000.0, steps=10, seeds=[1, 2, 3])
    assert all(880 <= rate <= 1110 for rate in found.per_seed.values())
    assert found.spread[0] <= found.median <= found.spread[1]


def test_the_median_is_over_seeds() -> None:
    def measure(rate: float, seed: int) -> StepResult:
        return StepResult(met=rate <= {1: 100.0, 2: 200.0, 3: 900.0}[seed], p99_s=0.0)

    found = find_slo_rate(measure, low=10.0, high=1000.0, steps=14, seeds=[1, 2, 3])
    assert found.median == pytest.approx(200.0, rel=0.01)
    assert found.per_seed[3] == pytest.approx(900.0, rel=0.01)


@given(st.floats(1.5, 9_999.0), st.floats(2.0, 4_000.0))
def test_a_guess_is_followed_down_and_up(capacity: float, guess: float) -> None:
    found = follow_slo_rate(
        server(capacity), low=guess / 1.4, high=guess * 1.4, floor=1.0, ceiling=10_000.0, steps=3  # type: ignore[arg-type]
    )
    assert found.median <= capacity <= found.median * 1.1
    assert not found.at_ceiling
    assert found.per_seed == {1: found.median}


def test_a_guess_is_followed_no_further_than_floor_and_ceiling() -> None:
    low = follow_slo_rate(server(0.5), low=10.0, high=20.0, floor=1.0, ceiling=100.0)  # type: ignore[arg-type]
    assert low.median == 0.0
    assert min(step.rate for step in low.trace) >= 1.0
    high = follow_slo_rate(server(500.0), low=10.0, high=20.0, floor=1.0, ceiling=100.0)  # type: ignore[arg-type]
    assert (high.median, high.at_ceiling) == (100.0, True)
    with pytest.raises(ConfigError, match="rise"):
        follow_slo_rate(server(1.0), low=1.0, high=20.0, floor=2.0, ceiling=100.0)  # type: ignore[arg-type]


def test_a_saturated_client_gives_no_number() -> None:
    with pytest.raises(ClientSaturated, match="can't tell"):
        find_slo_rate(server(1e9, saturated_from=50.0), low=10.0, high=100.0, seeds=[1])  # type: ignore[arg-type]


def test_a_passing_hiccup_of_the_client_is_repeated() -> None:
    calls = 0

    def measure(rate: float, seed: int) -> StepResult:
        nonlocal calls
        calls += 1
        return StepResult(met=rate <= 50, p99_s=0.0, client_saturated=calls == 2)

    found = find_slo_rate(measure, low=10.0, high=100.0, steps=8, seeds=[1])
    assert found.median == pytest.approx(50, rel=0.02)
    assert len(found.trace) == calls == 9


@pytest.mark.parametrize("bad", [{"low": 0.0}, {"low": 200.0}, {"steps": 0}, {"seeds": []}])
def test_a_bad_search_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        find_slo_rate(server(1.0), **({"low": 10.0, "high": 100.0} | bad))  # type: ignore[arg-type]


def test_a_prompt_client_is_believed_both_ways() -> None:
    assert judge(result_of([0.02] * 100), 0.05).met
    late = judge(result_of([0.2] * 100), 0.05)
    assert not late.met
    assert not late.client_saturated


def test_a_late_client_cannot_tell() -> None:
    """The bound is missed only by what the client itself was late."""
    judged = judge(result_of([0.055] * 100, wake_lag_s=0.01), 0.05)
    assert not judged.met
    assert judged.client_saturated
    assert judge(result_of([0.01] * 100, wake_lag_s=0.002), 0.05).client_saturated


def test_a_late_client_still_sees_a_server_that_failed() -> None:
    assert not judge(result_of([0.5] * 100, wake_lag_s=0.01), 0.05).client_saturated
    refused = judge(result_of([0.01] * 100, [503] * 100, wake_lag_s=0.01), 0.05)
    assert not refused.client_saturated
    assert not refused.met
    timed_out = judge(result_of([1.0] * 100, [TIMEOUT] * 100, wake_lag_s=0.01), 0.05)
    assert not timed_out.client_saturated
    assert judge(result_of([1.0] * 100, [TIMEOUT] * 100, wake_lag_s=0.6), 0.05).client_saturated


def test_a_client_short_of_cpu_never_blames_the_server() -> None:
    assert judge(result_of([5.0] * 100, cpu_share=0.99), 0.05).client_saturated


def test_waiting_for_a_busy_connection_is_the_servers_doing() -> None:
    result = result_of([2.0] * 100)
    result.send_lag_s[:] = 1.9  # written late, but looked at in time
    judged = judge(result, 0.05)
    assert not judged.met
    assert not judged.client_saturated


def test_poisson_steps_measure_a_real_server() -> None:
    with null_server() as (host, port):
        target = Target(host, port, [build_request("POST", "/", host, {}, b"x")])
        # Generous limits: this test is about the plumbing, on whatever machine it runs.
        measure = poisson_steps(target, bound_s=1.0, duration_s=0.5, warmup_s=0.1, lag_limit_s=5.0)
        found = find_slo_rate(measure, low=50.0, high=200.0, steps=1, seeds=[1])
    assert found.median in (100.0, 200.0)
    assert all(np.isfinite(step.result.p99_s) for step in found.trace)


def test_an_overloaded_server_fails_its_step_early_and_is_blamed(target_of: TargetOf) -> None:
    """0.1 s per answer over 2 connections is 20 req/s; the client is idle all the while."""
    measure = poisson_steps(
        target_of("/slow"), bound_s=0.25, duration_s=20.0, warmup_s=0.1, connections=2, timeout_s=1.0, lag_limit_s=0.2
    )
    judged = measure(200.0, 1)
    assert not judged.met
    assert not judged.client_saturated
    assert judged.p99_s == math.inf


def test_the_timeout_must_exceed_the_bound(target_of: TargetOf) -> None:
    with pytest.raises(ConfigError, match="timeout_s=1"):
        poisson_steps(target_of("/ok"), bound_s=0.5, timeout_s=1.0)
