"""ONNX graph -> ONNX Runtime session on the CPU. Imported only when a variant is loaded with it."""

from __future__ import annotations

import os

import numpy as np
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import ArtifactError, InferenceFailed, RuntimeUnavailable
from cluster.runtimes.base import RuntimeConfig, Tensors
from cluster.tensors import check_inputs
from cluster.variants import Variant

try:
    import onnxruntime as ort
except ImportError as error:
    raise RuntimeUnavailable(f"onnxruntime cannot be imported ({error}); pip install onnxruntime") from error


def affinities(threads: int) -> str:
    """A core for each thread but the calling one, counted from 1, as ONNX Runtime has it; of the process' own cores,
    over and over if they are too few."""
    cores = sorted(os.sched_getaffinity(0))
    return ";".join(str(cores[number % len(cores)] + 1) for number in range(1, threads))


class OnnxRuntime:
    """One InferenceSession; `infer` releases the GIL while the graph runs."""

    name = "onnxruntime"

    def __init__(self, store: ArtifactStore, variant: Variant, config: RuntimeConfig) -> None:
        self.config = config
        self._specs = variant.inputs
        options = ort.SessionOptions()
        options.intra_op_num_threads = config.threads
        options.inter_op_num_threads = config.inter_op_threads
        if config.inter_op_threads > 1:
            options.execution_mode = ort.ExecutionMode.ORT_PARALLEL
        options.enable_cpu_mem_arena = config.arena
        if config.pin and config.threads > 1:
            options.add_session_config_entry("session.intra_op_thread_affinities", affinities(config.threads))
        options.log_severity_level = 3
        # Spinning threads win a little latency on an idle machine and starve everything else on a shared one.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.add_session_config_entry("session.inter_op.allow_spinning", "0")
        data = store.read(variant, variant.model_file.path)
        try:
            self._session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ArtifactError(f"ONNX Runtime cannot load variant {variant.name} ({variant.id}): {error}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        for what, named, specs in (
            ("inputs", [node.name for node in self._session.get_inputs()], variant.inputs),
            ("outputs", self._outputs, variant.outputs),
        ):
            if sorted(named) != sorted(spec.name for spec in specs):
                raise ArtifactError(
                    f"variant {variant.name} ({variant.id}) has {what} {named} in its graph, "
                    f"{[spec.name for spec in specs]} in its manifest; make it again"
                )

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """See Runtime.infer."""
        if self._session is None:
            raise InferenceFailed("this runtime is closed; load the variant again")
        check_inputs(self._specs, inputs)
        try:
            outputs = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            raise InferenceFailed(f"ONNX Runtime failed: {error}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        """Free the session."""
        self._session = None
