"""An NVIDIA GPU for the torch runtime: a CUDA stream for each lane, a bound on memory, and batches as CUDA graphs whose
buffers on the host are pinned. Implemented, not measured: no GPU was at hand.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch

from cluster.errors import ConfigError, RuntimeUnavailable
from cluster.runtimes.base import RuntimeConfig
from cluster.runtimes.buckets import Slot

_WARM_UPS = 3
"""Batches before a capture: libraries choose their kernels and allocate at the first ones, which none may meanwhile."""
_CAPTURING = threading.Lock()
"""One lane at a time; what the others compute meanwhile is not captured."""
Module = Callable[..., Any]


def prepared(config: RuntimeConfig) -> torch.cuda.Stream:
    """The stream of one lane. Raises RuntimeUnavailable where torch has no GPU to compute on, ConfigError for more
    memory than the GPU has."""
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built without CUDA"
        raise RuntimeUnavailable(
            f"device='cuda': torch {torch.__version__}, {built}, finds no NVIDIA GPU here; give the process one (its "
            "driver, CUDA_VISIBLE_DEVICES), pip install a torch with CUDA, or use device='cpu'"
        )
    # Left to itself cuDNN rounds fp32 to TF32's ten bits, and a variant would answer differently than it was measured.
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    if config.gpu_memory_mib is not None:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(share(config.gpu_memory_mib, total))
    return torch.cuda.Stream()  # type: ignore[no-untyped-call]


def share(mib: int, total_bytes: int) -> float:
    """Of a GPU with so much memory. Raises ConfigError for more than all of it."""
    if (mib << 20) > total_bytes:
        raise ConfigError(
            f"gpu_memory_mib={mib} is more than the GPU's {total_bytes >> 20} MiB; lower it, or unset it for all"
        )
    return (mib << 20) / total_bytes


class Graphs:
    """Captures a module on the GPU, bucket by bucket. Their intermediate values share memory: one replays at a time."""

    def __init__(self, module: Module, batch: Callable[[int], list[torch.Tensor]], stream: torch.cuda.Stream) -> None:
        """`batch` makes inputs of so many rows where and how the module takes them."""
        self._module, self._batch, self._stream = module, batch, stream
        self._pool = torch.cuda.graph_pool_handle()

    def capture(self, bucket: int) -> Slot:
        """See buckets.Buckets."""
        with _CAPTURING, torch.inference_mode(), torch.cuda.stream(self._stream):
            given = self._batch(bucket)
            for _ in range(_WARM_UPS):
                self._module(*given)
            graph = torch.cuda.CUDAGraph()
            # thread_local: what other lanes allocate on theirs does not end this capture.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                made = self._module(*given)
            return slot_of(
                given, made if isinstance(made, tuple | list) else (made,), graph.replay, self._stream.synchronize
            )


def slot_of(
    given: Sequence[torch.Tensor], made: Sequence[torch.Tensor], replay: Callable[[], None],
    synchronize: Callable[[], None],
) -> Slot:  # fmt: skip
    """Buffers on the host for what `replay` reads and writes on the device; pinned, so that copies need no detour."""
    inputs, outputs = ([_on_host(tensor) for tensor in tensors] for tensors in (given, made))

    def run() -> None:
        for place, buffer in zip(given, inputs, strict=True):
            place.copy_(buffer, non_blocking=True)
        replay()
        for buffer, place in zip(outputs, made, strict=True):
            buffer.copy_(place, non_blocking=True)
        synchronize()

    return Slot(tuple(each.numpy() for each in inputs), tuple(each.numpy() for each in outputs), run)


def _on_host(tensor: torch.Tensor) -> torch.Tensor:
    return torch.zeros(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
