"""Weights alone in 8 or 4 bits: a quarter of the bytes, computed in fp32 by every runtime."""

from __future__ import annotations

from collections import Counter
from typing import Literal

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import helper
from pydantic import ValidationError

from cluster.errors import InvalidRequest
from cluster.runtimes import runtimes_for
from tests.unit.train_jobs.compression.graphs import (
    FAMILIES,
    chain,
    constants,
    decibels,
    matrices,
    normal,
    operators,
    run,
)
from train_jobs.compression import weight_only as module
from train_jobs.compression.optimise import optimise
from train_jobs.compression.quantize import QuantizeConfig, quantize
from train_jobs.compression.weight_only import WeightOnlyConfig, float8, in_eight_bits, packed, quantized, weight_only

FLOATS = st.floats(-100, 100, width=32)


@pytest.mark.parametrize("runtime", runtimes_for("onnx"))
@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bits_answer_nearly_as_fp32_in_every_runtime(family: str, runtime: str) -> None:
    small = FAMILIES[family]()
    made = weight_only(small.graph, WeightOnlyConfig())
    assert decibels(small.run(small.graph), small.run_in(runtime, made)) > 30


@pytest.mark.parametrize("runtime", runtimes_for("onnx"))
@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bit_floats_answer_nearly_as_fp32_in_every_runtime(family: str, runtime: str) -> None:
    small = FAMILIES[family]()
    made = weight_only(small.graph, WeightOnlyConfig(kind="float"))
    assert decibels(small.run(small.graph), small.run_in(runtime, made)) > 20


@pytest.mark.parametrize("kind", ["int", "float"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_quarter_of_the_bytes(family: str, kind: Literal["int", "float"]) -> None:
    config = WeightOnlyConfig(kind=kind)
    graph = optimise(FAMILIES[family]().graph, "basic")
    made = constants(weight_only(graph, config))
    before, after = matrices(graph), matrices(weight_only(graph, config))
    assert len(before) == len(after)
    assert {array.itemsize for array in after.values()} == {1}
    assert sum(array.nbytes for array in after.values()) == sum(array.nbytes for array in before.values()) / 4
    vectors = {name: array for name, array in constants(graph).items() if array.ndim <= 1}
    assert all(np.array_equal(made[name], array) for name, array in vectors.items()), "biases stay"


def test_both_matrices_of_a_recurrent_cell_are_stored() -> None:
    small = FAMILIES["forecaster"]()
    made = weight_only(small.graph, WeightOnlyConfig(operators=("LSTM",)))
    stored = [array.shape for array in constants(made).values() if array.dtype == np.uint8]
    assert sorted(stored) == sorted([(1, 192, 3), (1, 192, 48), (1, 192, 48), (1, 192, 48)])
    assert operators(made).count("LSTM") == 2


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=FLOATS),
    st.integers(0, 3),
)
def test_a_stored_weight_is_off_by_half_a_step_at_most(values: NDArray[np.float32], axis: int) -> None:
    axis %= values.ndim
    stored, scales = quantized(values, axis)
    assert scales.shape == tuple(size if each == axis else 1 for each, size in enumerate(values.shape))
    assert np.abs(stored.astype(int)).max() <= 127
    restored = stored * scales.astype(np.float64)
    assert np.all(np.abs(restored - values) <= 0.5001 * scales)
    assert np.all(restored[values == 0] == 0)


@given(
    hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=4, max_side=5), elements=FLOATS),
    st.integers(0, 3),
)
def test_an_eight_bit_float_is_off_by_a_sixteenth_of_itself_at_most(values: NDArray[np.float32], axis: int) -> None:
    axis %= values.ndim
    stored, scales = float8(values, axis)
    assert scales.shape == tuple(size if each == axis else 1 for each, size in enumerate(values.shape))
    restored = stored.astype(np.float64) * scales
    assert np.all(np.isfinite(restored))
    assert np.all(np.abs(restored - values) <= np.maximum(np.abs(values) / 16, scales / 1024) * 1.0001)
    assert np.all(restored[values == 0] == 0)


def test_a_float_of_four_bits_is_refused() -> None:
    with pytest.raises(ValidationError, match="set bits=8, or kind='int'"):
        WeightOnlyConfig(bits=4, kind="float")


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 40), st.integers(1, 4)), elements=FLOATS),
    st.sampled_from([16, 32]),
)
def test_a_packed_weight_is_off_by_a_step_at_most_and_its_block_s_farthest_is_exact(
    matrix: NDArray[np.float32], block: int
) -> None:
    weights, scales = packed(matrix, block)
    rows, columns = matrix.shape
    blocks = -(-rows // block)
    assert weights.shape == (columns, blocks, block // 2)
    assert scales.shape == (columns, blocks)
    numbers = np.stack([weights & 15, weights >> 4], -1).reshape(columns, blocks, block).astype(np.float64) - 8
    restored = (numbers * scales[..., None]).reshape(columns, -1)[:, :rows].T
    steps = np.abs(np.repeat(scales, block, 1)[:, :rows].T)
    assert np.all(np.abs(restored - matrix) <= 1.0001 * steps)
    for first in range(0, rows, block):
        part, own = matrix[first : first + block], restored[first : first + block]
        at = np.abs(part).argmax(0)
        np.testing.assert_allclose(own[at, range(columns)], part[at, range(columns)], rtol=1e-6, atol=1e-36)


@pytest.mark.parametrize("runtime", runtimes_for("onnx"))
@pytest.mark.parametrize("family", FAMILIES)
def test_four_bits_answer_alike_in_every_runtime(family: str, runtime: str) -> None:
    small = FAMILIES[family]()
    made = weight_only(small.graph, WeightOnlyConfig(bits=4))
    assert "MatMulNBits" in operators(made)
    expected = small.run(small.graph)
    assert decibels(expected, small.run(made)) > 12
    assert decibels(small.run(made), small.run_in(runtime, made)) > 35, "the runtimes agree on what they were given"


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
def test_a_product_by_blocks_is_the_product_with_the_rounded_matrix(bias: bool, transposed: bool) -> None:
    matrix, b = normal(48, 5), normal(5, seed=1)
    graph = chain(
        helper.make_node("Gemm", ["x", "w", *(["b"] if bias else [])], ["y"], transB=int(transposed)), inputs=[48],
        w=matrix.T.copy() if transposed else matrix, **({"b": b} if bias else {}),
    )  # fmt: skip
    made = weight_only(graph, WeightOnlyConfig(bits=4, block=16))
    weights, scales = packed(matrix, 16)
    numbers = np.stack([weights & 15, weights >> 4], -1).reshape(5, 3, 16).astype(np.float32) - 8
    rounded = (numbers * scales[..., None]).reshape(5, 48).T
    x = normal(7, 48, seed=2)
    np.testing.assert_allclose(run(made, x)["y"], x @ rounded + (b if bias else 0), rtol=1e-4, atol=1e-4)
    assert len(made) < len(graph)


def test_a_matrix_that_two_products_share_is_stored_once() -> None:
    graph = chain(
        helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]), inputs=[16], w=normal(16, 16),
    )  # fmt: skip
    x = normal(5, 16, seed=1)
    for config, kept in ((WeightOnlyConfig(), 35), (WeightOnlyConfig(bits=4, block=16), 12)):
        made = weight_only(graph, config)
        large = [array for array in constants(made).values() if array.itemsize == 1]
        assert len(large) == 1
        assert decibels(run(graph, x), run(made, x)) > kept


def test_an_installation_without_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*args: object, **settings: object) -> None:
        raise RuntimeError("no kernel for MatMulNBits")

    graph = optimise(FAMILIES["cnn"]().graph, "basic")
    monkeypatch.setattr(module, "optimise", lambda model, level: model)
    monkeypatch.setattr(module.ort, "InferenceSession", none)
    with pytest.raises(InvalidRequest, match=r"has no kernel for 4-bit matrices here \(no kernel.*set bits=8"):
        weight_only(graph, WeightOnlyConfig(bits=4))
    assert weight_only(graph, WeightOnlyConfig())


def convolution() -> bytes:
    return chain(helper.make_node("Conv", ["x", "w"], ["y"]), inputs=[3, 8, 8], w=normal(4, 3, 3, 3))


@pytest.mark.parametrize(
    ("graph", "config", "said"),
    [
        (chain(helper.make_node("Relu", ["x"], ["y"]), inputs=[3]), {}, "no fp32 kernel or matrix of Conv, ConvTrans"),
        (convolution(), {"bits": 4}, "no Gemm or MatMul by a constant matrix among"),
        (convolution(), {"operators": ["LSTM"]}, "no fp32 kernel or matrix of LSTM to store in 8 bits"),
        (b"no graph", {}, "ONNX Runtime cannot optimise this graph"),
    ],
    ids=["no weights", "no matrix", "no such operator", "no graph"],
)  # fmt: skip
def test_what_cannot_be_stored_is_refused_with_the_way_out(graph: bytes, config: dict[str, object], said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        weight_only(graph, WeightOnlyConfig.model_validate(config))


@pytest.mark.parametrize("wrong", [{"bits": 2}, {"block": 24}, {"operators": ["Gather"]}, {"bit": 8}])
def test_a_config_out_of_bounds_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        WeightOnlyConfig.model_validate(wrong)


def test_onnx_runtime_computes_with_constants_as_before() -> None:
    """Nothing is left to do for every batch: what it makes of the graph when it loads it is what it makes of fp32."""
    for family in FAMILIES.values():
        graph = family().graph
        stored = weight_only(graph, WeightOnlyConfig())
        loaded = [Counter(operators(optimise(each, "extended"))) for each in (graph, stored)]
        assert loaded[0] == loaded[1]


@pytest.mark.parametrize("runtime", runtimes_for("onnx"))
def test_cells_in_bytes_go_with_int8_activations(runtime: str) -> None:
    small = FAMILIES["forecaster"]()
    model = onnx.load_from_string(quantize(small.graph, small.samples, QuantizeConfig(), inputs=small.inputs))
    assert in_eight_bits(model, ("LSTM",)) == 4
    got = small.run_in(runtime, model.SerializeToString(), precision="int8")
    assert decibels(small.run(small.graph), got) > 20


def test_the_graph_stays_valid() -> None:
    for family in FAMILIES.values():
        made = weight_only(family().graph, WeightOnlyConfig())
        onnx.checker.check_model(onnx.load_from_string(made), full_check=True)
