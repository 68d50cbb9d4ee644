"""Several loaded copies of one variant -> one Runtime that computes the parts of a batch side by side."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
from numpy.typing import NDArray

from cluster.runtimes.base import Runtime, RuntimeConfig, Tensors
from cluster.tensors import check_inputs
from cluster.variants import Variant


class StreamedRuntime:
    """Splits the rows of each batch over its lanes, in order and near-equal; every lane has threads of its own.

    What has no rows to split, since the first dimension of an input or an output is not free, is the first lane's.
    """

    def __init__(self, lanes: Sequence[Runtime], variant: Variant, config: RuntimeConfig) -> None:
        self.name = lanes[0].name
        self.config = config
        self._lanes = list(lanes)
        self._specs = variant.inputs
        self._splits = all(spec.shape[:1] == (-1,) for spec in (*variant.inputs, *variant.outputs))
        self._pool = ThreadPoolExecutor(max(1, len(lanes) - 1), thread_name_prefix="stream")

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """See Runtime.infer. The first lane computes on the calling thread."""
        parts = self._parts(inputs)
        if len(parts) < 2:
            return self._lanes[0].infer(inputs)
        others = [
            self._pool.submit(lane.infer, part) for lane, part in zip(self._lanes[1:], parts[1:], strict=False)
        ]
        try:
            answers = [self._lanes[0].infer(parts[0])]
        finally:
            wait(others)  # also when the first part failed: a lane is used by one thread at a time
        answers += [other.result() for other in others]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def _parts(self, inputs: Tensors) -> list[Tensors]:
        if len(self._lanes) < 2 or not self._splits:
            return [inputs]
        check_inputs(self._specs, inputs)  # of the whole: a part would be told of with a shape that nobody sent
        counts = {len(array) for array in inputs.values()}
        rows = min(counts, default=0)
        if len(counts) > 1 or rows < 2:  # unequal rows are for the graph itself to take or refuse
            return [inputs]
        lanes = min(len(self._lanes), rows)
        cuts = [rows * k // lanes for k in range(lanes + 1)]
        return [{name: array[a:b] for name, array in inputs.items()} for a, b in itertools.pairwise(cuts)]

    def close(self) -> None:
        """Free all lanes."""
        for lane in self._lanes:
            lane.close()
        self._lanes = self._lanes[:1]  # which says from now on that it is closed
        self._pool.shutdown()
