"""Export: the graph computes what the model computes, on any number of real pictures, from raw bytes on."""

from __future__ import annotations

import io

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch._decomp import global_decomposition_table

from cluster.errors import InvalidRequest
from cluster.runtimes.torch_archive import load_pickle_free
from cluster.variants import TensorSpec
from train_jobs.datasets import LabelledDataset
from train_jobs.export import INPUT, _shapes_of_lstm, output_spec, to_onnx, to_torch_archive
from train_jobs.loop import TrainResult
from train_jobs.models import CNN, RecurrentConfig
from train_jobs.models.forecaster import FramingConfig


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


WINDOW = TensorSpec(name="window", datatype="FP32", shape=(-1, 24, 3))


class TwoWays(nn.Module):
    """x (B, S, 3) -> what an LSTM that reads both ways, from states of its own, holds after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTM(3, 4, batch_first=True, bidirectional=True, num_layers=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        begin = torch.full((4, x.shape[0], 4), 0.5)
        states: torch.Tensor = self.cell(x, (begin, begin))[0]
        return states


def test_series_of_any_length_go_through_a_graph_of_few_nodes() -> None:
    torch.manual_seed(0)
    body = RecurrentConfig(hidden=8, layers=2, patch=4)
    forecaster = FramingConfig().around(body.build, (24, 3), (5, 3)).eval()
    graph = to_onnx(forecaster, WINDOW, ("forecast",))
    proto = onnx.load_from_string(graph)
    onnx.checker.check_model(proto, full_check=True)
    sizes = [each.dim_param or each.dim_value for each in proto.graph.input[0].type.tensor_type.shape.dim]
    assert sizes == ["batch", "4*steps", 3]
    cells = [node for node in proto.graph.node if node.op_type == "LSTM"]
    assert [len(cell.input) for cell in cells] == [4, 4], "they begin with nought, and nobody has to make it"
    assert sum(node.op_type == "Squeeze" and node.input[0] == cells[0].output[0] for node in proto.graph.node) == 1
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    program = load_pickle_free(to_torch_archive(forecaster, WINDOW)).module()
    for batch, rows in ((1, 4), (3, 12), (2, 24), (1, 40)):
        x = torch.randn(batch, rows, 3)
        with torch.inference_mode():
            expected = forecaster(x)
            torch.testing.assert_close(program(x), expected, rtol=1e-6, atol=1e-6)
        np.testing.assert_allclose(session.run(None, {"window": x.numpy()})[0], expected, atol=1e-5)


def test_a_cell_that_does_more_is_left_as_it_is() -> None:
    torch.manual_seed(0)
    model = TwoWays().eval()
    session = ort.InferenceSession(to_onnx(model, WINDOW, ("states",)), providers=["CPUExecutionProvider"])
    x = torch.randn(3, 24, 3)
    with torch.inference_mode():
        np.testing.assert_allclose(session.run(None, {"window": x.numpy()})[0], model(x), atol=1e-5)


def test_exporting_leaves_torch_as_it_was() -> None:
    """Whoever takes an LSTM apart afterwards, as the compiler does, must find its arithmetic and not our shapes: in the
    same process it would compile a network that answers with whatever lies in memory, and keep it on the disk."""
    cell = torch.ops.aten.lstm.input
    before = dict(cell.py_kernels)
    model = RecurrentConfig(hidden=4).build((24, 3), (2,))
    with pytest.raises(InvalidRequest, match="cannot be exported as a torch program"):
        to_torch_archive(model, WINDOW.model_copy(update={"shape": (-1, 24, 2)}))
    assert cell.py_kernels == before
    to_torch_archive(model, WINDOW)
    to_onnx(model, WINDOW)
    assert cell.py_kernels == before
    assert _shapes_of_lstm not in global_decomposition_table["post_autograd"].values()
    assert _shapes_of_lstm not in cell._dispatch_cache.values(), "what torch remembers"
