"""Profiles: repeats until narrow, in a process of its own, kept by content and hardware, one failing job left out."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from cluster.artifacts import ArtifactStore
from cluster.errors import InferenceFailed
from cluster.hardware import profile_key
from cluster.profiles import Profile, curves
from cluster.runtimes import RuntimeConfig, runtimes_for
from cluster.variants import TensorSpec, Variant
from tests.unit.serve_apps.graphs import linear, stuck
from tune_spaces import profiler
from tune_spaces.profiler import median_interval, profile, profile_store, runtime_configs, time_batches


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


@pytest.fixture(autouse=True)
def started(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The processes that were started to measure."""
    commands: list[list[str]] = []
    true_run = subprocess.run

    def run(command: list[str], **options: Any) -> Any:
        commands.append(command)
        return true_run(command, **options)

    monkeypatch.setattr(profiler.subprocess, "run", run)
    return commands


def test_repeats_at_least_ten_times_even_without_budget() -> None:
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1

    took = time_batches(run, budget_s=0.0)
    assert len(took) == 10
    assert calls == 13, "three warm-up calls are not counted"


def test_it_stops_as_soon_as_the_interval_is_narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that every batch moves by the same step, whatever the machine does."""
    now = 0.0

    def clock() -> float:
        return now

    def steady() -> None:
        nonlocal now
        now += 0.001

    monkeypatch.setattr(profiler.time, "perf_counter", clock)
    assert len(time_batches(steady, budget_s=60.0)) == 30
    steps = iter([0.001, 0.1] * 1000)

    def wild() -> None:
        nonlocal now
        now += next(steps)

    assert time_batches(wild, budget_s=6.0).sum() >= 5.9, "never narrow: the budget is spent"


def test_a_failing_batch_is_not_swallowed() -> None:
    def run() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        time_batches(run, budget_s=0.0)


@given(st.lists(st.floats(0.001, 1.0), min_size=10, max_size=200))
def test_the_interval_holds_the_median(sample: list[float]) -> None:
    values = np.asarray(sample)
    low, high = median_interval(values)
    assert low <= np.median(values) <= high
    assert {low, high} <= set(sample), "order statistics"


def test_the_interval_covers_the_true_median_in_95_of_100_samples() -> None:
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(2000):
        low, high = median_interval(rng.exponential(size=60))
        held += low <= np.log(2) <= high
    assert held / 2000 > 0.94


def test_runtime_configs_are_powers_of_two_within_the_cores(store: ArtifactStore) -> None:
    variant = linear(store)
    configs = runtime_configs(variant, cores=6)
    shapes = [(c.threads, c.streams) for c in configs if c.name == "onnxruntime"]
    assert sorted(shapes) == [(1, 1), (1, 2), (1, 4), (2, 1), (2, 2), (4, 1)]
    assert {c.name for c in configs} == set(runtimes_for("onnx"))
    assert len(configs) == len(shapes) * len(runtimes_for("onnx"))
    assert [(c.name, c.cores) for c in runtime_configs(variant)] == [(name, 1) for name in runtimes_for("onnx")]


def test_a_job_s_profiles_tell_what_was_measured_where(store: ArtifactStore, started: list[list[str]]) -> None:
    variant, config = linear(store), RuntimeConfig(streams=2)
    cpu = min(os.sched_getaffinity(0))
    made = profile(store, [(variant, config)], batch_sizes=(4, 1), cpus=[cpu])
    assert len(started) == 1, "a process for the job"
    assert [p.batch_size for p in made] == [1, 4]
    for each in made:
        assert (each.variant_id, each.runtime) == (variant.id, config)
        low, high = each.latency_p50_interval_s
        assert 0 < low <= each.latency_p50_s <= high
        assert each.latency_p50_s <= each.latency_p90_s <= each.latency_p99_s
        assert each.throughput_rps == pytest.approx(each.batch_size / each.latency_p50_s)
        assert each.repeats >= 10
        assert each.hardware["cores_usable"] == 1, "the process was pinned"
        assert each.memory_bytes > 1 << 20, "the runtime's library and the graph"


def test_what_is_known_is_not_measured_again(store: ArtifactStore, started: list[list[str]]) -> None:
    variant, config = linear(store), RuntimeConfig()
    told: list[str] = []
    first = profile(store, [(variant, config)], batch_sizes=(1, 2))
    again = profile(store, [(variant, config)], batch_sizes=(2, 1), on_progress=told.append)
    assert (again, len(started)) == (first, 1)
    assert told == [f"{variant.name} on onnxruntime (1/1): known"]
    profile(store, [(variant, config)], batch_sizes=(1,))
    assert len(started) == 1, "a part of what is known is known"
    profile(store, [(variant, config)], batch_sizes=(1, 2, 4))
    assert len(started) == 2, "one batch size is new"
    profile(store, [(variant, config)], batch_sizes=(1, 2), fresh=True)
    assert len(started) == 3
    profile(store, [(linear(store, scale=2.0), config)], batch_sizes=(1, 2))
    assert len(started) == 4, "another graph"
    profile(store, [(variant, RuntimeConfig(threads=2))], batch_sizes=(1, 2))
    assert len(started) == 5, "another runtime config"


def test_on_fewer_cores_it_is_another_machine(store: ArtifactStore, started: list[list[str]]) -> None:
    variant, config = linear(store), RuntimeConfig()
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 2:
        pytest.skip("one core: there are not two sets of cores to tell apart")
    (one,) = profile(store, [(variant, config)], batch_sizes=(1,), cpus=usable[:1])
    (two,) = profile(store, [(variant, config)], batch_sizes=(1,), cpus=usable[:2])
    assert len(started) == 2
    assert one.hardware_key != two.hardware_key
    kept = profile_store(store)
    for each in (one, two):
        assert kept.get(variant.id, config, 1, each.hardware_key) == each
    assert sorted(os.sched_getaffinity(0)) == usable, "this process stays where it was"
    assert profile(store, [(variant, config)], batch_sizes=(1,), cpus=usable[-1:])[0].hardware_key == one.hardware_key
    assert len(started) == 2, "which core it is does not count"


def test_after_a_batch_that_took_too_long_larger_ones_are_left_out_and_stay_known(
    store: ArtifactStore, started: list[list[str]]
) -> None:
    job = (linear(store), RuntimeConfig())
    for _ in range(2):
        made = profile(store, [job], batch_sizes=(1, 2, 4), longest_s=0.0)
        assert [p.batch_size for p in made] == [1]
    assert len(started) == 1
    assert len(profile(store, [job], batch_sizes=(1, 2, 4))) == 3, "with more patience the larger ones are measured"
    assert len(started) == 2


def test_one_failing_job_is_left_out_and_the_rest_goes_on(store: ArtifactStore) -> None:
    told: list[str] = []
    bad, good = stuck(store), linear(store)
    config = RuntimeConfig()
    made = profile(store, [(bad, config), (good, config)], batch_sizes=(1,), on_progress=told.append)
    assert [p.variant_id for p in made] == [good.id]
    (why,) = [line for line in told if line.startswith("left out: ")]
    assert "profiling stuck/five on onnxruntime in a process of its own ended with code 1: " in why
    assert "InferenceFailed: ONNX Runtime failed" in why
    assert told[0] == "stuck/five on onnxruntime (1/2)"


def test_if_all_fail_the_last_words_are_raised(store: ArtifactStore) -> None:
    with pytest.raises(InferenceFailed, match=r"profiling stuck/five .* ended with code 1: .*ONNX Runtime failed"):
        profile(store, [(stuck(store), RuntimeConfig())], batch_sizes=(1,))
    assert profile(store, []) == []


def test_every_runtime_of_a_variant_is_measured(store: ArtifactStore) -> None:
    variant = linear(store)
    jobs = [(variant, config) for config in runtime_configs(variant)]
    found = curves(profile(store, jobs, batch_sizes=(1, 8)))
    assert [curve.runtime.name for curve in found] == runtimes_for("onnx")
    for curve in found:
        assert [p.batch_size for p in curve.points] == [1, 8]
        assert curve.points[0].hardware_key == profile_key(curve.runtime.name), "as this process would be asked"


def test_free_dimensions_beside_the_batch_are_measured_at_their_smallest(store: ArtifactStore) -> None:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, -1))
    known = linear(store, width=1)
    free = Variant(
        name="linear/free", family="linear", format="onnx", inputs=(spec,),
        outputs=(spec.model_copy(update={"name": "y"}),),
    )  # fmt: skip
    stored = store.put(free, {"model.onnx": store.read(known, "model.onnx")})
    (made,) = profile(store, [(stored, RuntimeConfig())], batch_sizes=(2,))
    assert isinstance(made, Profile)
    assert made.batch_size == 2


def places(store: ArtifactStore) -> Variant:
    """Looks its numbers up in a table of ten, and fails for any other."""
    table = numpy_helper.from_array(np.arange(10, dtype=np.float32), "table")
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", "x"], ["y"])], "places",
        [helper.make_tensor_value_info("x", TensorProto.INT64, [None, 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 2])], [table],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    inputs, outputs = (
        (TensorSpec(name=name, datatype=datatype, shape=(-1, 2)),) for name, datatype in (("x", "INT64"), ("y", "FP32"))
    )
    variant = Variant(name="m/places", family="test", format="onnx", precision="fp32", inputs=inputs, outputs=outputs)
    return store.put(variant, {"model.onnx": model.SerializeToString()})


def test_real_samples_are_measured_where_there_are_some(store: ArtifactStore) -> None:
    jobs = [(places(store), RuntimeConfig(name="onnxruntime"))]
    samples = np.arange(6, dtype=np.int64).reshape(3, 2)
    assert len(profile(store, jobs, batch_sizes=[1, 4], samples=samples, fresh=True)) == 2
    with pytest.raises(InferenceFailed):
        profile(store, jobs, batch_sizes=[1, 4], fresh=True)
    with pytest.raises(InferenceFailed):
        profile(store, jobs, batch_sizes=[1], samples=samples.astype(np.int32), fresh=True)


def test_batches_follow_one_another_and_begin_anew(store: ArtifactStore) -> None:
    samples = np.arange(10, dtype=np.int64).reshape(5, 2)
    first, second, third, *_ = (batch["x"][:, 0].tolist() for batch in profiler._batches(places(store), 3, samples))
    assert (first, second, third) == ([0, 2, 4], [6, 8, 0], [2, 4, 6])


@pytest.mark.parametrize(
    ("shape", "kind", "expected"),
    [((3, 2), np.int64, True), ((0, 2), np.int64, False), ((3, 4), np.int64, False), ((3, 2), np.int32, False),
     ((3,), np.int64, False)],
)  # fmt: skip
def test_only_samples_of_the_input_s_shape_and_kind_are_taken(
    store: ArtifactStore, shape: tuple[int, ...], kind: type, expected: bool
) -> None:
    assert profiler.takes(places(store), np.zeros(shape, kind)) == expected
