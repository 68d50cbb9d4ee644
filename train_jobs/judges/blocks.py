"""How much would a figure differ on other samples? The samples at hand drawn anew, block by block, and an interval.

Samples that follow one another in time resemble each other, so whole blocks of neighbours are drawn: Kuensch, "The
Jackknife and the Bootstrap for General Stationary Observations", Annals of Statistics 17(3), 1989, section 2; round the
end to the beginning, as Politis and Romano, "A Circular Block-Resampling Procedure for Stationary Data", in LePage and
Billard (eds.), "Exploring the Limits of Bootstrap", 1992. With blocks of one sample it is the ordinary bootstrap.

Shapes: N samples, C columns, R resamples.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]
_RESAMPLES = 3000
_FEWEST = 4
"""A test part is cut into so many blocks at least: longer ones would leave nothing to see a scatter by."""
_AT_ONCE = 1 << 22
"""Blocks whose numbers are held at a time: 32 MiB of them."""


def fitting(block: int, samples: int) -> int:
    """The block that is drawn where `block` samples are asked for: a quarter of them all at most."""
    return max(1, min(block, samples // _FEWEST))


def pieces(samples: int, block: int) -> int:
    """As how many independent ones do so many samples count?"""
    return math.ceil(samples / block)


def resampled_means(columns_NC: Floats, block: int, *, seed: int = 0) -> Floats:
    """(R, C): the mean of each column over N samples drawn anew, the same samples for all columns.

    A block's sum is a difference of two running sums, so the cost is that of the blocks, not of their samples.
    """
    samples, columns = columns_NC.shape
    full, rest = divmod(samples, block)
    sums_CN, last_CN = _sums(columns_NC, block), _sums(columns_NC, rest)
    rng = np.random.default_rng(seed)
    totals = np.empty((_RESAMPLES, columns))
    for first in range(0, _RESAMPLES, max(1, _AT_ONCE // full)):
        rows = totals[first : first + max(1, _AT_ONCE // full)]
        starts = rng.integers(samples, size=(len(rows), full))
        short = rng.integers(samples, size=len(rows))
        for column in range(columns):
            rows[:, column] = sums_CN[column][starts].sum(1) + last_CN[column][short]
    means_RC: Floats = totals / samples
    return means_RC


def _sums(columns_NC: Floats, length: int) -> Floats:
    """(C, N): of the `length` samples from each one on, round the end."""
    samples = len(columns_NC)
    running = np.concatenate([np.zeros_like(columns_NC[:1]), columns_NC, columns_NC[:length]]).cumsum(0)
    return np.ascontiguousarray((running[length : length + samples] - running[:samples]).T)


def spread(drawn_R: ArrayLike, independent: int) -> tuple[Interval, Interval]:
    """(two-sided 95% interval, one-sided 95% bounds) of a figure by its resamples.

    Percentiles fall short where there are few independent pieces: their levels are those at which Student's t with
    `independent` - 1 degrees of freedom, and the scatter's own bias, put them (the expanded percentile interval of
    Hesterberg, "What Teachers Should Know About the Bootstrap", The American Statistician 69(4), 2015). Needs 2 pieces.
    """
    from scipy.special import ndtr, stdtrit

    wider = math.sqrt(independent / (independent - 1))
    levels = ndtr(wider * stdtrit(independent - 1, np.array([0.025, 0.05, 0.95, 0.975])))
    low, low_bound, high_bound, high = map(float, np.quantile(np.asarray(drawn_R), levels))
    return (low, high), (low_bound, high_bound)
