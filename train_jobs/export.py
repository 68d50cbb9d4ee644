"""nn.Module -> graph bytes: an ONNX file or a torch.export archive, preprocessing inside, batch size free."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path

import onnx
import torch
from torch import nn

from cluster.errors import InvalidRequest
from cluster.runtimes.torch_archive import save_pickle_free
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec

INPUT = TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28))
"""What our own picture classifiers take."""


def output_spec(classes: int) -> TensorSpec:
    """Logits, float32 (B, classes)."""
    return TensorSpec(name="logits", datatype="FP32", shape=(-1, classes))


def example_of(spec: TensorSpec, rows: int = 2) -> torch.Tensor:
    """Zeros of that shape and datatype. Two rows: a batch of one would be taken for a constant."""
    dtype = NUMPY_OF_DATATYPE[spec.datatype]
    return torch.zeros((rows, *spec.shape[1:]), dtype=getattr(torch, dtype.name))


def to_onnx(model: nn.Module, inputs: TensorSpec = INPUT, outputs: Sequence[str] = ("logits",)) -> bytes:
    """The model as ONNX, opset 18, its answers named `outputs`, weights inside the file; the same model gives the same
    bytes wherever it is made.

    Raises InvalidRequest, with torch's words, if it is no graph of a free batch.
    """
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's notes to its own developers
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        path = Path(folder) / "model.onnx"
        try:
            torch.onnx.export(
                model.eval(), (example_of(inputs),), str(path), dynamo=True, opset_version=18, external_data=False,
                verbose=False, input_names=[inputs.name], output_names=list(outputs),
                dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )  # fmt: skip
        except Exception as error:
            raise InvalidRequest(_no_graph("ONNX", error)) from error
        return bytes(without_notes(onnx.load(path)).SerializeToString())


def without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without what its exporter noted for its own developers: stack traces with the paths of one machine."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        for field in ("metadata_props", "doc_string"):
            if any(described.name == field for described in holder.DESCRIPTOR.fields):
                holder.ClearField(field)
    return model


def to_torch_archive(model: nn.Module, inputs: TensorSpec = INPUT) -> bytes:
    """The model as an exported torch program. Raises InvalidRequest as `to_onnx` does."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    try:
        program = torch.export.export(model.eval(), (example_of(inputs),), dynamic_shapes=shapes)
    except Exception as error:
        raise InvalidRequest(_no_graph("a torch program", error)) from error
    return save_pickle_free(program)


def _no_graph(what: str, error: Exception) -> str:
    cause = error.__cause__ or error
    told = " ".join(str(cause).split())[:400]
    return (
        f"the model cannot be exported as {what} whose batch is free ({type(cause).__name__}: {told}); write its "
        "forward so that torch.export follows it (no branches on values, no fixed batch), or bring an ONNX file"
    )
