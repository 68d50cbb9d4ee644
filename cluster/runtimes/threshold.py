"""A runtime of an autoencoder -> the same, answering the threshold that was found in it.

A graph has one constant for all runtimes. Scores of int8 differ between them, and with them the score above which a
sample is odd: the manifest has the threshold of each runtime that the variant was measured in.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cluster.runtimes.base import Runtime, Tensors
from cluster.variants import THRESHOLD


class ThresholdRuntime:
    """Says `value` for each row where the graph says its constant."""

    def __init__(self, runtime: Runtime, value: float) -> None:
        self.name = runtime.name
        self.config = runtime.config
        self._runtime = runtime
        self._value = np.float32(value)

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """See Runtime.infer."""
        answer = self._runtime.infer(inputs)
        answer[THRESHOLD.name] = np.full(answer[THRESHOLD.name].shape, self._value)
        return answer

    def close(self) -> None:
        """See Runtime.close."""
        self._runtime.close()
