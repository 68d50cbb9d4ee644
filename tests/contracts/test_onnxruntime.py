"""The ONNX Runtime keeps the contract."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import sys

import torch
from torch import nn

from cluster.artifacts import ArtifactStore
from cluster.runtimes import Runtime
from cluster.runtimes.onnxruntime_runtime import OnnxRuntime
from cluster.variants import Variant
from tests.contracts.runtime_contract import RuntimeContract, eager, model, pictures
from train_jobs.export import to_onnx

__all__ = ["eager", "model", "pictures"]  # fixtures


class TestOnnxRuntime(RuntimeContract):
    runtime = "onnxruntime"
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
        assert isinstance(runtime, OnnxRuntime)
        return runtime._session.get_session_options().intra_op_num_threads

    def test_the_operating_system_counts_the_same_threads(self, store: ArtifactStore, variant: Variant) -> None:
        """In a process without other threads. One thread is the caller's own: a session of three adds two."""
        code = (
            "import sys, psutil, numpy\n"
            "from cluster.artifacts import ArtifactStore\n"
            "from cluster.runtimes import RuntimeConfig, load_runtime\n"
            "store = ArtifactStore(sys.argv[1])\n"
            "for threads in (1, 3):\n"
            "    runtime = load_runtime(store, store.get(sys.argv[2]), RuntimeConfig(threads=threads))\n"
            "    runtime.infer({'image': numpy.zeros((8, 1, 28, 28), numpy.uint8)})\n"
            "    print(psutil.Process().num_threads())\n"
            "    runtime.close()\n"
        )
        command = [sys.executable, "-c", code, str(store.root), variant.id]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        one, three = map(int, done.stdout.split())
        assert three == one + 2, done.stderr
