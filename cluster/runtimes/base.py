"""Variant + RuntimeConfig -> Runtime: the one door between a stored graph and numbers.

Training evaluates a variant through the same Runtime that will serve it, so an accuracy figure is never of
another executor. A Runtime is used by one thread at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

Tensors = Mapping[str, NDArray[np.generic]]
RuntimeName = Literal["torch", "onnxruntime", "openvino"]
Device = Literal["cpu", "cuda", "tensorrt"]
_DEVICES: dict[RuntimeName, tuple[Device, ...]] = {
    "torch": ("cpu", "cuda"), "onnxruntime": ("cpu", "cuda", "tensorrt"), "openvino": ("cpu",),
}  # fmt: skip
_OFF: dict[str, Any] = {
    "pin": False, "arena": True, "compile": False, "channels_last": False, "device": "cpu", "cuda_graphs": False,
    "gpu_memory_mib": None,
}  # fmt: skip
"""The switches that came later, each with what it is where nobody set it."""


class RuntimeConfig(BaseModel):
    """How to execute a variant. Threads are explicit fields: the defaults of the libraries fight each other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: RuntimeName = "onnxruntime"
    threads: int = Field(default=1, ge=1, le=1024)
    """Threads inside one operator (intra-op), in each stream."""
    inter_op_threads: int = Field(default=1, ge=1, le=1024)
    """Operators that run side by side where the graph branches; above 1 only ONNX Runtime can."""
    streams: int = Field(default=1, ge=1, le=1024)
    """Parts of one batch that are computed side by side, each with `threads` of its own: scales where a small model
    leaves an operator too little work for its threads."""

    pin: bool = False
    """The threads beside the calling one stay on a core each, of those that the process may use: steadier where it has
    them to itself, a loss where several replicas choose the same ones."""
    arena: bool = True
    """ONNX Runtime keeps the memory of the largest batch for the next one; false: it is given back each time."""
    compile: bool = False
    """torch compiles the graph to machine code when it loads it (torch_compile.py): seconds to minutes the first time,
    and a C++ compiler, for fewer and faster kernels afterwards."""
    channels_last: bool = False
    """torch keeps pictures and the weights of convolutions with the channels innermost, the order in which its kernels
    for them compute, so that none of them reorders."""
    device: Device = "cpu"
    """Where the graph computes; "tensorrt" is an NVIDIA GPU through TensorRT. Each stream has a CUDA stream of its own
    there."""
    cuda_graphs: bool = False
    """On a GPU: the kernels of a batch start with one call, and its buffers stay where they are (buckets.py): less work
    for the CPU where kernels are short. Implemented, not measured: no GPU was at hand."""
    gpu_memory_mib: int | None = Field(default=None, ge=1)
    """At most so much of the GPU's memory for activations and weights, of all streams together; torch keeps to it for
    the whole process. None: as it comes. Implemented, not measured."""

    @model_validator(mode="after")
    def _able(self) -> RuntimeConfig:
        if self.inter_op_threads > 1 and self.name != "onnxruntime":
            raise ValueError(
                f"inter_op_threads={self.inter_op_threads}: {self.name} runs operators one after another; "
                "use streams, or runtime onnxruntime"
            )
        if self.pin and self.name == "torch":
            raise ValueError("pin=true: torch does not place its threads; use runtime onnxruntime or openvino")
        if self.pin and self.streams > 1:
            raise ValueError(f"pin=true: the threads of streams={self.streams} would share cores; use one stream")
        if not self.arena and self.name != "onnxruntime":
            raise ValueError(f"arena=false is for runtime onnxruntime, and {self.name} has no such switch; unset it")
        for switch in ("compile", "channels_last"):
            if getattr(self, switch) and self.name != "torch":
                raise ValueError(f"{switch}=true is for runtime torch, and {self.name} decides it itself; unset it")
        if self.device not in _DEVICES[self.name]:
            able = " or ".join(_DEVICES[self.name])
            raise ValueError(f"device={self.device!r}: {self.name} computes on {able} here; use one of these")
        for switch, given in (("cuda_graphs", self.cuda_graphs), ("gpu_memory_mib", self.gpu_memory_mib)):
            if given and self.device == "cpu":
                raise ValueError(f"{switch}={given} is for a GPU, and device='cpu' has none; unset it, or set device")
        if self.gpu_memory_mib is not None and self.gpu_memory_mib < self.streams:
            raise ValueError(f"gpu_memory_mib={self.gpu_memory_mib}: each of streams={self.streams} needs some")
        return self

    @model_serializer(mode="wrap")
    def _as_before(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Switches that came later are written only where they are set: plans, profiles and studies from before them
        keep their keys."""
        written: dict[str, Any] = handler(self)
        return {name: value for name, value in written.items() if name not in _OFF or value != _OFF[name]}

    @property
    def cores(self) -> int:
        """How many cores it can keep busy; on a GPU, those that feed it."""
        return max(self.threads, self.inter_op_threads) * self.streams

    @property
    def lane(self) -> RuntimeConfig:
        """What each stream is loaded with. ONNX Runtime bounds the memory of each; torch that of the process, once."""
        changes: dict[str, Any] = {"streams": 1}
        if self.gpu_memory_mib is not None and self.name == "onnxruntime":
            changes["gpu_memory_mib"] = self.gpu_memory_mib // self.streams
        return self.model_copy(update=changes)

    @property
    def num_gpus(self) -> int:
        """What a replica asks Ray and Kubernetes for."""
        return 0 if self.device == "cpu" else 1

    def __str__(self) -> str:
        """openvino, or openvino 2x4: two streams of four threads; the usual one thread is not said."""
        shape = f" {self.streams}x{self.threads}" if (self.streams, self.threads) != (1, 1) else ""
        return f"{self.name}{shape}" + "".join(
            told for told, on in (
                (f" inter-op {self.inter_op_threads}", self.inter_op_threads > 1), (" pinned", self.pin),
                (" no arena", not self.arena), (" compiled", self.compile), (" channels-last", self.channels_last),
                (f" on {self.device}", self.device != "cpu"),
                (" graphs", self.cuda_graphs), (f" in {self.gpu_memory_mib} MiB", self.gpu_memory_mib is not None),
            ) if on
        )  # fmt: skip


class Runtime(Protocol):
    """Two methods and two facts; see tests/contracts/runtime_contract.py for what every one must do."""

    name: str
    config: RuntimeConfig

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """Run one batch. Shapes and datatypes are the variant's TensorSpecs; the arrays returned are owned by the
        caller, those given are left as they were. Raises InvalidRequest for a missing, extra or mis-shaped tensor and
        InferenceFailed if the executor itself raises or is closed; after both it can be used as before."""
        ...

    def close(self) -> None:
        """Free the executor; a second call does nothing."""
        ...
