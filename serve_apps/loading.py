"""Variant + RuntimeConfig -> a model that is loaded, and warm for every batch size it will meet."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError
from cluster.runtimes import Runtime, RuntimeConfig, load_runtime
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import Variant
from serve_apps.executor import Model
from serve_apps.sequences import SequenceBuckets

_WARM_UP_S = 5.0
"""At most: a large model is slow enough that what it compiles at the first batch of a size hardly shows."""
_TIMED = 3
"""Executions of each power of two, whose median the latency model begins with."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """What executes batches, and what it was made of."""

    variant: Variant
    config: RuntimeConfig
    warm_to: int
    """Batch sizes up to this one need no preparation any more."""
    runtimes: tuple[Runtime, ...]
    """One for each executor thread."""
    model: Model = field(repr=False)

    def serves(self, variant: Variant, config: RuntimeConfig, max_batch_size: int) -> bool:
        """True if it may go on as it is."""
        return (variant.id, config) == (self.variant.id, self.config) and max_batch_size <= self.warm_to

    def close(self) -> None:
        """Free the runtimes; no executor may be inside one."""
        for runtime in self.runtimes:
            runtime.close()


def load(
    store: ArtifactStore, variant: Variant, config: RuntimeConfig, *, max_batch_size: int, executors: int = 1
) -> Loaded:
    """Load and warm up; takes milliseconds to seconds, so never on an event loop. Raises as `load_runtime` does, and
    InferenceFailed if the graph does not run."""
    runtimes: list[Runtime] = []
    try:
        for _ in range(executors):
            runtimes.append(load_runtime(store, variant, config))
            seconds = _warm_up(runtimes[-1], variant, max_batch_size)
    except BaseException:
        for runtime in runtimes:
            runtime.close()
        raise
    model = Model(
        name=variant.name, version=variant.id, accuracy=_rank(variant, config.name),
        infer=tuple(runtime.infer for runtime in runtimes), seconds=seconds,
    )  # fmt: skip
    return Loaded(variant, config, max_batch_size, tuple(runtimes), model)


def best_first(loaded: Sequence[Loaded]) -> tuple[Loaded, ...]:
    """By accuracy in the runtime that serves them. Raises ConfigError if one of several was not measured, or they are
    measured in different words."""
    if len(loaded) > 1:
        unknown = [each.variant.name for each in loaded if each.model.accuracy == -np.inf]
        if unknown:
            raise ConfigError(
                f"variants {unknown} have no measured accuracy, so nobody can say which of {len(loaded)} resident "
                "variants is the better one; make them with `sluice compress`, which measures, or serve one alone"
            )
        metrics = {each.variant.accuracies[0].metric for each in loaded}
        if len(metrics) > 1:
            raise ConfigError(f"the resident variants are measured in {sorted(metrics)}; they must share one metric")
    return tuple(sorted(loaded, key=lambda each: -each.model.accuracy))


def _rank(variant: Variant, runtime: str) -> float:
    """Larger is better; minus infinity if nobody measured it."""
    accuracy = variant.accuracy_in(runtime) or variant.accuracy
    if accuracy is None:
        return -np.inf
    return accuracy.value if accuracy.higher_is_better else -accuracy.value


def _warm_up(runtime: Runtime, variant: Variant, max_batch_size: int) -> dict[int, float]:
    """Seconds by batch size, of those that there was time to measure."""
    # The first execution allocates and plans, for OpenVINO that of each batch size anew: no user should wait for that.
    end = time.monotonic() + _WARM_UP_S
    powers = [1 << k for k in range(max_batch_size.bit_length())]  # first, in case that the time runs out
    seconds = {}
    for size in dict.fromkeys([*powers, *range(1, max_batch_size + 1)]):
        infer = partial(_seconds, runtime, _noughts(variant, size))
        first = infer()
        if size in powers or size == max_batch_size:
            left = end - time.monotonic()
            seconds[size] = statistics.median([infer() for _ in range(_TIMED)]) if left > _TIMED * first else first
        if time.monotonic() > end:
            break
    _warm_buckets(runtime, variant, end)
    return seconds


def _warm_buckets(runtime: Runtime, variant: Variant, end: float) -> None:
    """Shorter sequences, one of each length that is computed: the rest of a shape costs little after its first batch.
    """
    buckets = SequenceBuckets.of(variant)
    for length in buckets.lengths[:-1] if buckets is not None else ():
        if time.monotonic() > end:
            return
        runtime.infer(_noughts(variant, 1, length))


def _noughts(variant: Variant, rows: int, length: int | None = None) -> dict[str, NDArray[np.generic]]:
    """A batch; its sequences of that length, or their longest."""
    inputs: dict[str, NDArray[np.generic]] = {}
    for spec in variant.inputs:
        shape = list(variant.example_shape(spec, rows))
        if length is not None and variant.sequence is not None and spec == variant.inputs[0]:
            shape[variant.sequence.axis] = length
        dtype = NUMPY_OF_DATATYPE[spec.datatype]
        inputs[spec.name] = np.full(shape, b"", dtype) if dtype.hasobject else np.zeros(shape, dtype)
    return inputs


def _seconds(runtime: Runtime, inputs: dict[str, NDArray[np.generic]]) -> float:
    began = time.perf_counter()
    runtime.infer(inputs)
    return time.perf_counter() - began
