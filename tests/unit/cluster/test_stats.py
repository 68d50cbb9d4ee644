"""Intervals against published values and other routes to the same number; verdicts against what they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats as scipy_stats
from scipy.integrate import quad

from cluster.stats import (
    jeffreys,
    judge_absolute,
    judge_least,
    judge_most,
    judge_relative,
    lower_bound,
    paired_delta,
    upper_bound,
    worst_class_drop,
)

Flags = NDArray[np.bool_]


@st.composite
def counts(draw: st.DrawFn) -> tuple[int, int]:
    n = draw(st.integers(1, 5000))
    return draw(st.integers(0, n)), n


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Flags, Flags]:
    both, won, lost, neither = (draw(st.integers(0, 60)) for _ in range(4))
    parent = np.repeat([True, False, True, False], [both, won, lost, neither + (both + won + lost == 0)])
    child = np.repeat([True, True, False, False], [both, won, lost, neither + (both + won + lost == 0)])
    return parent, child


def pair(n: int, won: int, lost: int) -> tuple[Flags, Flags]:
    parent, child = np.ones(n, bool), np.ones(n, bool)
    parent[:won] = False
    child[won : won + lost] = False
    return parent, child


# Jeffreys


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        # R package contingencytables, tests of chapter 2 (4 digits).
        (13, 16, 0.5792, 0.9442),
        # R package cards, snapshots of proportion_ci_jeffreys, whose ends follow the same rule (7 digits).
        (5, 10, 0.2235287, 0.7764713),
        (32, 32, 0.9250722, 1.0),
        (0, 32, 0.0, 0.07492776),
    ],
)
def test_jeffreys_is_as_published(k: int, n: int, low: float, high: float) -> None:
    digits = len(str(low if low else high).split(".")[1])
    found = jeffreys(k, n)
    assert (round(found[0], digits), round(found[1], digits)) == (low, pytest.approx(high, abs=10.0**-digits))


@settings(max_examples=30)
@given(counts=counts(), confidence=st.floats(0.5, 0.999))
def test_jeffreys_encloses_the_confidence_under_its_posterior(counts: tuple[int, int], confidence: float) -> None:
    """By integrating the posterior's density, not by the quantile function that made the ends."""
    k, n = counts
    if k in (0, n):
        k, n = 1, n + 2
    low, high = jeffreys(k, n, confidence)
    density = scipy_stats.beta(k + 0.5, n - k + 0.5).pdf
    assert quad(density, low, high, epsabs=1e-9, limit=200)[0] == pytest.approx(confidence, abs=1e-6)


@given(counts=counts(), confidence=st.floats(0.8, 0.9999))
def test_jeffreys_contains_the_proportion_and_lies_in_the_unit_interval(
    counts: tuple[int, int], confidence: float
) -> None:
    k, n = counts
    low, high = jeffreys(k, n, confidence)
    assert 0.0 <= low <= k / n <= high <= 1.0
    assert low < high


@given(counts=counts())
def test_jeffreys_is_symmetric_and_monotone(counts: tuple[int, int]) -> None:
    k, n = counts
    low, high = jeffreys(k, n)
    assert jeffreys(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)
    if k < n:
        more = jeffreys(k + 1, n)
        assert more[0] > low
        assert more[1] >= high
    wider = jeffreys(k, n, 0.99)
    assert wider[0] <= low
    assert wider[1] >= high
    longer = jeffreys(k * 10, n * 10)
    assert longer[1] - longer[0] < high - low


@pytest.mark.parametrize(("n", "p"), [(50, 0.9), (200, 0.5), (1000, 0.99)])
def test_jeffreys_covers_as_often_as_it_says(n: int, p: float) -> None:
    """Exactly, by summing over all outcomes; Brown et al. report a coverage close to nominal, not above it."""
    covered = sum(
        scipy_stats.binom.pmf(k, n, p) for k in range(n + 1) if jeffreys(k, n)[0] <= p <= jeffreys(k, n)[1]
    )
    assert 0.93 < covered < 0.98


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0), (0, -1)])
def test_what_is_no_proportion_is_refused(k: int, n: int) -> None:
    with pytest.raises(ValueError, match=f"k={k} of n={n}"):
        jeffreys(k, n)


@given(counts=counts(), confidence=st.floats(0.9, 0.999))
def test_one_sided_bounds_leave_the_whole_rest_on_one_side(counts: tuple[int, int], confidence: float) -> None:
    k, n = counts
    posterior = scipy_stats.beta(k + 0.5, n - k + 0.5)
    if k > 0:
        assert posterior.sf(lower_bound(k, n, confidence)) == pytest.approx(confidence, abs=1e-7)
    if k < n:
        assert posterior.cdf(upper_bound(k, n, confidence)) == pytest.approx(confidence, abs=1e-7)
    assert lower_bound(k, n, confidence) <= k / n <= upper_bound(k, n, confidence)


# Paired differences


@settings(max_examples=50, deadline=None)
@given(pair=pairs())
def test_the_difference_is_that_of_the_accuracies_and_lies_in_its_interval(pair: tuple[Flags, Flags]) -> None:
    parent, child = pair
    delta = paired_delta(parent, child)
    assert delta.value == pytest.approx(float(child.mean() - parent.mean()), abs=1e-12)
    (low, high), (low_bound, high_bound) = delta.interval, delta.bounds
    assert -1.0 <= low <= low_bound <= high_bound <= high <= 1.0
    assert low <= delta.value <= high
    assert low < high
    assert paired_delta(parent, child) == delta, "the same counts must give the same interval"


@settings(max_examples=20, deadline=None)
@given(pair=pairs(), seed=st.integers(0, 2**32 - 1))
def test_the_order_of_the_pictures_does_not_matter(pair: tuple[Flags, Flags], seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(pair[0]))
    assert paired_delta(*pair) == paired_delta(pair[0][order], pair[1][order])


@settings(max_examples=20, deadline=None)
@given(pair=pairs())
def test_swapping_parent_and_child_mirrors_the_difference(pair: tuple[Flags, Flags]) -> None:
    delta, back = paired_delta(*pair), paired_delta(pair[1], pair[0])
    assert back.value == pytest.approx(-delta.value, abs=1e-12)
    # Another draw, so the ends agree but for the bootstrap's own noise: a few of its steps of 1/n.
    for there, here in ((back.interval, delta.interval), (back.bounds, delta.bounds)):
        assert there == pytest.approx((-here[1], -here[0]), abs=3.0 / len(pair[0]))


def test_the_interval_is_that_of_the_large_sample_formula() -> None:
    """McNemar's standard error: sqrt(won + lost - (won - lost)^2 / n) / n."""
    n, won, lost = 10_000, 120, 180
    delta = paired_delta(*pair(n, won, lost))
    error = np.sqrt(won + lost - (won - lost) ** 2 / n) / n
    assert delta.value == -0.006
    assert delta.interval == pytest.approx((-0.006 - 1.96 * error, -0.006 + 1.96 * error), abs=1.5e-4)
    assert delta.bounds == pytest.approx((-0.006 - 1.645 * error, -0.006 + 1.645 * error), abs=1.5e-4)


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(5)
    truth, n = np.array([0.02, 0.03, 0.95]), 1000
    hits = 0
    for won, lost, _ in rng.multinomial(n, truth, size=300):
        low, high = paired_delta(*pair(n, won, lost)).interval
        hits += low <= truth[0] - truth[1] <= high
    assert 0.92 < hits / 300 < 0.98


def test_no_disagreement_is_no_certainty() -> None:
    delta = paired_delta(*pair(200, 0, 0))
    low, high = delta.interval
    assert delta.value == 0.0
    assert low < 0.0 < high
    assert high - low < 0.03


@pytest.mark.parametrize(
    "columns", [(np.ones(3, bool), np.ones(4, bool)), (np.ones(0, bool),) * 2, (np.ones((2, 2), bool),) * 2]
)
def test_columns_that_do_not_pair_are_refused(columns: tuple[Flags, Flags]) -> None:
    with pytest.raises(ValueError, match="equal, flat and not empty"):
        paired_delta(*columns)
    with pytest.raises(ValueError, match="equal, flat and not empty"):
        worst_class_drop(np.zeros(3, np.int64), *columns)


# Verdicts


@pytest.mark.parametrize(
    ("n", "won", "lost", "verdict"),
    [
        (10_000, 10, 12, "holds"),
        (10_000, 100, 20, "holds"),
        (10_000, 20, 200, "fails"),
        (10_000, 100, 150, "unclear"),  # -0.005 itself
        (100, 0, 0, "unclear"),  # too few pictures to see half a point
        (100, 0, 60, "fails"),
    ],
)
def test_the_relative_verdict(n: int, won: int, lost: int, verdict: str) -> None:
    assert judge_relative(paired_delta(*pair(n, won, lost)).bounds, max_drop=0.005) == verdict


@pytest.mark.parametrize(
    ("k", "n", "floor", "verdict"),
    [
        (9500, 10_000, 0.94, "holds"),
        (9500, 10_000, 0.96, "fails"),
        (9500, 10_000, 0.951, "unclear"),
        (10, 10, 0.99, "unclear"),
        (0, 10, 0.9, "fails"),
        (0, 1, 0.0, "holds"),
    ],
)
def test_the_absolute_verdict(k: int, n: int, floor: float, verdict: str) -> None:
    assert judge_absolute(k, n, floor) == verdict


@given(counts=counts(), floor=st.floats(0, 1))
def test_the_absolute_verdict_follows_its_bounds(counts: tuple[int, int], floor: float) -> None:
    k, n = counts
    verdict = judge_absolute(k, n, floor)
    assert (verdict == "holds") == (lower_bound(k, n) >= floor)
    assert (verdict == "fails") == (upper_bound(k, n) < floor)


@given(ends=st.tuples(st.floats(-1e6, 1e6), st.floats(-1e6, 1e6)), limit=st.floats(-1e6, 1e6))
def test_a_limit_above_is_a_floor_of_the_negative(ends: tuple[float, float], limit: float) -> None:
    low, high = sorted(ends)
    verdict = judge_most((low, high), limit)
    assert verdict == judge_least((-high, -low), -limit)
    assert (verdict == "holds") == (high <= limit)
    assert (verdict == "fails") == (low > limit)


@settings(max_examples=30, deadline=None)
@given(pair=pairs(), drops=st.tuples(st.floats(0, 0.5), st.floats(0, 0.5)))
def test_a_wider_allowance_never_worsens_the_verdict(pair: tuple[Flags, Flags], drops: tuple[float, float]) -> None:
    rank = {"fails": 0, "unclear": 1, "holds": 2}
    strict, lenient = (rank[judge_relative(paired_delta(*pair).bounds, max_drop=drop)] for drop in sorted(drops))
    assert strict <= lenient


def test_a_true_drop_at_the_limit_rarely_passes() -> None:
    """One-sided 95%: of children that are exactly max_drop worse, at most about 5 in 100 may pass."""
    rng = np.random.default_rng(11)
    truth = np.array([0.02, 0.03, 0.95])  # 0.01 worse
    passed = sum(
        judge_relative(paired_delta(*pair(2000, won, lost)).bounds, max_drop=0.01) == "holds"
        for won, lost, _ in rng.multinomial(2000, truth, size=300)
    )
    assert passed / 300 < 0.09


# Classes


def test_the_worst_class_is_found() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2])
    parent = np.array([1, 1, 1, 1, 0, 0], bool)
    child = np.array([1, 1, 1, 0, 1, 1], bool)
    assert worst_class_drop(labels, parent, child) == 0.5


def test_when_every_class_gained_the_drop_is_negative() -> None:
    labels = np.array([0, 0, 1, 1, 1, 1])
    assert worst_class_drop(labels, np.zeros(6, bool), np.array([1, 1, 1, 0, 0, 0], bool)) == -0.25


@given(pair=pairs(), classes=st.integers(1, 5), seed=st.integers(0, 1000))
def test_the_worst_class_is_never_better_than_the_whole(pair: tuple[Flags, Flags], classes: int, seed: int) -> None:
    labels = np.random.default_rng(seed).integers(0, classes, len(pair[0]))
    drop = worst_class_drop(labels, *pair)
    assert drop >= float(pair[0].mean() - pair[1].mean()) - 1e-12
    assert drop <= 1.0
