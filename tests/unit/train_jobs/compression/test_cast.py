"""bf16 and fp16: kernels and matrices rounded to nearest even, all else as it was, answers within what that allows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cluster.artifacts import ArtifactStore
from cluster.errors import InvalidRequest
from cluster.runtimes import RuntimeConfig, load_runtime, runtimes_for
from cluster.variants import Precision, Variant
from tests.unit.train_jobs.compression.graphs import FAMILIES, decibels
from train_jobs.compression.cast import to_bf16, to_fp16
from train_jobs.datasets import LabelledDataset
from train_jobs.export import INPUT, output_spec, to_onnx
from train_jobs.loop import TrainResult
from train_jobs.models import CNN

UNIT = 2.0**-8
"""Relative error of rounding to nearest with the 8 bits of bf16's significand."""


@pytest.fixture(scope="module")
def fp32(trained: TrainResult) -> bytes:
    return to_onnx(trained.model)


@pytest.fixture(scope="module")
def bf16(fp32: bytes) -> bytes:
    return to_bf16(fp32)


def run(graph: bytes, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(None, {"image": pictures})[0]
    return logits


def constants(graph: bytes) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in onnx.load_from_string(graph).graph.initializer}


def nearest_even(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The upper half of the bits, rounded by hand."""
    bits = values.view(np.uint32)
    return ((bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def test_kernels_and_matrices_are_rounded_to_nearest_even_and_vectors_stay(fp32: bytes, bf16: bytes) -> None:
    before, after = constants(fp32), constants(bf16)
    cast = 0
    for name, tensor in before.items():
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            rounded = after[f"{name}.bf16"]
            assert (rounded.data_type, list(rounded.dims)) == (TensorProto.BFLOAT16, list(tensor.dims))
            bits = np.frombuffer(rounded.raw_data, np.uint16).reshape(rounded.dims)
            np.testing.assert_array_equal(bits, nearest_even(numpy_helper.to_array(tensor)))
            assert name not in after
            cast += 1
        else:
            assert after[name] == tensor
    assert cast == 5, "three convolutions and two dense layers"
    assert len(bf16) < 0.55 * len(fp32)
    onnx.checker.check_model(onnx.load_from_string(bf16), full_check=True)


def rounded(model: CNN) -> CNN:
    """The module with the same weights rounded by torch."""
    made = copy.deepcopy(model)
    for parameter in made.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.to(torch.bfloat16).to(torch.float32)
    return made


def test_the_graph_computes_what_the_module_with_rounded_weights_computes(
    bf16: bytes, trained: TrainResult, digits: LabelledDataset
) -> None:
    with torch.inference_mode():
        expected = rounded(trained.model)(torch.from_numpy(digits.x_test)).numpy()
        exact = trained.model(torch.from_numpy(digits.x_test)).numpy()
    assert np.abs(expected - exact).max() > 1e-3, "rounding shows: otherwise this proves nothing"
    np.testing.assert_allclose(run(bf16, digits.x_test), expected, atol=1e-4)


def bound(model: CNN, x: Tensor) -> Tensor:
    """How far off the logits may be at most if every weight is off by UNIT of itself, layer by layer."""
    x, error = model.preprocess(x), torch.zeros(())
    error = torch.zeros_like(x)
    for layer in [*model.features, *model.head]:
        if isinstance(layer, nn.Conv2d | nn.Linear):
            size = layer.weight.abs()
            apply = F.conv2d if isinstance(layer, nn.Conv2d) else F.linear
            error = apply(error, size * (1 + UNIT)) + UNIT * apply(x.abs(), size)
        elif isinstance(layer, nn.MaxPool2d | nn.Flatten):
            error = layer(error)  # a maximum moves by no more than the most moved of its inputs; so does ReLU
        x = layer(x)
    return error


def test_answers_are_within_bf16_s_rounding_of_fp32(
    fp32: bytes, bf16: bytes, trained: TrainResult, digits: LabelledDataset
) -> None:
    exact, off = run(fp32, digits.x_test), run(bf16, digits.x_test)
    with torch.inference_mode():
        allowed = bound(trained.model, torch.from_numpy(digits.x_test)).numpy()
    assert np.all(np.abs(off - exact) <= allowed + 1e-4)
    assert np.abs(off - exact).max() < 0.01 * np.abs(exact).max(), "errors of either sign mostly cancel"
    assert np.mean(off.argmax(1) == exact.argmax(1)) > 0.99


@pytest.mark.parametrize("name", runtimes_for("onnx"))
def test_every_runtime_for_onnx_executes_it(
    name: str, bf16: bytes, fp32: bytes, digits: LabelledDataset, tmp_path: Path
) -> None:
    variant = Variant(
        name="m/bf16", family="cnn", format="onnx", precision="bf16", inputs=(INPUT,), outputs=(output_spec(10),)
    )
    store = ArtifactStore(tmp_path)
    stored = store.put(variant, {"model.onnx": bf16})
    runtime = load_runtime(store, stored, RuntimeConfig(name=name))  # type: ignore[arg-type]
    logits, exact = runtime.infer({"image": digits.x_test})["logits"], run(fp32, digits.x_test)
    runtime.close()
    # A CPU with bf16 kernels rounds what flows between the layers as well.
    np.testing.assert_allclose(logits, exact, atol=0.05 * np.abs(exact).max())
    assert np.mean(logits.argmax(1) == exact.argmax(1)) > 0.97


WEIGHTS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)


def matrix(*, opset: int = 18, listed: bool = False, width: int = 4) -> bytes:
    """y = x w, with `w` also listed among the inputs as files of before 2019 have it."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, width])]
    if listed:
        inputs.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [width, 3]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None, 3])]
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    graph = helper.make_graph([node], "g", inputs, outputs, [numpy_helper.from_array(WEIGHTS, "w")])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(made.SerializeToString())


def test_constants_that_are_listed_as_inputs_are_constants_from_then_on() -> None:
    session = ort.InferenceSession(to_bf16(matrix(listed=True)), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["x"]
    made = session.run(None, {"x": np.eye(4, dtype=np.float32)})[0]
    np.testing.assert_array_equal(made.view(np.uint32) >> 16, nearest_even(WEIGHTS))


def test_a_graph_older_than_bf16_is_refused_with_the_way_out() -> None:
    with pytest.raises(InvalidRequest, match="the graph has opset 12, and ONNX casts bf16 from opset 13 on; export it"):
        to_bf16(matrix(opset=12))
    assert to_bf16(matrix(opset=13))


def test_a_graph_without_kernel_or_matrix_is_refused(bf16: bytes) -> None:
    with pytest.raises(InvalidRequest, match="no fp32 kernel or matrix that bf16 could halve; leave this pass out"):
        to_bf16(bf16)


@pytest.mark.parametrize("runtime", runtimes_for("onnx"))
@pytest.mark.parametrize("cast", [to_bf16, to_fp16])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_runs_everywhere_with_halved_weights(
    family: str, cast: Callable[[bytes], bytes], runtime: str
) -> None:
    small = FAMILIES[family]()
    made = cast(small.graph)
    precision: Precision = "bf16" if cast is to_bf16 else "fp32"
    got = small.run_in(runtime, made, precision=precision)
    # 11 bits of the weights against 8; and a CPU with bf16 kernels rounds what flows between the layers as well.
    assert decibels(small.run(small.graph), got) > (60 if cast is to_fp16 else 30)


def test_fp16_rounds_kernels_and_matrices_to_nearest_even_and_vectors_stay(fp32: bytes) -> None:
    made = to_fp16(fp32)
    before, after = constants(fp32), constants(made)
    cast = 0
    for name, tensor in before.items():
        if tensor.data_type == TensorProto.FLOAT and len(tensor.dims) > 1:
            rounded = after[f"{name}.fp16"]
            assert rounded.data_type == TensorProto.FLOAT16
            np.testing.assert_array_equal(
                numpy_helper.to_array(rounded), numpy_helper.to_array(tensor).astype(np.float16)
            )
            cast += 1
        else:
            assert after[name] == tensor
    assert cast == 5
    assert len(made) < 0.55 * len(fp32)
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)


def large(value: float) -> bytes:
    weights = WEIGHTS.copy()
    weights[1, 2] = value
    model = onnx.load_from_string(matrix())
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(weights, "w"))
    return bytes(model.SerializeToString())


def test_a_weight_that_fp16_has_no_number_for_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest, match=r"weight 'w' reaches 65505, and fp16 ends at 65504; cast to bf16 instead"):
        to_fp16(large(-65505.0))
    assert to_fp16(large(-65504.0))
    assert to_bf16(large(-65505.0)), "which bf16 has"


def test_fp16_of_nothing_is_refused(bf16: bytes) -> None:
    with pytest.raises(InvalidRequest, match="no fp32 kernel or matrix that fp16 could halve"):
        to_fp16(bf16)
