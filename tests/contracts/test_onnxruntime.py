"""The ONNX Runtime keeps the contract."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import onnxruntime
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from cluster.artifacts import ArtifactStore
from cluster.runtimes import Runtime, load_runtime
from cluster.runtimes.onnxruntime_runtime import OnnxRuntime, affinities
from cluster.variants import Variant
from tests.contracts.onnx_graphs import OnnxContract
from tests.contracts.runtime_contract import eager, lanes_of, model, pictures

__all__ = ["eager", "model", "pictures"]  # fixtures


class TestOnnxRuntime(OnnxContract):
    runtime = "onnxruntime"

    def threads_of(self, runtime: Runtime) -> set[int]:
        return {options.intra_op_num_threads for options in self.options(runtime)}

    def options(self, runtime: Runtime) -> list[onnxruntime.SessionOptions]:
        lanes = lanes_of(runtime)
        assert all(isinstance(lane, OnnxRuntime) for lane in lanes)
        return [lane._session.get_session_options() for lane in lanes]

    @pytest.mark.parametrize("inter_op_threads", [1, 3])
    def test_operators_side_by_side(
        self, store: ArtifactStore, variant: Variant, pictures: NDArray[np.uint8], eager: NDArray[np.float32],
        inter_op_threads: int,
    ) -> None:  # fmt: skip
        runtime = load_runtime(store, variant, self.config(inter_op_threads=inter_op_threads))
        np.testing.assert_allclose(runtime.infer({"image": pictures})["logits"], eager, atol=1e-4)
        modes = onnxruntime.ExecutionMode
        mode = modes.ORT_PARALLEL if inter_op_threads > 1 else modes.ORT_SEQUENTIAL
        for options in self.options(runtime):
            assert (options.inter_op_num_threads, options.execution_mode) == (inter_op_threads, mode)
            for kind in ("intra", "inter"):
                assert options.get_session_config_entry(f"session.{kind}_op.allow_spinning") == "0"
        runtime.close()

    def test_pinned_threads_and_no_arena_answer_the_same(
        self, store: ArtifactStore, variant: Variant, pictures: NDArray[np.uint8], eager: NDArray[np.float32]
    ) -> None:
        if self.streams > 1:
            with pytest.raises(ValidationError, match="would share cores"):
                self.config(threads=2, pin=True)
            return
        runtime = load_runtime(store, variant, self.config(threads=2, pin=True, arena=False))
        np.testing.assert_allclose(runtime.infer({"image": pictures})["logits"], eager, atol=1e-4)
        for options in self.options(runtime):
            assert not options.enable_cpu_mem_arena
            assert options.get_session_config_entry("session.intra_op_thread_affinities") == affinities(2)
        runtime.close()

    def test_the_operating_system_counts_the_same_threads(self, store: ArtifactStore, variant: Variant) -> None:
        """In a process without other threads. One thread is the caller's own: a session of three adds two."""
        code = (
            "import sys, psutil, numpy\n"
            "from cluster.artifacts import ArtifactStore\n"
            "from cluster.runtimes import RuntimeConfig, load_runtime\n"
            "store, streams = ArtifactStore(sys.argv[1]), int(sys.argv[3])\n"
            "for threads in (1, 3):\n"
            "    config = RuntimeConfig(threads=threads, streams=streams)\n"
            "    runtime = load_runtime(store, store.get(sys.argv[2]), config)\n"
            "    runtime.infer({'image': numpy.zeros((8, 1, 28, 28), numpy.uint8)})\n"
            "    print(psutil.Process().num_threads())\n"
            "    runtime.close()\n"
        )
        command = [sys.executable, "-c", code, str(store.root), variant.id, str(self.streams)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        one, three = map(int, done.stdout.split())
        assert three == one + 2 * self.streams
