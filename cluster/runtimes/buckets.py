"""Batches of any size -> the few sizes that have a CUDA graph, and back.

A CUDA graph replays the same kernels at the same addresses, so it fits one batch size and its buffers stay where they
are. There is one for each power of two (a bucket): a batch is padded with noughts to the next of them, and what is
computed of those rows is dropped. A bucket is captured when a batch first needs it, which is while a replica warms up.
What is larger than the largest bucket, or has no rows, is for the runtime to compute as it would without graphs.

How a bucket is captured is the runtime's own: torch_cuda.py, onnxruntime_cuda.py. No GPU is needed for what is here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError
from cluster.runtimes.base import Tensors
from cluster.variants import TensorSpec, Variant

LARGEST = 256
"""Above it a GPU has work enough for kernels to follow one another without a wait."""


def bucket_of(rows: int, largest: int = LARGEST) -> int | None:
    """The least power of two that holds `rows`; None: no bucket does."""
    return 1 << (rows - 1).bit_length() if 1 <= rows <= largest else None


@dataclass(frozen=True)
class Slot:
    """One bucket's buffers on the host, in the order of the variant's inputs and outputs, all of as many rows."""

    inputs: tuple[NDArray[np.generic], ...]
    outputs: tuple[NDArray[np.generic], ...]
    replay: Callable[[], None]
    """From what lies in `inputs` to `outputs`; back when it is there."""


class Buckets:
    """The slots of one loaded variant. Used by one thread at a time, as its runtime is."""

    def __init__(self, variant: Variant, capture: Callable[[int], Slot], largest: int = LARGEST) -> None:
        """`capture` makes the slot of a bucket, the smallest at once. Raises ConfigError for a variant whose batch is
        not all that is free, or whose graph cannot be captured."""
        _refuse_unless_rows(variant)
        self._inputs, self._outputs = variant.inputs, variant.outputs
        self._capture, self._largest = capture, largest
        self._slots: dict[int, Slot] = {}
        try:
            self._slot(1)
        except ConfigError:
            raise
        except Exception as error:
            raise ConfigError(
                f"cuda_graphs=true: variant {variant.name} cannot be captured as a graph ({error})"[:600] + "; unset it"
            ) from error

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]] | None:
        """The answer to checked inputs, as arrays of the caller's own; None: no bucket holds them."""
        given = [inputs[spec.name] for spec in self._inputs]
        counts = {len(array) for array in given}
        bucket = bucket_of(counts.pop(), self._largest) if len(counts) == 1 else None
        if bucket is None:
            return None
        slot, rows = self._slot(bucket), len(given[0])
        for buffer, array in zip(slot.inputs, given, strict=True):
            buffer[:rows] = array
            buffer[rows:] = 0  # noughts are values that any graph takes, and answers do not depend on earlier batches
        slot.replay()
        return {
            spec.name: buffer[:rows].copy() for spec, buffer in zip(self._outputs, slot.outputs, strict=True)
        }

    def _slot(self, bucket: int) -> Slot:
        if bucket in self._slots:
            return self._slots[bucket]
        slot = self._capture(bucket)
        for spec, buffer in zip(self._outputs, slot.outputs, strict=True):
            if buffer.shape[:1] != (bucket,):
                raise ConfigError(
                    f"cuda_graphs=true: output {spec.name!r} has shape {list(buffer.shape)} for a batch of {bucket}, "
                    "and padding needs a row for each row; unset it"
                )
        self._slots[bucket] = slot
        return slot

    def close(self) -> None:
        """Forget the slots, and what their graphs hold on to."""
        self._slots.clear()


def _refuse_unless_rows(variant: Variant) -> None:
    for kind, specs in (("input", variant.inputs), ("output", variant.outputs)):
        for spec in specs:
            if not _is_rows(spec):
                raise ConfigError(
                    f"cuda_graphs=true: {kind} {spec.name!r} of variant {variant.name} has shape {list(spec.shape)}, "
                    "and a graph is captured for batches alone: the first size free, no other; unset it"
                )


def _is_rows(spec: TensorSpec) -> bool:
    return spec.shape[:1] == (-1,) and -1 not in spec.shape[1:] and spec.datatype != "BYTES"


def shapes_of(specs: Sequence[TensorSpec], bucket: int) -> list[tuple[int, ...]]:
    """Of tensors whose rows alone are free, a bucket long."""
    return [(bucket, *spec.shape[1:]) for spec in specs]
