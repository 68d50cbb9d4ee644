"""How sure are we of an accuracy? Intervals from counts of right answers, and verdicts on any figure that has bounds.

Jeffreys interval: Brown, Cai and DasGupta, "Interval Estimation for a Binomial Proportion", Statistical Science 16(2),
2001, p. 108 (with its rule that k=0 starts at 0 and k=n ends at 1). Comparisons are paired: both variants saw the same
pictures, so only the pictures on which they disagree carry information.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Verdict = Literal["holds", "fails", "unclear"]
Flags = NDArray[np.bool_]
_RESAMPLES = 20_000


def jeffreys(k: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Two-sided interval for a proportion of k in n. Raises ValueError unless 0 <= k <= n and n > 0."""
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"k={k} of n={n} is no proportion; need 0 <= k <= n and n > 0")
    from scipy.stats import beta  # seconds to import, and every training worker imports this module

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


@dataclass(frozen=True)
class PairedDelta:
    """Accuracy of a child minus its parent's, as a fraction: the two-sided 95% interval, and bounds that each hold
    with 95% one-sided."""

    value: float
    interval: tuple[float, float]
    bounds: tuple[float, float]


def paired_delta(parent_correct: Flags, child_correct: Flags, seed: int = 0) -> PairedDelta:
    """The difference on the same n pictures, with its paired bootstrap.

    Resampling n pictures only moves the counts won, lost and tied, which are multinomial: they are drawn directly.
    Half a count is added to each, so that no disagreement at all still leaves an interval of honest width.
    """
    _check_paired(parent_correct, child_correct)
    n = len(parent_correct)
    won = int(np.sum(child_correct & ~parent_correct))
    lost = int(np.sum(parent_correct & ~child_correct))
    weights = np.array([won + 0.5, lost + 0.5, n - won - lost + 0.5])
    draws = np.random.default_rng(seed).multinomial(n, weights / weights.sum(), size=_RESAMPLES)
    low, low_bound, high_bound, high = map(
        float, np.quantile((draws[:, 0] - draws[:, 1]) / n, [0.025, 0.05, 0.95, 0.975])
    )
    return PairedDelta((won - lost) / n, (low, high), (low_bound, high_bound))


def _check_paired(*columns: NDArray[np.generic]) -> None:
    shapes = [column.shape for column in columns]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1 or shapes[0] == (0,):
        raise ValueError(f"shapes {shapes} must be equal, flat and not empty: one entry for each picture")


def judge_least(bounds: tuple[float, float], floor: float) -> Verdict:
    """Is a figure with these one-sided 95% bounds at least `floor`?"""
    low, high = bounds
    if low >= floor:
        return "holds"
    return "fails" if high < floor else "unclear"


def judge_most(bounds: tuple[float, float], limit: float) -> Verdict:
    """Is it at most `limit`?"""
    return judge_least((-bounds[1], -bounds[0]), -limit)


def judge_relative(bounds: tuple[float, float], max_drop: float) -> Verdict:
    """Is a child with these one-sided bounds of its Difference at most `max_drop` (0.005 is half a point) below?"""
    return judge_least(bounds, -max_drop)


def judge_absolute(k: int, n: int, floor: float) -> Verdict:
    """Is the accuracy at least `floor`, one-sided 95%?"""
    return judge_least((lower_bound(k, n), upper_bound(k, n)), floor)


def worst_class_drop(labels: NDArray[np.int64], parent_correct: Flags, child_correct: Flags) -> float:
    """The largest loss of accuracy in any one class, as a fraction; negative if every class gained."""
    _check_paired(labels, parent_correct, child_correct)
    drops = [
        float(np.mean(parent_correct[labels == label]) - np.mean(child_correct[labels == label]))
        for label in np.unique(labels)
    ]
    return max(drops)
