"""The curve finds the time of every batch size, whatever its shape, through noise and outliers."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.control.latency import Curve

SHAPES: dict[str, Callable[[int], float]] = {
    "affine": lambda n: 0.002 + 0.0003 * n,
    "per row": lambda n: 0.02 * n,
    "constant": lambda n: 0.005,
    "steps of eight": lambda n: 0.004 * math.ceil(n / 8),
}


def taught(shape: Callable[[int], float], seed: int, *, batches: int = 2000, curve: Curve | None = None) -> Curve:
    """After batches of all sizes with 30% noise, one in twenty of which took 20 times as long."""
    generator = random.Random(seed)
    curve = curve or Curve()
    for _ in range(batches):
        rows = generator.randint(1, 32)
        outlier = 20.0 if generator.random() < 0.05 else 1.0
        curve.observe(rows, shape(rows) * outlier * math.exp(generator.gauss(0, 0.3)))
    return curve


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1 << 30))
@pytest.mark.parametrize("name", ["affine", "per row", "constant"])
def test_it_converges_through_noise_and_outliers(name: str, seed: int) -> None:
    curve = taught(SHAPES[name], seed)
    for rows in (1, 2, 3, 5, 8, 13, 21, 32):
        assert SHAPES[name](rows) / 1.6 < curve.seconds(rows) < SHAPES[name](rows) * 1.6


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 1 << 30))
def test_steps_between_its_knots_are_followed_as_a_line_follows_them(seed: int) -> None:
    curve = taught(SHAPES["steps of eight"], seed)
    for rows in range(1, 33):
        assert SHAPES["steps of eight"](rows) / 2.2 < curve.seconds(rows) < SHAPES["steps of eight"](rows) * 2.2


@settings(deadline=None)
@given(
    points=st.dictionaries(st.integers(1, 64), st.floats(1e-6, 10), max_size=5),
    seen=st.lists(st.tuples(st.integers(1, 200), st.floats(0, 100)), max_size=60),
)
def test_more_rows_never_take_less_time_and_what_fits_fits(
    points: dict[int, float], seen: list[tuple[int, float]]
) -> None:
    curve = Curve(points)
    for rows, seconds in seen:
        curve.observe(rows, seconds)
    times = [curve.seconds(rows) for rows in range(1, 300)]
    assert all(0 <= a <= b * (1 + 1e-9) for a, b in itertools.pairwise(times))
    assert all(curve.upper(rows) >= curve.seconds(rows) for rows in (1, 7, 64))
    for budget_s in (0.0, 1e-5, 0.01, 1.0, math.inf):
        fits = curve.fits(budget_s, 40)
        assert 0 <= fits <= 40
        assert fits == 0 or curve.upper(fits) <= budget_s
        assert fits == 40 or curve.upper(fits + 1) > budget_s
    for rows in (1, 2, 31, 32):
        assert 1 <= curve.pays(rows) <= rows


def test_what_was_measured_at_the_start_is_believed_at_first() -> None:
    given_s = {1: 0.002, 4: 0.003, 16: 0.006}
    curve = Curve(given_s)
    assert curve.known
    for rows, seconds in given_s.items():
        assert curve.seconds(rows) == pytest.approx(seconds)
    assert curve.seconds(8) == pytest.approx(0.004)
    assert curve.seconds(32) == pytest.approx(0.010)


def test_a_curve_that_knows_nothing_promises_all() -> None:
    curve = Curve()
    assert not curve.known
    assert (curve.seconds(5), curve.upper(5), curve.fits(0.0, 9), curve.pays(9)) == (0, 0, 9, 9)


def test_one_batch_that_was_held_up_moves_it_little_and_a_slower_machine_soon() -> None:
    curve = Curve({1 << k: SHAPES["affine"](1 << k) for k in range(6)})
    for _ in range(100):
        curve.observe(32, SHAPES["affine"](32))
    before = curve.seconds(32)
    curve.observe(32, 20 * before)
    assert curve.seconds(32) < 1.1 * before
    for _ in range(15):
        curve.observe(32, 3 * before)
    assert curve.seconds(32) > 2.5 * before
    assert curve.seconds(1) > 1.25 * SHAPES["affine"](1), "slower at all sizes"


@pytest.mark.parametrize(("name", "worth"), [("per row", 1), ("constant", 32), ("steps of eight", 8)])
def test_how_many_pay(name: str, worth: int) -> None:
    curve = Curve({n: SHAPES[name](n) for n in range(1, 33)})
    assert curve.pays(32) == worth


def test_a_small_model_gets_all_that_wait_and_the_rest_is_never_a_worse_batch() -> None:
    curve = Curve({n: 0.000_2 + 0.000_03 * n for n in (1, 2, 4, 8, 16, 32)})
    assert [curve.pays(rows) for rows in (1, 2, 7, 20, 32)] == [1, 2, 7, 20, 32]
    flat = Curve({n: 0.000_01 + 0.000_3 * n for n in (1, 2, 4, 8, 16, 32)})
    assert flat.pays(32) == 1


@settings(deadline=None)
@given(base=st.floats(0, 0.1), slope=st.floats(1e-5, 0.1), rows=st.integers(1, 32))
def test_what_pays_costs_hardly_more_per_row(base: float, slope: float, rows: int) -> None:
    curve = Curve({n: base + slope * n for n in (1, 2, 4, 8, 16, 32)})
    worth = curve.pays(rows)
    best = min(curve.seconds(n) / n for n in range(1, rows + 1))
    assert curve.seconds(worth) / worth <= 1.0801 * best
    fewer = [n for n in range(1, worth) if curve.seconds(n) / n <= 1.0799 * best]
    assert not fewer or (worth == rows and 2 * fewer[0] > rows)


def test_without_a_prior_larger_batches_are_worth_a_try() -> None:
    curve = Curve()
    curve.observe(1, 0.01)
    assert curve.pays(32) == 32
    for rows in (32, 16, 8, 4, 2, 1) * 4:
        curve.observe(rows, 0.01 * rows)
    assert curve.pays(32) == 1


def test_a_larger_bound_is_reached() -> None:
    curve = Curve({1: 0.01, 8: 0.02}, limit=8)
    curve.limit = 64
    assert curve.limit == 64
    assert curve.seconds(64) > curve.seconds(8)
    assert curve.row_s == pytest.approx(curve.seconds(64) / 64)


def test_what_was_never_seen_stays_beside_its_nearest_neighbour() -> None:
    """Batches of five taking ever so much less say nothing of one row, where those of two have not changed."""
    curve = Curve(limit=5)
    for rows in (5, 2, 5, 5, 5, 5, 5, 5):
        curve.observe(rows, 0.01)
    assert curve.pays(2) == 2
    assert curve.seconds(1) > 0.6 * curve.seconds(2)
