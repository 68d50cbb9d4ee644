"""Scores of overlapping windows -> a score for each point of the series.

Shapes: N windows of W points each, one point apart, over T = N + W - 1 points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]


def covering(scores_N: Scores, window: int) -> Scores:
    """(T,): the mean score of the windows that a point lies in: 1 at the ends, W in the middle."""
    sums = np.concatenate([[0.0], np.cumsum(scores_N)])
    points = np.arange(len(scores_N) + window - 1)
    first, end = np.maximum(points - window + 1, 0), np.minimum(points + 1, len(scores_N))
    return np.asarray((sums[end] - sums[first]) / (end - first))


def centred(scores_N: Scores, window: int) -> Scores:
    """(T,): the score of the window about a point, repeated at the ends: as TSB-UAD scores its autoencoder."""
    before = window // 2
    return np.concatenate([
        np.full(before, scores_N[0]), scores_N, np.full(window - 1 - before, scores_N[-1])
    ])  # fmt: skip
