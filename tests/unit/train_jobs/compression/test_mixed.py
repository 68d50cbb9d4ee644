"""Mixed precision: the layers that int8 hurts most stay fp32, no more of them than the score asks for."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from pydantic import ValidationError

from cluster.errors import InvalidRequest
from cluster.runtimes import runtimes_for
from cluster.variants import TensorSpec
from tests.unit.train_jobs.compression.graphs import FAMILIES, chain, constants, decibels, normal, run
from train_jobs.compression.mixed import MixedConfig, fewest, mixed, noise
from train_jobs.compression.quantize import QuantizeConfig, quantize

SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 32))
X = normal(128, 32, seed=9)
LAYERS = ["first", "second", "third", "fourth"]


def stack() -> bytes:
    """Four dense layers; what comes into the third has an outlier that leaves its other inputs few levels."""
    weights = {name: normal(32, 32, seed=i) / 6 for i, name in enumerate(LAYERS)}
    weights["second"][:, 5] *= 300
    weights["third"][5] /= 300
    nodes, before = [], "x"
    for name in LAYERS:
        after = "y" if name == LAYERS[-1] else f"{name}.out"
        nodes.append(helper.make_node("Gemm", [before, name], [after], name=name))
        if after != "y":
            nodes.append(helper.make_node("Relu", [after], [f"{name}.relu"]))
            before = f"{name}.relu"
    return chain(*nodes, inputs=[32], **weights)


GRAPH = stack()


def fidelity(graph: bytes) -> float:
    """Decibels, at most 60: what a caller's score stands for here."""
    return min(60.0, decibels(run(GRAPH, X), run(graph, X)))


def in_int8(graph: bytes) -> set[str]:
    return {name.removesuffix("_quantized") for name, array in constants(graph).items()
            if array.dtype == np.int8 and array.ndim == 2}  # fmt: skip


def test_the_layers_that_hurt_most_stay_fp32_and_no_more_than_needed() -> None:
    asked: list[float] = []

    def score(graph: bytes) -> float:
        asked.append(fidelity(graph))
        return asked[-1]

    alone = fidelity(quantize(GRAPH, X, QuantizeConfig(), inputs=SPEC))
    wanted = alone + 8
    made, kept = mixed(GRAPH, X, MixedConfig(max_drop=60 - wanted), inputs=SPEC, score=score)
    assert fidelity(made) >= wanted
    assert kept[0] in ("second", "third"), "beside the outlier"
    assert 1 <= len(kept) <= 2
    assert in_int8(made) == set(LAYERS) - set(kept)
    assert len(asked) <= 2 + math.ceil(math.log2(3)) + 1
    fewer = quantize(GRAPH, X, QuantizeConfig(exclude=tuple(kept[:-1])), inputs=SPEC)
    assert fidelity(fewer) < wanted, "one less would not do"


def test_int8_alone_is_kept_where_it_is_good_enough() -> None:
    made, kept = mixed(GRAPH, X, MixedConfig(max_drop=60), inputs=SPEC, score=fidelity)
    assert kept == []
    assert made == quantize(GRAPH, X, QuantizeConfig(), inputs=SPEC)


def test_the_order_can_be_the_score_s_own() -> None:
    by_noise, by_score = (
        mixed(GRAPH, X, MixedConfig.model_validate({"max_drop": 34, "sensitivity": way}), inputs=SPEC, score=fidelity)
        for way in ("noise", "score")
    )
    assert by_noise == by_score, "this score is the noise"


@pytest.mark.parametrize("family", ["cnn", "autoencoder", "generator"])
def test_families_keep_their_answers_in_every_runtime(family: str) -> None:
    small = FAMILIES[family]()
    expected = small.run(small.graph)

    def score(graph: bytes) -> float:
        return min(80.0, decibels(expected, small.run(graph)))

    int8 = score(quantize(small.graph, small.samples, QuantizeConfig(), inputs=small.inputs))
    config = MixedConfig(max_drop=80 - int8 - 1.0)
    made, kept = mixed(small.graph, small.samples, config, inputs=small.inputs, score=score)
    assert kept
    for runtime in runtimes_for("onnx"):
        assert decibels(expected, small.run_in(runtime, made, precision="int8")) > 80 - config.max_drop - 3


def test_a_score_out_of_reach_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidRequest, match=r"of 60\.0000 \(max_drop=0\.0\): .* with 3 of 4 layers in fp32; raise"):
        mixed(GRAPH, X, MixedConfig(max_drop=0), inputs=SPEC, score=fidelity)
    with pytest.raises(InvalidRequest, match="with 1 of 4 layers in fp32"):
        mixed(GRAPH, X, MixedConfig(max_drop=0, max_layers=1), inputs=SPEC, score=fidelity)
    one = chain(helper.make_node("Gemm", ["x", "w"], ["y"]), inputs=[32], w=normal(32, 4))
    with pytest.raises(InvalidRequest, match="it has one layer alone; raise max_drop"):
        mixed(one, X, MixedConfig(max_drop=0), inputs=SPEC, score=lambda graph: float(graph == one))


def test_layers_that_the_config_excludes_are_not_weighed() -> None:
    config = MixedConfig(max_drop=30, quantize=QuantizeConfig(exclude=("third",)))
    made, kept = mixed(GRAPH, X, config, inputs=SPEC, score=fidelity)
    assert "third" not in kept
    assert "third" not in in_int8(made)


@given(st.integers(1, 200), st.integers(1, 250))
def test_the_fewest_that_are_enough_are_found_by_few_questions(most: int, needed: int) -> None:
    asked: list[int] = []

    def is_enough(count: int) -> bool:
        asked.append(count)
        return count >= needed

    assert fewest(is_enough, most) == (needed if needed <= most else None)
    assert len(asked) == len(set(asked)) <= 2 + math.log2(most)
    assert all(1 <= count <= most for count in asked)


@given(st.lists(st.booleans(), min_size=1, max_size=20))
def test_where_more_is_sometimes_worse_what_is_found_is_enough(enough: list[bool]) -> None:
    count = fewest(lambda count: enough[count - 1], len(enough))
    assert (count is None) == (not enough[-1])
    assert count is None or enough[count - 1]


def test_no_layers_may_stay_means_none_is_enough() -> None:
    assert fewest(lambda count: True, 0) is None


def test_noise_is_the_wrong_share_of_the_energy_averaged_over_the_outputs() -> None:
    want = [np.array([3.0, 4.0], np.float32), np.array([1.0], np.float32)]
    got = [np.array([3.0, 4.5], np.float32), np.array([1.2], np.float32)]
    assert noise(want, got) == pytest.approx((0.25 / 25 + 0.04) / 2, rel=1e-5)
    assert noise(want, want) == 0.0
    assert not math.isfinite(noise(want, [want[0], np.array([np.nan], np.float32)]))


@pytest.mark.parametrize("wrong", [{"max_drop": -0.1}, {"max_layers": 0}, {"sensitivity": "luck"}, {"drop": 1}])
def test_a_config_out_of_bounds_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        MixedConfig.model_validate(wrong)


def test_the_graph_stays_valid() -> None:
    made, _ = mixed(GRAPH, X, MixedConfig(max_drop=30), inputs=SPEC, score=fidelity)
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
