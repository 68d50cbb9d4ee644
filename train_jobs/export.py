"""nn.Module -> graph bytes: an ONNX file or a torch.export archive, preprocessing inside, batch size free."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path

import onnx
import torch
from torch import nn

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


def to_onnx(model: nn.Module, inputs: TensorSpec = INPUT, output: str = "logits") -> bytes:
    """The model as ONNX, opset 18, weights inside the file; the same model gives the same bytes wherever it is made."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's notes to its own developers
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model.eval(), (example_of(inputs),), str(path), dynamo=True, opset_version=18, external_data=False,
            verbose=False, input_names=[inputs.name], output_names=[output],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
        return bytes(without_notes(onnx.load(path)).SerializeToString())


def without_notes(model: onnx.ModelProto) -> onnx.ModelProto:
    """`model` without what its exporter noted for its own developers: stack traces with the paths of one machine."""
    for holder in (model, model.graph, *model.graph.node, *model.graph.value_info, *model.graph.initializer):
        for field in ("metadata_props", "doc_string"):
            if any(described.name == field for described in holder.DESCRIPTOR.fields):
                holder.ClearField(field)
    return model


def to_torch_archive(model: nn.Module, inputs: TensorSpec = INPUT) -> bytes:
    """The model as an exported torch program."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    return save_pickle_free(torch.export.export(model.eval(), (example_of(inputs),), dynamic_shapes=shapes))
