"""The ONNX Runtime keeps the contract."""

from __future__ import annotations

import contextlib
import io
import logging
import subprocess
import sys
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

from cluster.artifacts import ArtifactStore
from cluster.errors import ArtifactError
from cluster.runtimes import Runtime, RuntimeConfig, load_runtime
from cluster.runtimes.onnxruntime_runtime import OnnxRuntime
from cluster.variants import Variant
from tests.contracts.runtime_contract import ROWS, SUMS, RuntimeContract, eager, model, pictures
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

    @pytest.mark.parametrize("location", ["weights.bin", "/weights.bin", "../weights.bin"])
    def test_a_graph_that_reads_its_weights_from_a_file_is_refused(
        self, store: ArtifactStore, location: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A variant is self-contained: what lies beside the process is none of its business."""
        monkeypatch.chdir(tmp_path)
        (tmp_path / "weights.bin").write_bytes(bytes(16))
        weights = onnx.TensorProto(name="w", data_type=1, dims=[4], data_location=onnx.TensorProto.EXTERNAL)
        place = location if location[0] != "/" else str(tmp_path / "weights.bin")
        weights.external_data.add(key="location", value=place)
        x, y = (onnx.helper.make_tensor_value_info(name, 1, [None, 4]) for name in "xy")
        graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [x], [y], [weights])
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
        with pytest.raises(ArtifactError, match="cannot load"):
            load_runtime(store, self.stored(store, model.SerializeToString(), ROWS, SUMS), RuntimeConfig())

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
