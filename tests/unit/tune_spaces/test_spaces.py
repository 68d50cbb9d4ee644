"""The search space: every configuration once, what Optuna proposes and its inverse, refusals before a deployment."""

from __future__ import annotations

import math

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.control.prediction import FrontCost
from cluster.errors import ConfigError
from cluster.plans import Configuration
from cluster.profiles import Curve, Profile
from cluster.runtimes import RuntimeConfig, RuntimeName
from cluster.slo import AccuracyFloor, Budget, Slo
from cluster.stats import jeffreys
from cluster.variants import Accuracy, Difference, Precision, TensorSpec, Variant
from tune_spaces.spaces import SearchSpace, candidates, most_promising, ranking, search_space

MIB = 1 << 20


def variant(name: str, *accuracies: Accuracy, precision: Precision = "fp32") -> Variant:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
    return Variant(
        name=name, family=name, format="onnx", precision=precision, inputs=(spec,), outputs=(spec,),
        accuracies=accuracies,
    )  # fmt: skip


FP32, INT8 = variant("m/fp32"), variant("m/int8", precision="int8")


def curve(
    of: Variant, runtime: RuntimeConfig, *, batch_s: float = 0.001, row_s: float = 0.000_1,
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32), memory: int = MIB,
) -> Curve:  # fmt: skip
    """A batch of b rows takes batch_s + b row_s."""
    took = {size: batch_s + size * row_s for size in sizes}
    return Curve(
        tuple(
            Profile(
                variant_id=of.id, runtime=runtime, batch_size=size, latency_p50_s=s, latency_p50_interval_s=(s, s),
                latency_p90_s=s, latency_p99_s=s, repeats=10, throughput_rps=size / s, memory_bytes=memory,
                hardware_key="k", hardware={},
            )
            for size, s in took.items()
        )
    )  # fmt: skip


RUNTIMES: list[RuntimeName] = ["onnxruntime", "openvino"]
runtimes = st.builds(
    RuntimeConfig, name=st.sampled_from(RUNTIMES), threads=st.sampled_from([1, 2, 4]), streams=st.sampled_from([1, 2])
)


@st.composite
def spaces(draw: st.DrawFn) -> SearchSpace:
    """Of up to three variants, each on some runtimes, profiled up to some batch size."""
    variants = [variant(f"m/{k}") for k in range(draw(st.integers(1, 3)))]
    made = []
    for each in variants:
        for runtime in draw(st.lists(runtimes, min_size=1, max_size=4, unique=True)):
            largest = draw(st.integers(0, 12))
            made.append(curve(each, runtime, row_s=1e-6, sizes=tuple(1 << k for k in range(largest + 1))))
    return search_space(variants, made, Slo(), cores=draw(st.integers(1, 8)))


@settings(max_examples=60, deadline=None)
@given(spaces())
def test_all_configurations_are_there_once_and_within_what_was_profiled(space: SearchSpace) -> None:
    found = space.configurations()
    assert len(set(found)) == len(found) == len({c.key for c in found})
    for (variant_id, runtime), of in space.curves.items():
        mine = [c for c in found if (c.variant_id, c.runtime) == (variant_id, runtime)]
        assert {c.max_batch_size for c in mine} == {p.batch_size for p in of.points}
        for batch in (p.batch_size for p in of.points):
            queues = {c.max_queued_requests for c in mine if c.max_batch_size == batch}
            assert queues == {max(queue, batch) for queue in (64, 128, 256, 512, 1024)}
    for each in found:
        assert each.max_queued_requests >= each.max_batch_size, "a queue holds a batch"
        assert each.num_replicas == max(1, space.cores // each.runtime.cores)
        assert each.variant_name == space.names[each.variant_id]
        assert space.curve(each).runtime == each.runtime


@settings(max_examples=60, deadline=None)
@given(spaces(), st.data())
def test_parameters_are_what_suggest_makes_the_configuration_of(space: SearchSpace, data: st.DataObject) -> None:
    configuration = data.draw(st.sampled_from(space.configurations()))
    assert space.suggest(optuna.trial.FixedTrial(space.parameters(configuration))) == configuration


@settings(max_examples=15, deadline=None)
@given(spaces(), st.integers(0, 1000))
def test_whatever_optuna_asks_for_is_a_configuration_of_the_space_and_can_be_told_to_it_again(
    space: SearchSpace, seed: int
) -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    everything = set(space.configurations())
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    for _ in range(8):
        trial = study.ask()
        configuration = space.suggest(trial)
        assert configuration in everything
        # A study that goes on is told what was measured before, as a trial with these parameters.
        parameters = space.parameters(configuration)
        study.enqueue_trial(parameters)
        again = study.ask()
        assert space.suggest(again) == configuration
        assert again.params == parameters, "within every distribution: nothing was drawn anew"


def accuracy(runtime: str, drop: float, *, correct: int = 9500, total: int = 10_000, margin: float = 0.001) -> Accuracy:
    bounds = (-drop - margin, -drop + margin)
    difference = Difference(other_id="0" * 16, value=-drop, interval=bounds, bounds=bounds, worst_class_drop=0.0)
    return Accuracy(
        value=correct / total, correct=correct, total=total, interval=jeffreys(correct, total), dataset="d",
        runtime=runtime, to_parent=difference, to_root=difference,
    )  # fmt: skip


def test_a_variant_may_be_served_in_the_very_runtimes_in_which_it_holds_its_floor() -> None:
    fp32 = variant("m/fp32", accuracy("onnxruntime", 0.0), accuracy("openvino", 0.0))
    int8 = variant("m/int8", accuracy("onnxruntime", 0.02), accuracy("openvino", 0.001), precision="int8")
    bf16 = variant("m/bf16", accuracy("openvino", 0.0), precision="bf16")
    unsure = variant("m/unsure", accuracy("onnxruntime", 0.0, margin=0.01))
    allowed, left_out = candidates(
        [fp32, int8, bf16, unsure], Slo(accuracy=AccuracyFloor(max_drop=0.005)),
        pays=lambda runtime, precision: precision != "bf16",
    )  # fmt: skip
    assert allowed == [(fp32, "onnxruntime"), (fp32, "openvino"), (int8, "openvino")]
    told = dict(left_out)
    assert list(told) == ["m/int8 on onnxruntime", "m/bf16 on openvino", "m/unsure on onnxruntime"]
    assert told["m/int8 on onnxruntime"].startswith("accuracy 0.9500: fails (at most 0.5")
    assert told["m/bf16 on openvino"] == "openvino gains nothing from bf16 on this machine"
    assert "unclear" in told["m/unsure on onnxruntime"]


def test_an_absolute_floor_is_judged_on_the_count() -> None:
    low = variant("m/low", accuracy("onnxruntime", 0.0, correct=9000))
    high = variant("m/high", accuracy("onnxruntime", 0.0, correct=9900))
    allowed, left_out = candidates([low, high], Slo(accuracy=AccuracyFloor(minimum=0.95)), pays=lambda *_: True)
    assert allowed == [(high, "onnxruntime")]
    assert [what for what, _ in left_out] == ["m/low on onnxruntime"]


def test_an_error_is_judged_by_how_much_larger_it_is() -> None:
    def error(larger: float) -> Accuracy:
        bounds = (-larger - 0.01, -larger + 0.01)
        difference = Difference(other_id="0" * 16, value=-larger, interval=bounds, bounds=bounds, relative=True)
        return Accuracy(
            metric="mse", higher_is_better=False, value=0.4, total=100, interval=(0.3, 0.5), bounds=(0.31, 0.49),
            dataset="d", runtime="onnxruntime", to_root=difference,
        )  # fmt: skip

    good, bad = variant("m/good", error(0.02)), variant("m/bad", error(0.08))
    allowed, left_out = candidates([good, bad], Slo(), pays=lambda *_: True)
    assert allowed == [(good, "onnxruntime")]
    assert left_out == [
        ("m/bad on onnxruntime", "mse 0.4: fails (at most 5% above the trained model's error)")
    ]  # fmt: skip


def test_if_nothing_holds_its_floor_that_is_said_with_the_reasons() -> None:
    bad = variant("m/int8", accuracy("onnxruntime", 0.05))
    with pytest.raises(ConfigError, match=r"no variant holds its accuracy floor \(m/int8 on onnxruntime: .*fails"):
        candidates([bad], Slo(), pays=lambda *_: True)
    with pytest.raises(ConfigError, match=r"no variant was measured\); train longer, or lower the floor"):
        candidates([variant("m/none")], Slo(), pays=lambda *_: True)


ONE, TWO = RuntimeConfig(), RuntimeConfig(name="openvino", threads=2)


def test_what_is_too_slow_or_too_large_by_itself_is_left_out_with_the_reason() -> None:
    slow, fits = curve(FP32, TWO, batch_s=0.060), curve(INT8, ONE)
    large = curve(FP32, ONE, memory=100 * MIB)
    slo = Slo(latency_p99_ms=50, budget=Budget(memory_mib=399))
    space = search_space([FP32, INT8], [slow, fits, large], slo, cores=4, left_out=[("m/x on torch", "too old")])
    assert list(space.curves) == [(INT8.id, ONE)]
    assert space.left_out == (
        ("m/x on torch", "too old"),
        ("m/fp32 on openvino 1x2", "one sample alone takes 60.1 ms"),
        ("m/fp32 on onnxruntime", "4 replicas need 400 MiB"),
    )
    enough = slo.model_copy(update={"budget": Budget(memory_mib=400)})
    assert (FP32.id, ONE) in search_space([FP32], [large], enough, cores=4).curves


def test_if_nothing_can_answer_in_time_that_is_said_before_anything_is_deployed() -> None:
    with pytest.raises(ConfigError, match=r"nothing can answer within 5 ms and the budget \(m/fp32 on onnxruntime: on"):
        search_space([FP32], [curve(FP32, ONE, batch_s=0.010)], Slo(latency_p99_ms=5), cores=1)


def test_a_rate_beyond_the_fastest_graph_alone_is_refused_with_what_it_computes() -> None:
    slow, fast = curve(FP32, TWO), curve(INT8, ONE)  # 32 rows in 4.2 ms: 7,619/s on each core
    slo = Slo(rate_rps=16_000)
    with pytest.raises(ConfigError, match=r"16,000 req/s are out of reach: .* m/int8 on onnxruntime, computes 15,238"):
        search_space([FP32, INT8], [slow, fast], slo, cores=2)
    assert search_space([FP32, INT8], [slow, fast], slo, cores=3).cores == 3


def test_the_space_reaches_to_the_largest_batch_of_any_curve() -> None:
    space = search_space([FP32, INT8], [curve(FP32, ONE, sizes=(1, 2)), curve(INT8, ONE)], Slo(), cores=2)
    assert (space.batch_exponents, space.queue_exponents) == ((0, 5), (6, 10))
    assert len(space.configurations()) == (2 + 6) * 5
    beyond = {"variant": FP32.id, f"runtime of {FP32.id}": "onnxruntime", "log2 max_batch_size": 5,
              "log2 max_queued_requests": 6}  # fmt: skip
    assert space.suggest(optuna.trial.FixedTrial(beyond)).max_batch_size == 2, "a larger one was never profiled"


@pytest.fixture
def space() -> SearchSpace:
    made = [curve(FP32, ONE, row_s=0.001), curve(INT8, ONE), curve(INT8, TWO, batch_s=0.0005)]
    return search_space([FP32, INT8], made, Slo(), cores=2)


@pytest.mark.parametrize("objective", ["max_rate", "min_latency", "min_cost"])
def test_the_ranking_follows_the_objective(space: SearchSpace, objective: str) -> None:
    slo = Slo(objective=objective, rate_rps=300)  # type: ignore[arg-type]
    ranked = ranking(space, slo)
    assert {c for c, _ in ranked} == set(space.configurations())
    late = [p.latency_p99_s is None or p.latency_p99_s > slo.latency_p99_s for _, p in ranked]
    assert late == sorted(late), "what is late at the load asked for comes last"
    in_time = [p for (_, p), is_late in zip(ranked, late, strict=True) if not is_late]
    figures = {
        "max_rate": [-p.slo_rate_rps for p in in_time],
        "min_latency": [p.latency_p99_s or math.inf for p in in_time],
        "min_cost": [p.core_s_per_million for p in in_time],
    }[objective]
    assert len(set(figures)) > 3
    assert figures == sorted(figures)


def test_of_configurations_that_differ_in_their_queue_the_one_that_fits_the_bound_comes_first(
    space: SearchSpace
) -> None:
    ranked = ranking(space, Slo())
    for configuration, prediction in ranked:
        alike = [c for c, _ in ranked if c.model_copy(update={"max_queued_requests": 1})
                 == configuration.model_copy(update={"max_queued_requests": 1})]  # fmt: skip
        fitting = prediction.capacity_rps * 0.050
        off = [abs(c.max_queued_requests - fitting) for c in alike]
        assert off == sorted(off)


def test_costlier_requests_promise_less(space: SearchSpace) -> None:
    cheap, costly = (ranking(space, Slo(), FrontCost(per_request_s=cost))[0][1] for cost in (0.000_1, 0.002))
    assert cheap.slo_rate_rps > 2 * costly.slo_rate_rps


def test_the_most_promising_are_the_best_of_each_runtime_in_turn(space: SearchSpace) -> None:
    ranked = ranking(space, Slo())
    first = most_promising(ranked, 6)
    kinds = [(c.variant_id, c.runtime) for c in first]
    assert first[0] == ranked[0][0]
    assert len(set(kinds[:3])) == 3
    assert kinds[3:] == kinds[:3]
    for kind in set(kinds):
        best = [c for c, _ in ranked if (c.variant_id, c.runtime) == kind]
        mine = [c for c in first if (c.variant_id, c.runtime) == kind]
        assert mine[0] == best[0]
        assert mine[1] == next(c for c in best if c.max_batch_size != mine[0].max_batch_size)
    everything: list[Configuration] = most_promising(ranked, 1000)
    assert len(everything) == 3 * 6, "each batch size once, with its best queue"
    assert most_promising(ranked, 0) == most_promising([], 3) == []
