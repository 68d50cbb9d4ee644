"""OpenVINO keeps the contract."""

from __future__ import annotations

import contextlib
import io
import logging

import torch
from torch import nn

from cluster.runtimes import Runtime
from cluster.runtimes.openvino_runtime import OpenVinoRuntime
from tests.contracts.runtime_contract import RuntimeContract, eager, model, pictures
from train_jobs.export import to_onnx

__all__ = ["eager", "model", "pictures"]  # fixtures


class TestOpenVino(RuntimeContract):
    runtime = "openvino"
    format = "onnx"
    file = "model.onnx"

    def export_model(self, model: nn.Module) -> bytes:
        return to_onnx(model)

    def export_module(self, module: nn.Module, example: torch.Tensor) -> bytes:
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        with contextlib.redirect_stdout(io.StringIO()):
            program = torch.onnx.export(
                module.eval(), (example,), dynamo=True, opset_version=18, verbose=False, input_names=["x"],
                output_names=["y"], dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
            )  # fmt: skip
        assert program is not None
        return program.model_proto.SerializeToString()

    def threads_of(self, runtime: Runtime) -> int:
        assert isinstance(runtime, OpenVinoRuntime)
        return int(runtime._model.get_property("INFERENCE_NUM_THREADS"))
