"""Export: the graph computes what the model computes, on any number of real pictures, from raw bytes on."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray

from cluster.runtimes.torch_archive import load_pickle_free
from train_jobs.datasets import LabelledDataset
from train_jobs.export import INPUT, output_spec, to_onnx, to_torch_archive
from train_jobs.loop import TrainResult
from train_jobs.models import CNN


@pytest.fixture(scope="module")
def graph(trained: TrainResult) -> bytes:
    return to_onnx(trained.model)


def run(graph: bytes, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    logits: NDArray[np.float32] = session.run(["logits"], {"image": pictures})[0]
    return logits


def eager(result: TrainResult, pictures: NDArray[np.uint8]) -> NDArray[np.float32]:
    with torch.inference_mode():
        logits: NDArray[np.float32] = result.model(torch.from_numpy(pictures)).numpy()
        return logits


@pytest.mark.parametrize("batch", [1, 2, 7, 64, 450])
def test_onnx_agrees_with_the_model_on_any_number_of_real_pictures(
    graph: bytes, trained: TrainResult, digits: LabelledDataset, batch: int
) -> None:
    pictures = digits.x_test[:batch]
    logits = run(graph, pictures)
    assert logits.shape == (batch, 10)
    assert np.abs(logits).max() > 1.0, "a trained model: agreement on noughts would prove nothing"
    np.testing.assert_allclose(logits, eager(trained, pictures), atol=1e-4)


@pytest.mark.parametrize("batch", [1, 5, 64])
def test_the_torch_program_agrees_as_well(trained: TrainResult, digits: LabelledDataset, batch: int) -> None:
    program = load_pickle_free(to_torch_archive(trained.model)).module()
    pictures = digits.x_test[:batch]
    with torch.inference_mode():
        logits = program(torch.from_numpy(pictures)).numpy()
    np.testing.assert_allclose(logits, eager(trained, pictures), atol=1e-5)


def test_the_graph_takes_raw_bytes_so_preprocessing_is_inside(graph: bytes) -> None:
    model = onnx.load(io.BytesIO(graph))
    (entry,) = model.graph.input
    (result,) = model.graph.output
    assert (entry.name, entry.type.tensor_type.elem_type) == ("image", onnx.TensorProto.UINT8)
    assert (result.name, result.type.tensor_type.elem_type) == ("logits", onnx.TensorProto.FLOAT)
    sizes = [d.dim_param or d.dim_value for d in entry.type.tensor_type.shape.dim]
    assert sizes[1:] == [1, 28, 28]
    assert isinstance(sizes[0], str), "the batch size is a name, not a number"
    onnx.checker.check_model(model, full_check=True)


def test_the_graph_is_self_contained(graph: bytes, trained: TrainResult) -> None:
    model = onnx.load(io.BytesIO(graph))
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in model.graph.initializer)
    assert len(graph) > 4 * sum(p.numel() for p in trained.model.parameters())
    assert {op.domain for op in model.opset_import if op.version} <= {"", "ai.onnx"}
    assert model.opset_import[0].version == 18


def test_the_specs_are_what_the_graph_has(graph: bytes) -> None:
    assert (INPUT.name, INPUT.datatype, INPUT.shape) == ("image", "UINT8", (-1, 1, 28, 28))
    assert (output_spec(10).name, output_spec(10).datatype, output_spec(10).shape) == ("logits", "FP32", (-1, 10))


def test_dropout_is_left_out_of_what_is_served(digits: LabelledDataset) -> None:
    model = CNN(dropout=0.5).train()
    graph = to_onnx(model)
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(digits.x_test[:16])).numpy()
    np.testing.assert_allclose(run(graph, digits.x_test[:16]), expected, atol=1e-4)


def test_exporting_says_nothing_and_leaves_the_model_as_it_was(
    trained: TrainResult, capfd: pytest.CaptureFixture[str]
) -> None:
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    to_onnx(trained.model)
    to_torch_archive(trained.model)
    assert capfd.readouterr() == ("", "")
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(tensor, before[name])
