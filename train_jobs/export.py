"""nn.Module -> graph bytes: an ONNX file or a torch.export archive, preprocessing inside, batch size free."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from cluster.runtimes.torch_archive import save_pickle_free
from cluster.variants import TensorSpec

INPUT = TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28))


def output_spec(classes: int) -> TensorSpec:
    """Logits, float32 (B, classes)."""
    return TensorSpec(name="logits", datatype="FP32", shape=(-1, classes))


def _example() -> torch.Tensor:
    return torch.zeros((2, *INPUT.shape[1:]), dtype=torch.uint8)  # 2: a batch of 1 would be taken for a constant


def to_onnx(model: nn.Module) -> bytes:
    """The model as ONNX, opset 18, weights inside the file."""
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")  # the exporter's notes to its own developers
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            model.eval(), (_example(),), str(path), dynamo=True, opset_version=18, external_data=False, verbose=False,
            input_names=[INPUT.name], output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
        return path.read_bytes()


def to_torch_archive(model: nn.Module) -> bytes:
    """The model as an exported torch program."""
    shapes = ({0: torch.export.Dim("batch", min=1)},)
    return save_pickle_free(torch.export.export(model.eval(), (_example(),), dynamic_shapes=shapes))
