"""Predictions rank: what is worse for a deployment never predicts better, and a known cost is found again."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from cluster.control.prediction import FrontCost, Prediction, calibrated, predict
from cluster.plans import Configuration
from cluster.profiles import Curve
from cluster.runtimes.base import RuntimeConfig
from tests.unit.cluster.test_profiles import curve

BOUND_S = 0.05
ABOUT = 1 + 1e-9
"""Rounding."""


def configuration(cap: int, **fields: Any) -> Configuration:
    usual = {"variant_id": "0" * 16, "variant_name": "cnn/fp32", "runtime": RuntimeConfig(), "max_batch_size": cap}
    return Configuration.model_validate(usual | fields)


def linear(fixed_s: float, per_row_s: float, sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128)) -> Curve:
    """A batch of b takes fixed + b * per_row: the usual shape, whose throughput grows with the batch."""
    return curve({b: b / (fixed_s + b * per_row_s) for b in sizes})


curves = st.builds(linear, st.floats(1e-5, 0.01), st.floats(1e-6, 0.002))
fronts = st.builds(FrontCost, per_request_s=st.floats(1e-5, 0.002), per_batch_s=st.floats(1e-5, 0.005))
shapes = st.builds(RuntimeConfig, name=st.just("onnxruntime"), threads=st.integers(1, 4), streams=st.integers(1, 2))
deployed = st.builds(
    configuration, st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128]), runtime=shapes, num_replicas=st.integers(1, 3)
)
cores_of = st.integers(1, 16)


def of(
    configuration: Configuration, made: Curve, cores: int, front: FrontCost, rate: float | None = None,
    bound_s: float = BOUND_S,
) -> Prediction:  # fmt: skip
    return predict(configuration, made, cores=cores, bound_s=bound_s, rate=rate, front=front)


# By hand


def test_one_core_by_hand() -> None:
    """One core does all: a batch of 8 keeps it for 2 ms (graph) + 1 ms (batch) + 8 * 0.5 ms (requests) = 7 ms."""
    made = curve({1: 1 / 0.001, 8: 8 / 0.002})
    found = of(configuration(8), made, 1, FrontCost(per_request_s=0.0005, per_batch_s=0.001))
    assert found.capacity_rps == pytest.approx(8 / 0.007)
    assert found.core_s_per_million == pytest.approx(1e6 * 0.007 / 8)
    assert found.memory_bytes == 1 << 20
    assert found.latency_p99_s is None


def test_two_cores_by_hand() -> None:
    """The loop has a core of its own: 8 rows take max(3 ms, 4 ms)."""
    made = curve({1: 1 / 0.001, 8: 8 / 0.002})
    found = of(configuration(8), made, 2, FrontCost(per_request_s=0.0005, per_batch_s=0.001))
    assert found.capacity_rps == pytest.approx(8 / 0.004)
    assert found.core_s_per_million == pytest.approx(1e6 * 0.007 / 8)


def test_replicas_share_cores_that_are_too_few_for_all() -> None:
    made = curve({1: 1 / 0.001, 8: 8 / 0.002})
    front = FrontCost(per_request_s=0.0005, per_batch_s=0.001)
    found = of(configuration(8, num_replicas=3), made, 2, front)
    assert found.capacity_rps == pytest.approx(2 * 8 / 0.007), "two cores do no more than two cores' work"
    assert found.memory_bytes == 3 << 20
    assert of(configuration(8, num_replicas=2), made, 4, front).capacity_rps == pytest.approx(2 * 8 / 0.004)


def test_at_a_trickle_a_request_waits_for_nobody() -> None:
    """It is one batch of its own, with some room for company: between T(1) and T(4) and a bit."""
    made = linear(0.002, 0.0001)
    front = FrontCost(per_request_s=0.0002, per_batch_s=0.001)
    found = of(configuration(32), made, 1, front, rate=1e-6)
    assert found.latency_p99_s is not None
    assert 0.0033 <= found.latency_p99_s <= 0.0044 + 0.0001


# Properties


@given(one=deployed, made=curves, cores=cores_of, front=fronts, shares=st.tuples(st.floats(0, 1.5), st.floats(0, 1.5)))
def test_latency_grows_with_the_rate_and_without_end_at_capacity(
    one: Configuration, made: Curve, cores: int, front: FrontCost, shares: tuple[float, float]
) -> None:
    capacity = of(one, made, cores, front).capacity_rps
    low, high = sorted(shares)
    slow, fast = (of(one, made, cores, front, rate=share * capacity).latency_p99_s for share in (low, high))
    assert slow is not None
    assert fast is not None
    assert slow <= fast * ABOUT
    assert math.isinf(fast) == (high >= 1) or abs(high - 1) < 1e-9
    assert slow >= made.seconds(1)


@given(runtime=shapes, made=curves, cores=cores_of, front=fronts, replicas=st.integers(1, 3))
def test_capacity_grows_with_the_cap_where_the_curve_grows(
    runtime: RuntimeConfig, made: Curve, cores: int, front: FrontCost, replicas: int
) -> None:
    caps = [1, 2, 4, 8, 16, 32, 64, 128]
    found = [of(configuration(cap, runtime=runtime, num_replicas=replicas), made, cores, front) for cap in caps]
    for smaller, larger in itertools.pairwise(found):
        assert smaller.capacity_rps <= larger.capacity_rps * ABOUT
        assert smaller.core_s_per_million * ABOUT >= larger.core_s_per_million


@given(one=deployed, made=curves, cores=cores_of, front=fronts, bound_s=st.floats(1e-4, 1.0))
def test_the_slo_rate_lies_below_capacity_and_is_where_the_bound_is_reached(
    one: Configuration, made: Curve, cores: int, front: FrontCost, bound_s: float
) -> None:
    found = of(one, made, cores, front, bound_s=bound_s)
    assert 0 <= found.slo_rate_rps < found.capacity_rps
    if found.slo_rate_rps > 0:
        at = of(one, made, cores, front, rate=found.slo_rate_rps).latency_p99_s
        assert at is not None
        assert at <= bound_s * ABOUT
    beyond = found.slo_rate_rps + 1e-6 * found.capacity_rps
    above = of(one, made, cores, front, rate=beyond).latency_p99_s
    assert above is not None
    assert above > bound_s


@given(
    one=deployed, made=curves, cores=cores_of, front=fronts,
    bounds=st.tuples(st.floats(1e-4, 1.0), st.floats(1e-4, 1.0)),
)  # fmt: skip
def test_a_longer_bound_never_lowers_the_slo_rate(
    one: Configuration, made: Curve, cores: int, front: FrontCost, bounds: tuple[float, float]
) -> None:
    strict, lenient = (of(one, made, cores, front, bound_s=bound).slo_rate_rps for bound in sorted(bounds))
    assert strict <= lenient * ABOUT + 1e-9


@given(one=deployed, made=curves, cores=cores_of, front=fronts, times=st.floats(1, 10))
def test_a_slower_graph_or_a_dearer_front_never_raises_capacity(
    one: Configuration, made: Curve, cores: int, front: FrontCost, times: float
) -> None:
    usual = of(one, made, cores, front)
    slower = curve({p.batch_size: p.throughput_rps / times for p in made.points})
    dearer = FrontCost(front.per_request_s * times, front.per_batch_s * times)
    for worse in (of(one, slower, cores, front), of(one, made, cores, dearer)):
        assert worse.capacity_rps <= usual.capacity_rps * ABOUT
        assert worse.core_s_per_million * ABOUT >= usual.core_s_per_million


@given(one=deployed, made=curves, cores=cores_of, front=fronts)
def test_no_deployment_does_more_work_than_its_cores(
    one: Configuration, made: Curve, cores: int, front: FrontCost
) -> None:
    found = of(one, made, cores, front)
    assert found.capacity_rps * found.core_s_per_million / 1e6 <= cores * ABOUT
    more = of(one, made, cores + 1, front)
    assert more.capacity_rps * ABOUT >= found.capacity_rps


# Calibration


@given(
    ones=st.lists(deployed, min_size=1, max_size=5), made=curves, cores=cores_of, front=fronts,
    connections=st.sampled_from([16, 64, 256]),
)  # fmt: skip
def test_a_known_cost_of_a_request_is_found_again(
    ones: list[Configuration], made: Curve, cores: int, front: FrontCost, connections: int
) -> None:
    """From the maxima that it predicts itself, wherever the front had a part in them."""
    measured = []
    for one in ones:
        cap = min(one.max_batch_size, max(1, connections // one.num_replicas))
        reached = one.model_copy(update={"max_batch_size": cap})  # a batch never holds more than there are connections
        most = of(reached, made, cores, front).capacity_rps
        dearer = of(reached, made, cores, FrontCost(front.per_request_s * 1.001, front.per_batch_s)).capacity_rps
        assume(dearer < most * (1 - 1e-7))  # else the executor alone decides, and says nothing of the front
        measured.append((one, made, most))
    start = FrontCost(per_request_s=7.0, per_batch_s=front.per_batch_s)
    found = calibrated(measured, cores=cores, front=start, connections=connections)
    assert found.per_request_s == pytest.approx(front.per_request_s, rel=1e-6)
    assert found.per_batch_s == front.per_batch_s


def test_one_disturbed_trial_decides_nothing() -> None:
    made, front = linear(0.001, 0.0001), FrontCost(per_request_s=0.0003)
    rates = [of(configuration(cap), made, 1, front).capacity_rps for cap in (4, 8, 16)]
    for disturbed in (0.2, 5.0):
        measured = [(configuration(cap), made, rate) for cap, rate in zip((4, 8, 16), rates, strict=True)]
        measured[1] = (measured[1][0], made, rates[1] * disturbed)
        measured.append((configuration(32), made, of(configuration(32), made, 1, front).capacity_rps))
        assert calibrated(measured, cores=1).per_request_s == pytest.approx(0.0003)


@pytest.mark.parametrize(
    "measured",
    [
        [],
        [(configuration(8), linear(0.001, 0.0001), 0.0)],  # answered nothing
        [(configuration(8), linear(0.001, 0.0001), 1e9)],  # faster than the graph alone
    ],
)
def test_what_explains_nothing_changes_nothing(measured: list[tuple[Configuration, Curve, float]]) -> None:
    usual = FrontCost(per_request_s=0.5, per_batch_s=0.25)
    assert calibrated(measured, cores=1, front=usual) == usual
    assert calibrated(measured, cores=2) == FrontCost()


def test_a_loop_that_its_executor_hides_changes_nothing() -> None:
    """Two cores, and the graph takes longer than all requests: no maximum tells what they cost."""
    made, front = linear(0.010, 0.001), FrontCost(per_request_s=0.0001)
    measured = [(configuration(cap), made, of(configuration(cap), made, 2, front).capacity_rps) for cap in (4, 16)]
    assert calibrated(measured, cores=2, front=front) == front
