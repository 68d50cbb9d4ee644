"""How sure are we of an accuracy? Intervals and verdicts from counts of right answers.

Jeffreys interval: Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion", Statistical Science 16(2),
2001, p. 108 (with its rule that k=0 starts at 0 and k=n ends at 1). Comparisons are paired: both variants saw the same
pictures, so only the pictures on which they disagree carry information.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from cluster.variants import Verdict

Flags = NDArray[np.bool_]
_RESAMPLES = 20_000


def jeffreys(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval for a proportion of k in n. Raises ValueError unless 0 <= k <= n and n > 0."""
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"k={k} of n={n} is no proportion; need 0 <= k <= n and n > 0")
    tail = (1.0 - confidence) / 2.0
    low = 0.0 if k == 0 else float(beta.ppf(tail, k + 0.5, n - k + 0.5))
    high = 1.0 if k == n else float(beta.ppf(1.0 - tail, k + 0.5, n - k + 0.5))
    return low, high


def lower_bound(k: int, n: int, confidence: float = 0.95) -> float:
    """One-sided lower bound: the proportion is at least this with `confidence`."""
    return jeffreys(k, n, 1.0 - 2.0 * (1.0 - confidence))[0]


def upper_bound(k: int, n: int, confidence: float = 0.95) -> float:
    """One-sided upper bound."""
    return jeffreys(k, n, 1.0 - 2.0 * (1.0 - confidence))[1]


def paired_delta(
    parent_correct: Flags, child_correct: Flags, confidence: float = 0.95, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Accuracy of the child minus the parent's on the same n pictures, with its paired bootstrap interval.

    Resampling n pictures only moves the counts won, lost and tied, which are multinomial: they are drawn directly.
    Half a count is added to each, so that no disagreement at all still leaves an interval of honest width.
    """
    _check_paired(parent_correct, child_correct)
    n = len(parent_correct)
    won = int(np.sum(child_correct & ~parent_correct))
    lost = int(np.sum(parent_correct & ~child_correct))
    weights = np.array([won + 0.5, lost + 0.5, n - won - lost + 0.5])
    draws = np.random.default_rng(seed).multinomial(n, weights / weights.sum(), size=_RESAMPLES)
    deltas = (draws[:, 0] - draws[:, 1]) / n
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(deltas, [tail, 1.0 - tail])
    return (won - lost) / n, (float(low), float(high))


def _check_paired(*columns: NDArray[np.generic]) -> None:
    shapes = [column.shape for column in columns]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1 or shapes[0] == (0,):
        raise ValueError(f"shapes {shapes} must be equal, flat and not empty: one entry for each picture")


def judge_relative(parent_correct: Flags, child_correct: Flags, max_drop: float) -> Verdict:
    """Is the child at most `max_drop` (a fraction: 0.005 is half a point) below its parent, one-sided 95%?"""
    _, (low, high) = paired_delta(parent_correct, child_correct, confidence=0.90)
    if low >= -max_drop:
        return "holds"
    return "fails" if high < -max_drop else "unclear"


def judge_absolute(k: int, n: int, floor: float) -> Verdict:
    """Is the accuracy at least `floor`, one-sided 95%?"""
    if lower_bound(k, n) >= floor:
        return "holds"
    return "fails" if upper_bound(k, n) < floor else "unclear"


def worst_class_drop(labels: NDArray[np.int64], parent_correct: Flags, child_correct: Flags) -> float:
    """The largest loss of accuracy in any one class, as a fraction; negative if every class gained."""
    _check_paired(labels, parent_correct, child_correct)
    drops = [
        float(np.mean(parent_correct[labels == label]) - np.mean(child_correct[labels == label]))
        for label in np.unique(labels)
    ]
    return max(drops)
