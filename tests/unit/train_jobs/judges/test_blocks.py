"""The block bootstrap: neighbours stay together, every sample counts alike, few blocks make intervals wide enough."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats as scipy_stats

from train_jobs.judges.blocks import fitting, pieces, resampled_means, spread

Floats = NDArray[np.float64]


def series(samples: int, memory: float, seed: int) -> Floats:
    """First-order autoregression of mean 0 and variance 1."""
    rng = np.random.default_rng(seed)
    steps = rng.normal(size=samples) * np.sqrt(1 - memory**2)
    x = np.empty(samples)
    x[0] = rng.normal()
    for t in range(1, samples):
        x[t] = memory * x[t - 1] + steps[t]
    return x


@settings(max_examples=30, deadline=None)
@given(samples=st.integers(1, 40), block=st.integers(1, 40))
def test_a_resample_is_whole_blocks_of_neighbours_and_one_short_one(samples: int, block: int) -> None:
    """Counted sample by sample: the columns are the rows of the identity."""
    block = min(block, samples)
    counts = np.rint(resampled_means(np.eye(samples), block) * samples).astype(int)
    assert (counts.sum(1) == samples).all(), "as many samples as there are"
    # A block begins where the count rises, round the end to the beginning: no more often than there are blocks.
    rises = np.maximum(counts - np.roll(counts, 1, axis=1), 0).sum(1)
    assert (rises <= pieces(samples, block)).all()


def test_every_sample_is_drawn_as_often_as_any_other_the_last_ones_too() -> None:
    frequencies = resampled_means(np.eye(10), 3).mean(0)
    assert frequencies == pytest.approx(np.full(10, 0.1), abs=0.006)


@settings(max_examples=20, deadline=None)
@given(samples=st.integers(2, 300), block=st.integers(1, 20), seed=st.integers(0, 100))
def test_all_columns_are_drawn_alike(samples: int, block: int, seed: int) -> None:
    x = np.random.default_rng(seed).normal(size=samples)
    again_RC = resampled_means(np.stack([x, 2 * x + 1, x], 1), fitting(block, samples), seed=seed)
    np.testing.assert_allclose(again_RC[:, 1], 2 * again_RC[:, 0] + 1, atol=1e-9)
    np.testing.assert_array_equal(again_RC[:, 2], again_RC[:, 0])


def test_blocks_of_one_are_the_ordinary_bootstrap_and_its_scatter_is_the_standard_error() -> None:
    x = np.random.default_rng(1).exponential(size=400)
    again_R = resampled_means(x[:, None], 1)[:, 0]
    assert again_R.mean() == pytest.approx(x.mean(), abs=0.01)
    assert again_R.std() == pytest.approx(x.std() / 20, rel=0.05)


def test_what_is_drawn_in_pieces_for_want_of_memory_is_drawn_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train_jobs.judges.blocks._AT_ONCE", 1000)
    x = np.random.default_rng(1).normal(size=400)
    again_R = resampled_means(x[:, None], 1)[:, 0]
    assert again_R.std() == pytest.approx(x.std() / 20, rel=0.05)
    assert len(set(again_R)) == len(again_R)


def test_samples_that_resemble_their_neighbours_scatter_more_than_independent_ones() -> None:
    x = series(4000, 0.9, seed=2)
    alone, together = (resampled_means(x[:, None], block)[:, 0].std() for block in (1, 100))
    true = np.sqrt((1 + 0.9) / (1 - 0.9) / 4000)  # of the mean of such a series
    assert alone < 0.35 * true
    assert together == pytest.approx(true, rel=0.25)


@pytest.mark.parametrize(("memory", "block", "samples"), [(0.0, 1, 60), (0.7, 25, 500), (0.7, 50, 400)])
def test_the_interval_covers_as_often_as_it_says_with_few_blocks_too(memory: float, block: int, samples: int) -> None:
    """Eight blocks are all that a test part of a forecast may have."""
    covered, above = 0, 0
    for seed in range(300):
        x = series(samples, memory, seed)
        again_R = resampled_means(x[:, None], block, seed=seed)[:, 0]
        (low, high), (low_bound, _) = spread(again_R, pieces(samples, block))
        covered += low <= 0.0 <= high
        above += low_bound <= 0.0
    assert 0.90 < covered / 300 < 0.99
    assert 0.90 < above / 300 < 0.99


def test_few_pieces_widen_an_interval_as_student_s_t_does() -> None:
    normal = scipy_stats.norm.ppf((np.arange(100_000) + 0.5) / 100_000)
    (low, high), (low_bound, high_bound) = spread(normal, 8)
    wider = np.sqrt(8 / 7)
    assert (low, high) == pytest.approx(wider * scipy_stats.t.ppf([0.025, 0.975], 7), rel=0.01)
    assert (low_bound, high_bound) == pytest.approx(wider * scipy_stats.t.ppf([0.05, 0.95], 7), rel=0.01)
    many, _ = spread(normal, 10_000)
    assert many == pytest.approx((-1.96, 1.96), abs=0.01)


@given(block=st.integers(1, 10_000), samples=st.integers(1, 10_000))
def test_there_are_four_blocks_at_least(block: int, samples: int) -> None:
    fits = fitting(block, samples)
    assert 1 <= fits <= block
    assert pieces(samples, fits) >= min(samples, 4)
    assert fits == block or fits == max(1, samples // 4)
