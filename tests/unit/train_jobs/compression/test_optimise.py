"""Optimisation ahead of time: the same answers, batch norms gone, and nothing that is for one machine alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper

from cluster.errors import InvalidRequest
from cluster.runtimes import runtimes_for
from cluster.variants import TensorSpec
from tests.unit.train_jobs.compression.graphs import FAMILIES, chain, constants, normal, operators, run, run_in
from train_jobs.compression.optimise import Level, OptimiseConfig, folded_batch_norms, optimise

LEVELS: list[Level] = ["basic", "extended"]


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_answers_stay(family: str, level: Level) -> None:
    small = FAMILIES[family]()
    made = optimise(small.graph, level)
    expected, got = small.run(small.graph), small.run(made)
    assert got.keys() == expected.keys()
    for name, want in expected.items():
        np.testing.assert_allclose(got[name], want, rtol=1e-5, atol=1e-5 * np.abs(want).max())
    assert optimise(small.graph, level) == made, "the same graph gives the same bytes"


@pytest.mark.parametrize("runtime", runtimes_for("onnx"))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_runtime_takes_the_basic_level(family: str, runtime: str) -> None:
    small = FAMILIES[family]()
    got = small.run_in(runtime, optimise(small.graph, "basic"))
    for name, want in small.run(small.graph).items():
        np.testing.assert_allclose(got[name], want, rtol=1e-3, atol=1e-4 * np.abs(want).max())


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("family", FAMILIES)
def test_no_operator_is_of_this_machine_s_alone(family: str, level: Level) -> None:
    made = onnx.load_from_string(optimise(FAMILIES[family]().graph, level))
    allowed = {"", "ai.onnx"} | ({"com.microsoft"} if level == "extended" else set())
    assert {node.domain for node in made.graph.node} <= allowed
    assert {opset.domain for opset in made.opset_import} <= allowed


def test_the_higher_level_fuses_more() -> None:
    graph = FAMILIES["cnn"]().graph
    assert "Relu" in operators(optimise(graph, "basic"))
    assert "FusedConv" in operators(optimise(graph, "extended"))


def normalised() -> bytes:
    """A convolution, a batch norm, another one that nothing stands before."""
    return chain(
        helper.make_node("Conv", ["x", "w", "b"], ["a"]),
        helper.make_node("BatchNormalization", ["a", "scale", "bias", "mean", "var"], ["n"]),
        helper.make_node("Relu", ["n"], ["r"]),
        helper.make_node("BatchNormalization", ["r", "scale2", "bias2", "mean2", "var2"], ["y"]),
        inputs=[3, 8, 8], w=normal(4, 3, 3, 3), b=normal(4), scale=normal(4, seed=1), bias=normal(4, seed=2),
        mean=normal(4, seed=3), var=np.abs(normal(4, seed=4)) + 0.1, scale2=normal(4, seed=5), bias2=normal(4, seed=6),
        mean2=normal(4, seed=7), var2=np.abs(normal(4, seed=8)) + 0.1,
    )  # fmt: skip


@pytest.mark.parametrize("level", LEVELS)
def test_batch_norms_go_into_the_layers_before_them(level: Level) -> None:
    before = normalised()
    after = optimise(before, level)
    assert folded_batch_norms(before, after) == 1
    assert operators(after).count("BatchNormalization") == 1
    assert "mean" not in constants(after)
    x = normal(5, 3, 8, 8, seed=9)
    np.testing.assert_allclose(run(after, x)["y"], run(before, x)["y"], rtol=1e-5, atol=1e-5)


def test_nothing_folded_is_none() -> None:
    graph = FAMILIES["cnn"]().graph
    assert folded_batch_norms(graph, optimise(graph, "basic")) == 0


def test_what_is_no_graph_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="ONNX Runtime cannot optimise this graph"):
        optimise(b"no graph", "basic")
    unknown = chain(helper.make_node("NoSuchOperator", ["x"], ["y"]), inputs=[3])
    with pytest.raises(InvalidRequest, match="NoSuchOperator"):
        optimise(unknown, "basic")


def test_a_level_that_lays_out_for_one_cpu_is_no_choice() -> None:
    with pytest.raises(ValueError, match="level"):
        OptimiseConfig.model_validate({"level": "all"})


ACTIVATIONS = ["Relu", "LeakyRelu", "Sigmoid", "Tanh", "HardSigmoid", "Elu", "Softplus", "Softsign", "Selu"]


@pytest.mark.parametrize("runtime", runtimes_for("onnx"))
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("kind", "size", "weights"), [("Conv", [3, 6, 6], (4, 3, 3, 3)), ("Gemm", [16], (16, 4))])
def test_what_is_fused_means_the_same_to_every_runtime(
    kind: str, size: list[int], weights: tuple[int, ...], activation: str, runtime: str
) -> None:
    """OpenVINO computes ReLU in every FusedGemm."""
    graph = chain(
        helper.make_node(kind, ["x", "w"], ["a"]), helper.make_node(activation, ["a"], ["y"]), inputs=list(size),
        w=normal(*weights),
    )  # fmt: skip
    x = normal(8, *size, seed=1)
    expected = run(graph, x)["y"]
    inputs, outputs = (
        TensorSpec(name=name, datatype="FP32", shape=(-1, *array.shape[1:]))
        for name, array in (("x", x), ("y", expected))
    )
    got = run_in(runtime, optimise(graph, "extended"), x, inputs=inputs, outputs=(outputs,))["y"]
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
