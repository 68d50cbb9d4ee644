"""Variant + RuntimeConfig -> a runtime that is loaded, and warm for every batch size it will meet."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from cluster.artifacts import ArtifactStore
from cluster.runtimes import Runtime, RuntimeConfig, load_runtime
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import Variant

_WARM_UP_S = 5.0
"""At most: a large model is slow enough that what it compiles at the first batch of a size hardly shows."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """What executes batches, and what it was made of."""

    variant: Variant
    config: RuntimeConfig
    warm_to: int
    """Batch sizes up to this one need no preparation any more."""
    runtime: Runtime

    def serves(self, variant: Variant, config: RuntimeConfig, max_batch_size: int) -> bool:
        """True if it may go on as it is."""
        return (variant.id, config) == (self.variant.id, self.config) and max_batch_size <= self.warm_to


def load(store: ArtifactStore, variant: Variant, config: RuntimeConfig, *, max_batch_size: int) -> Loaded:
    """Load and warm up; takes milliseconds to seconds, so never on an event loop. Raises as `load_runtime` does, and
    InferenceFailed if the graph does not run."""
    runtime = load_runtime(store, variant, config)
    try:
        _warm_up(runtime, variant, max_batch_size)
    except BaseException:
        runtime.close()
        raise
    return Loaded(variant, config, max_batch_size, runtime)


def _warm_up(runtime: Runtime, variant: Variant, max_batch_size: int) -> None:
    # The first execution allocates and plans, for OpenVINO that of each batch size anew: no user should wait for that.
    end = time.monotonic() + _WARM_UP_S
    powers = [1 << k for k in range(max_batch_size.bit_length())]  # first, in case that the time runs out
    for size in dict.fromkeys([*powers, *range(1, max_batch_size + 1)]):
        runtime.infer(
            {
                spec.name: np.zeros([size, *(max(n, 1) for n in spec.shape[1:])], NUMPY_OF_DATATYPE[spec.datatype])
                for spec in variant.inputs
            }
        )
        if time.monotonic() > end:
            return
