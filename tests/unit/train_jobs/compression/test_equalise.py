"""Equalisation: the same answers in fp32, and better ones in int8 where one channel outshone the others."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper
from pydantic import ValidationError

from cluster.errors import InvalidRequest
from cluster.runtimes import runtimes_for
from cluster.variants import TensorSpec
from tests.unit.train_jobs.compression.graphs import FAMILIES, Small, chain, constants, decibels, normal, operators, run
from train_jobs.compression.equalise import EqualiseConfig, equalise
from train_jobs.compression.quantize import QuantizeConfig, quantize

PAIRED = ["cnn", "autoencoder"]
BY = ["weights", "activations"]


def equalised(small: Small, by: str) -> bytes:
    return equalise(
        small.graph, EqualiseConfig.model_validate({"by": by}), samples=small.samples, inputs=small.inputs
    )


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("family", PAIRED)
def test_the_answers_stay(family: str, by: str) -> None:
    small = FAMILIES[family]()
    made = equalised(small, by)
    expected = small.run(small.graph)
    for runtime in runtimes_for("onnx"):
        got = small.run_in(runtime, made)
        for name, want in expected.items():
            np.testing.assert_allclose(got[name], want, rtol=1e-4, atol=1e-4 * np.abs(want).max())
    assert made != small.graph
    before, after = constants(small.graph), constants(made)
    moved = [name for name, array in before.items() if name in after and not np.array_equal(array, after[name])]
    assert len(moved) >= 4, "weights and biases of several layers"


def outlier(kind: str, *, factor: float = 100.0) -> bytes:
    """Two layers and a ReLU; what the first gives in its third channel is `factor` times as much as elsewhere, and the
    second reads it with as little."""
    second: dict[str, Any]
    if kind == "Conv":
        w, v = normal(8, 3, 3, 3), normal(4, 8, 3, 3, seed=1)
        inputs, axis, second = [3, 10, 10], 1, {}
    elif kind == "ConvTranspose":
        w, v = normal(3, 8, 3, 3), normal(8, 4, 3, 3, seed=1)
        inputs, axis, second = [3, 10, 10], 0, {}
    else:
        w, v = normal(16, 8), normal(4, 8, seed=1)
        inputs, axis, second = [16], 1, {"transB": 1}
    b = normal(8, seed=2)
    out = 0 if kind == "Conv" else 1
    np.moveaxis(w, out, 0)[2] *= factor
    np.moveaxis(v, axis, 0)[2] /= factor
    b[2] *= factor
    nodes = [
        helper.make_node(kind, ["x", "w", "b"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node(kind, ["r", "v"], ["y"], **second),
    ]  # fmt: skip
    return chain(*nodes, inputs=list(inputs), w=w, b=b, v=v)


def samples(kind: str) -> tuple[NDArray[np.float32], TensorSpec]:
    x = normal(64, 16, seed=3) if kind == "Gemm" else normal(64, 3, 10, 10, seed=3)
    return x, TensorSpec(name="x", datatype="FP32", shape=(-1, *x.shape[1:]))


@pytest.mark.parametrize("by", BY)
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose", "Gemm"])
def test_int8_gains_where_one_channel_outshines_the_others(kind: str, by: str) -> None:
    graph, (x, spec) = outlier(kind), samples(kind)
    made = equalise(graph, EqualiseConfig.model_validate({"by": by}), samples=x, inputs=spec)
    expected = run(graph, x)
    np.testing.assert_allclose(run(made, x)["y"], expected["y"], rtol=1e-4, atol=1e-4 * np.abs(expected["y"]).max())
    config = QuantizeConfig(min_input_channels=1)
    before, after = (decibels(expected, run(quantize(each, x, config, inputs=spec), x)) for each in (graph, made))
    assert after > before + 6, "an eighth bit's worth at least"


@settings(max_examples=25, deadline=None)
@given(st.floats(-3, 3), st.sampled_from(["Conv", "ConvTranspose", "Gemm"]))
def test_any_outlier_is_levelled_and_the_answers_stay(power: float, kind: str) -> None:
    """The channel's weights before and after it end with the same reach."""
    graph, (x, _) = outlier(kind, factor=10.0**power), samples(kind)
    made = equalise(graph, EqualiseConfig())
    expected, got = run(graph, x)["y"], run(made, x)["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    after = constants(made)
    first = np.moveaxis(after["w"], 0 if kind == "Conv" else 1, 0).reshape(8, -1)
    second = np.moveaxis(after["v"], 0 if kind == "ConvTranspose" else 1, 0).reshape(8, -1)
    np.testing.assert_allclose(np.abs(first).max(1), np.abs(second).max(1), rtol=1e-3)


def test_alpha_shares_the_load_between_activations_and_weights() -> None:
    graph, (x, spec) = outlier("Gemm"), samples("Gemm")

    def spread(alpha: float) -> float:
        """How far the largest channel lies above the median one, as the second layer reads them."""
        made = constants(
            equalise(graph, EqualiseConfig(by="activations", alpha=alpha), samples=x, inputs=spec)
        )
        read = np.maximum(x @ made["w"] + made["b"], 0).max(0)
        return float(read.max() / np.median(read))

    assert spread(1.0) == pytest.approx(1.0, rel=1e-3), "all of it in the weights"
    assert spread(1.0) < spread(0.5) < 30


def test_a_channel_stays_in_one_piece_through_a_reshape() -> None:
    """Four channels of 3x3, flattened; then 20 units made five channels again."""
    graph = reshaped()
    x = normal(10, 2, 8, 8, seed=4)
    made = equalise(graph, EqualiseConfig())
    expected = run(graph, x)["y"]
    np.testing.assert_allclose(run(made, x)["y"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    before, after = constants(graph), constants(made)
    ratio = after["v"] / before["v"]
    rows = ratio.reshape(4, 9, 20)
    np.testing.assert_allclose(rows, np.broadcast_to(rows[:, :1], rows.shape), rtol=1e-4, err_msg="9 rows a channel")
    assert not np.allclose(rows, 1.0)
    assert not np.allclose(after["u"], before["u"])


def reshaped() -> bytes:
    w = normal(4, 2, 3, 3)
    w[0] *= 9
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"]),
        helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "v", "c"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["s"]),
        helper.make_node("Conv", ["s", "u"], ["y"]),
    ]
    return chain(
        *nodes, inputs=[2, 8, 8], w=w, v=normal(36, 20, seed=1), c=normal(20, seed=2),
        shape=np.array([-1, 5, 2, 2], np.int64), u=normal(3, 5, 2, 2, seed=3),
    )  # fmt: skip


def test_batch_norms_are_folded_on_the_way() -> None:
    ones = np.ones(8, np.float32)
    graph = chain(
        helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("BatchNormalization", ["a", "s", "m", "m", "s"],
                                                                     ["n"]),
        helper.make_node("Relu", ["n"], ["r"]), helper.make_node("Conv", ["r", "v"], ["y"]), inputs=[3, 8, 8],
        w=normal(8, 3, 3, 3), v=normal(4, 8, 3, 3, seed=1), s=ones * 2, m=ones * 0.5,
    )  # fmt: skip
    made = equalise(graph, EqualiseConfig())
    assert "BatchNormalization" not in operators(made)
    x = normal(5, 3, 8, 8, seed=2)
    np.testing.assert_allclose(run(made, x)["y"], run(graph, x)["y"], rtol=1e-4, atol=1e-4)


def test_a_depthwise_convolution_belongs_to_two_pairs() -> None:
    w = normal(8, 3, 1, 1)
    w[1] *= 50
    graph = chain(
        helper.make_node("Conv", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "d"], ["e"], group=8), helper.make_node("Relu", ["e"], ["f"]),
        helper.make_node("Conv", ["f", "v"], ["y"]), inputs=[3, 8, 8], w=w, d=normal(8, 1, 3, 3, seed=1),
        v=normal(4, 8, 1, 1, seed=2),
    )  # fmt: skip
    made = equalise(graph, EqualiseConfig())
    x = normal(5, 3, 8, 8, seed=3)
    expected = run(graph, x)["y"]
    np.testing.assert_allclose(run(made, x)["y"], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    after = constants(made)
    reach = [np.abs(after[name].reshape(8, -1)).max(1) for name in ("w", "d")]
    reach.append(np.abs(np.moveaxis(after["v"], 1, 0).reshape(8, -1)).max(1))
    np.testing.assert_allclose(reach[0], reach[1], rtol=0.01)
    np.testing.assert_allclose(reach[1], reach[2], rtol=0.01)


def apart(*between: Any, **weights: NDArray[np.generic]) -> bytes:
    nodes = [helper.make_node("Gemm", ["x", "w"], ["a"]), *between, helper.make_node("Gemm", ["r", "v"], ["y"])]
    return chain(*nodes, inputs=[4], **({"w": normal(4, 6), "v": normal(6, 2)} | weights))


@pytest.mark.parametrize(
    "graph",
    [
        chain(helper.make_node("Gemm", ["x", "w"], ["y"]), inputs=[4], w=normal(4, 2)),
        apart(helper.make_node("Sigmoid", ["a"], ["r"])),
        apart(helper.make_node("Relu", ["a"], ["q"]), helper.make_node("Add", ["a", "q"], ["r"])),
        chain(
            helper.make_node("Gemm", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("Gemm", ["r", "w"], ["y"]), inputs=[4], w=normal(4, 4),
        ),
        apart(
            helper.make_node("Relu", ["a"], ["q"]), helper.make_node("Reshape", ["q", "mixed"], ["r"]),
            mixed=np.array([-1, 3], np.int64), v=normal(3, 2),
        ),
    ],
    ids=["one layer", "sigmoid", "two readers", "shared weights", "samples mixed up"],
)  # fmt: skip
def test_layers_that_are_no_pair_are_left_as_they_are(graph: bytes) -> None:
    with pytest.raises(InvalidRequest, match=r"no two of the graph's layers .* leave equalisation out"):
        equalise(graph, EqualiseConfig())


def test_activations_need_samples_that_fit() -> None:
    small = FAMILIES["cnn"]()
    with pytest.raises(InvalidRequest, match="by=activations needs samples"):
        equalise(small.graph, EqualiseConfig(by="activations"))
    with pytest.raises(InvalidRequest, match=r"are uint8 \[5, 28, 28\]; input 'image' takes"):
        equalise(
            small.graph, EqualiseConfig(by="activations"), samples=np.zeros((5, 28, 28), np.uint8), inputs=small.inputs
        )


@pytest.mark.parametrize("wrong", [{"by": "luck"}, {"alpha": 1.5}, {"rounds": 0}, {"beta": 1}])
def test_a_config_out_of_bounds_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        EqualiseConfig.model_validate(wrong)
