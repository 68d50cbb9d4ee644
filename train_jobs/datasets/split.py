"""Labels -> which samples train and which test, where the user did not say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError

TEST_SHARE = 0.2


def stratified(
    y: NDArray[np.int64], *, test_share: float = TEST_SHARE, seed: int = 0
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """(training, test) indices, each in ascending order: the same share of every class in the test part, at least one
    sample of it in each, every sample in one of both; the same labels give the same split.

    Raises ConfigError for a class of one sample.
    """
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(y), dtype=np.bool_)
    for label in np.unique(y):
        members = np.flatnonzero(y == label)
        if len(members) < 2:
            raise ConfigError(
                f"class {label} has 1 sample; one for training and one for the test is the least: add samples, or "
                "leave the class out"
            )
        count = min(len(members) - 1, max(1, round(test_share * len(members))))
        chosen[rng.permutation(members)[:count]] = True
    return np.flatnonzero(~chosen), np.flatnonzero(chosen)
