"""Seeded latents: the numbers themselves, their independence of what is drawn beside them, and their distribution."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cluster import latents
from cluster.latents import of_seeds

KNOWN = ["0x1.f43cd00000000p-5", "-0x1.0959260000000p-1", "0x1.902d520000000p+0", "0x1.30f8180000000p+0"]
"""Of seed 7."""
SEEDS = st.integers(-(2**63), 2**63 - 1)


def test_a_seed_is_these_numbers_for_ever() -> None:
    """As their bits: another value here is another picture for everybody's seed."""
    drawn = of_seeds(np.array([0, 7, -1, 2**63 - 1]), 4)
    assert drawn.dtype == np.float32
    assert [value.hex() for value in drawn.astype(np.float64)[1].tolist()] == KNOWN


@given(st.lists(SEEDS, min_size=1, max_size=5), st.integers(1, 70), st.data())
def test_neither_neighbours_nor_the_number_drawn_change_a_draw(
    seeds: list[int], size: int, data: st.DataObject
) -> None:
    drawn = of_seeds(np.array(seeds), size)
    row = data.draw(st.integers(0, len(seeds) - 1))
    fewer = data.draw(st.integers(1, size))
    alone = of_seeds(np.array([seeds[row]]), fewer)
    assert alone.tobytes() == drawn[row : row + 1, :fewer].tobytes()


@given(SEEDS, SEEDS)
def test_other_seeds_are_other_draws(one: int, other: int) -> None:
    drawn = of_seeds(np.array([one, other]), 8)
    assert (one == other) == bool((drawn[0] == drawn[1]).all())


def test_they_are_normal_and_independent() -> None:
    drawn = of_seeds(np.arange(4000), 64).astype(np.float64)
    assert np.isfinite(drawn).all()
    assert stats.kstest(drawn.ravel(), "norm").pvalue > 1e-3
    assert abs(drawn.mean()) < 4 / np.sqrt(drawn.size)
    for apart in (drawn[1:] * drawn[:-1], drawn[:, 1:] * drawn[:, :-1]):  # of next seeds, of next places
        assert abs(apart.mean()) < 4 / np.sqrt(apart.size)


@given(st.floats(2.0**-33, 1 - 2.0**-33))
def test_the_quantile_is_the_normal_distributions(p: float) -> None:
    got = float(latents._quantile(np.array([p]))[0])
    assert got == pytest.approx(NormalDist().inv_cdf(p), rel=1e-13, abs=1e-14)


@given(st.floats(1e-300, 1e300))
def test_the_logarithm_is_one(x: float) -> None:
    assert float(latents._log(np.array([x]))[0]) == pytest.approx(float(np.log(x)), rel=1e-15, abs=1e-15)
