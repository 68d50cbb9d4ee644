"""The plan: only variants whose floor holds, the fastest of them, at the batch that serves most and is soon done."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.control.planner import choose, eligible
from cluster.errors import ConfigError
from cluster.profiles import Profile
from cluster.runtimes import RuntimeConfig
from cluster.variants import Accuracy, ArtifactFile, TensorSpec, Variant, Verdict

STORE = Path("/models")
HERE = {"cpu": "this one"}


def variant(name: str, verdict: Verdict | None = None, *, parent: Variant | None = None, size: int = 100,
            measured: bool = True) -> Variant:  # fmt: skip
    accuracy = Accuracy(value=0.9, correct=9, total=10, interval=(0.6, 0.99), dataset="digits", runtime="onnxruntime",
                        verdict=verdict)  # fmt: skip
    return Variant(
        name=name, family=name, format="onnx", parent_id=parent.id if parent else None,
        files=(ArtifactFile(path="model.onnx", sha256="0" * 64, size_bytes=size),),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1,)),), outputs=(),
        accuracy=accuracy if measured else None,
    )  # fmt: skip


def profile(of: Variant, batch_size: int, throughput_rps: float, *, hardware: dict[str, Any] = HERE,
            runtime: RuntimeConfig = RuntimeConfig()) -> Profile:  # noqa: B008 (frozen)
    return Profile(
        variant_id=of.id, runtime=runtime, batch_size=batch_size, latency_p50_s=batch_size / throughput_rps,
        latency_p99_s=2 * batch_size / throughput_rps, throughput_rps=throughput_rps, memory_bytes=1, hardware=hardware,
    )  # fmt: skip


ROOT = variant("root")


@pytest.mark.parametrize(
    ("verdict", "with_parent", "allowed"),
    [
        ("holds", True, True),
        ("fails", True, False),
        ("unclear", True, False),
        (None, True, False),
        (None, False, True),
        ("holds", False, True),
        ("fails", False, False),
        ("unclear", False, False),
    ],
)
def test_who_is_eligible(verdict: Verdict | None, with_parent: bool, allowed: bool) -> None:
    one = variant("one", verdict, parent=ROOT if with_parent else None)
    assert eligible([one]) == ([one] if allowed else [])


def test_what_was_never_measured_is_not_eligible() -> None:
    assert eligible([variant("one", measured=False)]) == []


def test_a_child_of_a_fallen_parent_is_not_eligible() -> None:
    fallen = variant("fallen", "fails", parent=ROOT)
    child = variant("child", "holds", parent=fallen)
    grandchild = variant("grandchild", "holds", parent=child)
    assert eligible([grandchild, child, fallen, ROOT]) == [ROOT]


@given(
    verdicts=st.lists(st.sampled_from(["holds", "fails", "unclear"]), min_size=1, max_size=5),
    speeds=st.lists(st.floats(1, 1e6), min_size=5, max_size=5),
)
def test_the_plan_is_always_the_fastest_of_those_that_hold(verdicts: list[Verdict], speeds: list[float]) -> None:
    made = [variant(f"v{number}", verdict, parent=ROOT) for number, verdict in enumerate(verdicts)]
    profiles = [profile(one, 8, speed) for one, speed in zip(made, speeds, strict=False)]
    fit = {one.id: speed for one, speed, verdict in zip(made, speeds, verdicts, strict=False) if verdict == "holds"}
    if not fit:
        with pytest.raises(ConfigError, match="train longer"):
            choose(made, profiles, model_name="m", store=STORE)
        return
    plan = choose(made, profiles, model_name="m", store=STORE)
    assert plan.variant_id in fit
    assert fit[plan.variant_id] == max(fit.values())
    assert plan.predicted["kernel_throughput_rps"] == max(fit.values())


def test_the_cap_counts_what_a_batch_costs_outside_the_graph() -> None:
    """The kernel alone is best at 16; with a millisecond a batch on top, more is served in larger ones."""
    speeds = {1: 24_000.0, 8: 46_000.0, 16: 46_600.0, 32: 40_800.0, 64: 40_500.0, 128: 40_100.0, 512: 40_000.0}
    profiles = [profile(ROOT, size, speed) for size, speed in speeds.items()]
    plan = choose([ROOT], profiles, model_name="m", store=STORE)
    assert plan.max_batch_size == 128, "512 take over 10 ms"
    assert plan.predicted["kernel_throughput_rps"] == 40_100.0


def test_where_every_batch_is_long_the_shortest_waits_least() -> None:
    speeds = {1: 10.0, 4: 96.0, 8: 100.0, 16: 99.0}
    plan = choose([ROOT], [profile(ROOT, size, rps) for size, rps in speeds.items()], model_name="m", store=STORE)
    assert plan.max_batch_size == 4


def test_a_good_batch_of_another_runtime_does_not_count() -> None:
    one, two = RuntimeConfig(threads=1), RuntimeConfig(threads=2)
    profiles = [profile(ROOT, 32, 1000.0, runtime=two), profile(ROOT, 2, 990.0, runtime=one)]
    plan = choose([ROOT], profiles, model_name="m", store=STORE)
    assert (plan.runtime, plan.max_batch_size, plan.num_cpus_per_replica) == (two, 32, 2.0)


def test_the_smaller_file_wins_a_tie() -> None:
    small, large = variant("small", "holds", parent=ROOT, size=10), variant("large", "holds", parent=ROOT, size=20)
    for order in itertools.permutations([small, large]):
        plan = choose(order, [profile(one, 8, 500.0) for one in order], model_name="m", store=STORE)
        assert plan.variant_name == "small"


@given(order=st.permutations(range(6)))
def test_the_order_of_the_measurements_decides_nothing(order: list[int]) -> None:
    twins = [variant("a", "holds", parent=ROOT), variant("b", "holds", parent=ROOT)]
    profiles = [profile(one, size, 500.0) for one in twins for size in (4, 8, 16)]
    plan = choose(twins, profiles, model_name="m", store=STORE)
    assert choose(twins[::-1], [profiles[i] for i in order], model_name="m", store=STORE) == plan


def test_what_the_plan_says_comes_from_the_measurements() -> None:
    plan = choose([ROOT], [profile(ROOT, 8, 500.0)], model_name="classifier", store=STORE, num_replicas=3)
    assert plan.model_name == "classifier"
    assert (plan.variant_id, plan.variant_name) == (ROOT.id, "root")
    assert (plan.store, plan.num_replicas) == ("/models", 3)


def test_a_variant_that_holds_but_was_not_profiled_is_named() -> None:
    other = variant("other", "fails", parent=ROOT)
    with pytest.raises(ConfigError, match=r"\['root'\].*profiles"):
        choose([ROOT, other], [profile(other, 8, 500.0)], model_name="m", store=STORE)


def test_profiles_of_several_machines_do_not_compare() -> None:
    profiles = [profile(ROOT, 8, 500.0), profile(ROOT, 16, 900.0, hardware={"cpu": "that one"})]
    with pytest.raises(ConfigError, match="several machines"):
        choose([ROOT], profiles, model_name="m", store=STORE)
