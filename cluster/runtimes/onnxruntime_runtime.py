"""ONNX graph -> ONNX Runtime session on the CPU or an NVIDIA GPU. Imported only when a variant is loaded with it."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import ArtifactError, InferenceFailed, InvalidRequest, RuntimeUnavailable
from cluster.runtimes.base import Device, RuntimeConfig, Tensors
from cluster.runtimes.buckets import Buckets
from cluster.runtimes.user_cache import user_cache
from cluster.tensors import check_inputs
from cluster.variants import Precision, TensorSpec, Variant

try:
    import onnxruntime as ort
except ImportError as error:
    raise RuntimeUnavailable(f"onnxruntime cannot be imported ({error}); pip install onnxruntime") from error

from cluster.runtimes import onnxruntime_cuda

_PROVIDERS: dict[Device, str] = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
_CPU = "CPUExecutionProvider"
_TENSORRT_BATCH = (1, 32, 256)
"""Least, usual and most rows that an engine is built for; for others TensorRT builds another, which takes seconds."""


def affinities(threads: int) -> str:
    """A core for each thread but the calling one, counted from 1, as ONNX Runtime has it; of the process' own cores,
    over and over if they are too few."""
    cores = sorted(os.sched_getaffinity(0))
    return ";".join(str(cores[number % len(cores)] + 1) for number in range(1, threads))


def providers(
    device: Device, specs: tuple[TensorSpec, ...], precision: Precision = "fp32", *, graphs: bool = False,
    memory_mib: int | None = None,
) -> list[Any]:  # fmt: skip
    """Execution providers in the order in which they are offered each operator, with their options. Each session has a
    CUDA stream of its own, and so has each lane.

    Raises RuntimeUnavailable if the one that was asked for is not built into this onnxruntime.
    """
    if device == "cpu":
        return [_CPU]
    offered = ort.get_available_providers()
    if _PROVIDERS[device] not in offered:
        raise RuntimeUnavailable(_without(device, f"has only {', '.join(offered)}"))
    # Without TF32, which rounds fp32 to ten bits: a variant would answer differently than it was measured.
    cuda_options = {"use_tf32": "0"}
    if memory_mib is not None:  # of its arena, which then grows by no more than it needs
        cuda_options |= {"gpu_mem_limit": str(memory_mib << 20), "arena_extend_strategy": "kSameAsRequested"}
    if device == "cuda":
        return [(_PROVIDERS["cuda"], cuda_options | ({"enable_cuda_graph": "1"} if graphs else {})), _CPU]
    cache = str(user_cache("tensorrt"))
    options = {
        "trt_engine_cache_enable": "True", "trt_engine_cache_path": cache,
        "trt_timing_cache_enable": "True", "trt_timing_cache_path": cache,
        # By the scales in the graph; without a table of calibration it quantizes nothing else.
        "trt_int8_enable": str(precision == "int8"),
    }  # fmt: skip
    if precision == "bf16":  # as the variant was measured: none in a type that it was not made for
        options |= {"trt_bf16_enable": "True"}
    if graphs:
        options |= {"trt_cuda_graph_enable": "True"}
    if memory_mib is not None:
        options |= {"trt_max_workspace_size": str(memory_mib << 20)}
    free = [spec for spec in specs if -1 in spec.shape]
    if all(-1 not in spec.shape[1:] for spec in free):  # else TensorRT finds the bounds out as sizes come
        for bound, rows in zip(("min", "opt", "max"), _TENSORRT_BATCH, strict=True):
            shapes = [f"{spec.name}:{'x'.join(map(str, [rows, *spec.shape[1:]]))}" for spec in free]
            options |= {f"trt_profile_{bound}_shapes": ",".join(shapes)} if shapes else {}
    return [(_PROVIDERS["tensorrt"], options), (_PROVIDERS["cuda"], cuda_options), _CPU]


def _as_text(name: str, array: NDArray[np.generic]) -> NDArray[np.generic]:
    """ONNX has strings, which are UTF-8. Raises InvalidRequest for other bytes."""
    made = np.empty(array.shape, np.object_)
    try:
        made.flat[:] = [each.decode() if isinstance(each, bytes) else str(each) for each in array.ravel().tolist()]
    except UnicodeDecodeError as error:
        wrong = f"{error.object[:40]!r}, which is no UTF-8"
        raise InvalidRequest(f"input {name!r} holds {wrong}; the model takes text") from error
    return made


def _without(device: Device, why: str) -> str:
    return (
        f"device={device!r}: onnxruntime {ort.__version__} {why}; pip uninstall onnxruntime, pip install "
        f"'onnxruntime-gpu[cuda,cudnn]'{' and tensorrt' if device == 'tensorrt' else ''} on a machine with an NVIDIA "
        "GPU, or use device='cpu'"
    )


class OnnxRuntime:
    """One InferenceSession; `infer` releases the GIL while the graph runs."""

    name = "onnxruntime"

    def __init__(self, store: ArtifactStore, variant: Variant, config: RuntimeConfig) -> None:
        self.config = config
        self._specs = variant.inputs
        self._texts = [spec.name for spec in variant.inputs if spec.datatype == "BYTES"]
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
        wanted = providers(
            config.device, variant.inputs, variant.precision, graphs=config.cuda_graphs,
            memory_mib=config.gpu_memory_mib,
        )  # fmt: skip
        if config.device != "cpu" and hasattr(ort, "preload_dlls"):
            ort.preload_dlls()  # CUDA and cuDNN of torch or NVIDIA's packages, where the system has none
        try:
            self._session = ort.InferenceSession(data, options, providers=wanted)
        except Exception as error:
            graphs = ", with cuda_graphs=true, which wants all of it on the GPU" if config.cuda_graphs else ""
            raise ArtifactError(
                f"ONNX Runtime cannot load variant {variant.name} ({variant.id}){graphs}: {error}"
            ) from error
        if config.device != "cpu":
            self._session.disable_fallback()
            if _PROVIDERS[config.device] not in (able := self._session.get_providers()):
                # ONNX Runtime goes on without what does not load, a library or a driver, and only writes that down.
                raise RuntimeUnavailable(_without(config.device, f"could not load it and took {', '.join(able)}"))
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
        self._buckets: Buckets | None = None
        self._run_options: ort.RunOptions | None = None
        if config.cuda_graphs:
            session, self._run_options = self._session, onnxruntime_cuda.without_graph()
            self._buckets = Buckets(variant, lambda bucket: onnxruntime_cuda.slot_of(session, variant, bucket))

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """See Runtime.infer."""
        if self._session is None:
            raise InferenceFailed("this runtime is closed; load the variant again")
        check_inputs(self._specs, inputs)
        if self._texts:
            inputs = dict(inputs) | {name: _as_text(name, inputs[name]) for name in self._texts}
        try:
            if self._buckets is not None and (answer := self._buckets.infer(inputs)) is not None:
                return answer
            outputs = self._session.run(self._outputs, dict(inputs), self._run_options)
        except Exception as error:
            raise InferenceFailed(f"ONNX Runtime failed: {error}") from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        """Free the session, and graphs captured of it."""
        self._session = self._buckets = None
