"""ONNX graphs for the contract: those that train_jobs exports, and small ones written by hand. Each is made once."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from cluster.artifacts import ArtifactStore
from cluster.errors import ArtifactError
from cluster.runtimes import load_runtime
from tests.contracts.runtime_contract import ROWS, SUMS, RuntimeContract
from train_jobs.export import to_onnx

exported_model = cache(to_onnx)


@cache
def exported_module(kind: type[nn.Module], dtype: torch.dtype) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    example = torch.ones(2, 4) if dtype == torch.float32 else torch.ones(2, dtype=dtype)
    with contextlib.redirect_stdout(io.StringIO()):
        program = torch.onnx.export(
            kind().eval(), (example,), dynamo=True, opset_version=18, verbose=False, input_names=["x"],
            output_names=["y"], dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
    assert program is not None
    return program.model_proto.SerializeToString()


def graph(
    nodes: Sequence[onnx.NodeProto], inputs: Sequence[onnx.ValueInfoProto], outputs: Sequence[onnx.ValueInfoProto],
    constants: Sequence[TensorProto] = (),
) -> bytes:  # fmt: skip
    """By hand, for what torch would not export."""
    made = helper.make_graph(nodes, "g", inputs, outputs, constants)
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


def floats(name: str, *shape: int | None) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)


def constant(name: str, values: NDArray[np.generic]) -> TensorProto:
    return numpy_helper.from_array(values, name)


class OnnxContract(RuntimeContract):
    """What every runtime that reads ONNX must do besides."""

    format = "onnx"
    file = "model.onnx"

    def export_model(self, model: nn.Module) -> bytes:
        return exported_model(model)

    def export_module(self, module: nn.Module, example: torch.Tensor) -> bytes:
        return exported_module(type(module), example.dtype)

    @pytest.mark.parametrize("location", ["weights.bin", "/weights.bin", "../weights.bin", "./weights.bin"])
    def test_a_graph_that_reads_its_weights_from_a_file_is_refused(
        self, store: ArtifactStore, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A variant is self-contained: what lies beside the process is none of its business."""
        folder = tmp_path / "inner"
        folder.mkdir()
        monkeypatch.chdir(folder)
        for place in (tmp_path, folder):
            (place / "weights.bin").write_bytes(bytes(16))
        weights = TensorProto(name="w", data_type=1, dims=[4], data_location=TensorProto.EXTERNAL)
        weights.external_data.add(key="location", value=location if location[0] != "/" else str(folder / "weights.bin"))
        data = graph([helper.make_node("Add", ["x", "w"], ["y"])], [floats("x", None, 4)], [floats("y", None, 4)],
                     [weights])  # fmt: skip
        with pytest.raises(ArtifactError, match="cannot load"):
            load_runtime(store, self.stored(store, data, ROWS, SUMS), self.config())
