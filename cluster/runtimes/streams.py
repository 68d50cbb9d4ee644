"""Several loaded copies of one variant -> one Runtime that computes the parts of a batch side by side."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait

import numpy as np
from numpy.typing import NDArray

from cluster.runtimes.base import Runtime, RuntimeConfig, Tensors


class StreamedRuntime:
    """Splits the rows of each batch over its lanes, in order and near-equal; every lane has threads of its own."""

    def __init__(self, lanes: Sequence[Runtime], config: RuntimeConfig) -> None:
        self.name = lanes[0].name
        self.config = config
        self._lanes = list(lanes)
        self._pool = ThreadPoolExecutor(len(lanes) - 1, thread_name_prefix="stream")

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """See Runtime.infer. The first lane computes on the calling thread."""
        rows = min((array.shape[0] for array in inputs.values() if array.ndim), default=0)
        count = min(len(self._lanes), rows)
        if count < 2:
            return self._lanes[0].infer(inputs)
        cuts = [rows * k // count for k in range(count + 1)]
        parts = [{name: array[a:b] for name, array in inputs.items()} for a, b in zip(cuts, cuts[1:], strict=False)]
        # Inputs of unequal rows: the last part takes what is over, and the lane's own check names the mistake.
        parts[-1] = {name: array[cuts[-2] :] for name, array in inputs.items()}
        others = [self._pool.submit(lane.infer, part) for lane, part in zip(self._lanes[1:], parts[1:], strict=False)]
        try:
            answers = [self._lanes[0].infer(parts[0])]
        finally:
            wait(others)  # also when the first part failed: a lane is used by one thread at a time
        answers += [other.result() for other in others]
        return {name: np.concatenate([answer[name] for answer in answers]) for name in answers[0]}

    def close(self) -> None:
        """Free all lanes."""
        for lane in self._lanes:
            lane.close()
        self._lanes = self._lanes[:1]  # which says from now on that it is closed
        self._pool.shutdown()
