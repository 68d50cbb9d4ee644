"""The judge of anomaly scores: the area is scikit-learn's, its scatter DeLong's by the definition, in a series that of
areas of resampled blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import norm, rankdata
from sklearn.metrics import roc_auc_score

from cluster.errors import ConfigError, InvalidRequest
from cluster.slo import AccuracyFloor
from cluster.variants import Accuracy
from tests.unit.train_jobs.judges.contract import Case, JudgeContract
from train_jobs.judges import AucJudge
from train_jobs.judges.auc import area, midranks

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


def judge_of(anomalous: Flags, x: NDArray[Any] | None = None, **more: Any) -> AucJudge:
    x = np.zeros((len(anomalous), 1), np.float32) if x is None else x
    return AucJudge(x=x, anomalous=anomalous.astype(np.int64), dataset="told", inputs="x", output="score", **more)


def judged(scores: Floats, anomalous: Flags, other: Floats | None = None, *, block: int = 1) -> Accuracy:
    root = None if other is None else ("r" * 16, other)
    return judge_of(anomalous, block=block).accuracy(scores, runtime="torch", root=root)


def drawn(odd: int, usual: int, apart: float, seed: int) -> tuple[Floats, Flags]:
    """Normal scores, those of anomalous samples higher."""
    anomalous = np.arange(odd + usual) < odd
    return np.random.default_rng(seed).normal(size=odd + usual) + apart * anomalous, anomalous


class TestAucJudge(JudgeContract):
    @pytest.fixture
    def case(self) -> Case:
        scores, anomalous = drawn(400, 1600, 1.5, seed=0)
        blurred = scores + np.random.default_rng(1).normal(0, 1.0, 2000)
        x = np.stack([scores, blurred], 1).astype(np.float32)
        return Case(
            judge_of(anomalous, x), 2000, lambda batch: {"score": batch["x"][:, 0]},
            lambda batch: {"score": batch["x"][:, 1]},
        )  # fmt: skip


scored = st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=80).filter(
    lambda rows: len({anomalous for _, anomalous in rows}) == 2
)
"""Few values, so that ties are common."""


@settings(max_examples=60, deadline=None)
@given(rows=scored)
def test_the_area_is_scikit_learn_s_and_ranks_are_scipy_s(rows: list[tuple[int, bool]]) -> None:
    scores, anomalous = np.array([float(score) for score, _ in rows]), np.array([odd for _, odd in rows])
    value, moves = area(scores, anomalous)
    assert value == pytest.approx(roc_auc_score(anomalous, scores), abs=1e-12)
    assert moves.sum() == pytest.approx(0.0, abs=1e-12)
    np.testing.assert_array_equal(midranks(scores), rankdata(scores))


def placements(scores: Floats, anomalous: Flags) -> tuple[Floats, Floats]:
    """DeLong's structural components, pair by pair."""
    pairs = scores[anomalous][:, None] - scores[~anomalous][None]
    psi = (pairs > 0) + 0.5 * (pairs == 0)
    return psi.mean(1), psi.mean(0)


def test_the_scatter_is_delong_s_alone_and_of_a_difference() -> None:
    scores, anomalous = drawn(30, 90, 1.0, seed=1)
    scores = np.round(scores, 1)  # with ties
    other = np.round(scores + np.random.default_rng(2).normal(0, 0.7, 120), 1)
    (v10, v01), (w10, w01) = placements(scores, anomalous), placements(other, anomalous)
    s10, s01 = np.cov(v10, w10) / 30, np.cov(v01, w01) / 90
    (a, c), (_, b) = s10 + s01
    found = judged(scores, anomalous, other)
    assert found.to_root is not None
    for interval, bounds, value, variance in (
        (found.interval, found.bounds, v10.mean(), a),
        (found.to_root.interval, found.to_root.bounds, v10.mean() - w10.mean(), a + b - 2 * c),
    ):
        error = np.sqrt(variance)
        assert interval == pytest.approx((value - 1.959964 * error, value + 1.959964 * error), abs=1e-7)
        assert bounds == pytest.approx((value - 1.644854 * error, value + 1.644854 * error), abs=1e-7)


def test_delong_s_scatter_is_that_of_samples_drawn_anew() -> None:
    scores, anomalous = drawn(80, 240, 1.0, seed=3)
    rng = np.random.default_rng(0)
    again = []
    for _ in range(800):
        chosen = np.concatenate([rng.integers(80, size=80), 80 + rng.integers(240, size=240)])
        again.append(area(scores[chosen], anomalous[chosen])[0])
    low, high = judged(scores, anomalous).interval
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(again), rel=0.12)


def test_the_intervals_cover_as_often_as_they_say() -> None:
    """Two scores that are as good as each other, and share most of what they see."""
    true = norm.cdf(1.2 / np.sqrt(2))
    covered = np.zeros(2, int)
    for seed in range(300):
        rng = np.random.default_rng(seed)
        anomalous = np.arange(200) < 50
        shared, *own = rng.normal(size=(3, 200))
        one, other = (np.sqrt(0.8) * shared + np.sqrt(0.2) * each + 1.2 * anomalous for each in own)
        found = judged(one, anomalous, other)
        assert found.to_root is not None
        covered += [found.interval[0] <= true <= found.interval[1],
                    found.to_root.interval[0] <= 0.0 <= found.to_root.interval[1]]  # fmt: skip
    assert (covered > 0.90 * 300).all()
    assert (covered < 0.99 * 300).all()


def test_a_difference_on_the_same_samples_is_surer_than_the_two_areas() -> None:
    scores, anomalous = drawn(100, 300, 1.0, seed=4)
    other = scores + np.random.default_rng(5).normal(0, 0.05, 400)
    found = judged(scores, anomalous, other)
    assert found.to_root is not None
    paired, alone = (each.interval[1] - each.interval[0] for each in (found.to_root, found))
    assert paired < 0.2 * alone


# Series


def of_series(samples: int, seed: int, *, lasting: int = 40) -> tuple[Floats, Flags]:
    """Anomalies and errors of the score that last for some forty samples."""
    rng = np.random.default_rng(seed)
    anomalous = np.repeat(rng.random(samples // lasting) < 0.2, lasting)
    anomalous[:lasting], anomalous[lasting : 2 * lasting] = True, False
    level = np.convolve(rng.normal(size=samples + lasting - 1), np.full(lasting, lasting**-0.5), mode="valid")
    return level + 0.3 * rng.normal(size=samples) + 1.2 * anomalous, anomalous


def test_blocks_scatter_as_areas_of_resampled_blocks_do() -> None:
    """Ranked anew each time, which is what would take too long for a real series."""
    scores, anomalous = of_series(4000, seed=6)
    block, rng = 40, np.random.default_rng(0)
    again = []
    for _ in range(300):
        chosen = (rng.integers(4000, size=100)[:, None] + np.arange(block)).ravel() % 4000
        again.append(area(scores[chosen], anomalous[chosen])[0])
    low, high = judged(scores, anomalous, block=block).interval
    assert (high - low) / (2 * 1.96) == pytest.approx(np.std(again), rel=0.25)


def test_a_series_is_less_sure_than_as_many_independent_samples() -> None:
    scores, anomalous = of_series(4000, seed=7)
    other = scores + np.repeat(np.random.default_rng(1).normal(0, 0.3, 100), 40)
    alone, together = judged(scores, anomalous, other), judged(scores, anomalous, other, block=80)
    assert alone.to_root is not None
    assert together.to_root is not None
    for one, blocks in ((alone, together), (alone.to_root, together.to_root)):
        assert one.value == blocks.value
        assert blocks.interval[1] - blocks.interval[0] > 2 * (one.interval[1] - one.interval[0])


def test_the_interval_of_a_series_covers_about_as_often_as_it_says() -> None:
    true = np.mean([area(*of_series(40_000, seed))[0] for seed in range(100, 106)])
    covered = 0
    for seed in range(150):
        scores, anomalous = of_series(4000, seed)
        low, high = judged(scores, anomalous, block=80).interval
        covered += low <= true <= high
    assert 0.87 < covered / 150 < 0.995


# What tells little


def test_a_ranking_without_a_mistake_is_no_certainty() -> None:
    anomalous = np.arange(100) < 20
    perfect, reverse = judged(anomalous.astype(float), anomalous), judged(-anomalous.astype(float), anomalous)
    assert (perfect.value, perfect.interval[1]) == (1.0, 1.0)
    assert 0.85 < perfect.interval[0] < 0.95, "as if 20 of 20 had been right"
    assert perfect.bounds is not None
    assert perfect.interval[0] < perfect.bounds[0] < 1.0
    assert (reverse.value, reverse.interval[0]) == (0.0, 0.0)
    assert AccuracyFloor(minimum=0.99).verdict(perfect) == "unclear"
    assert AccuracyFloor(minimum=0.8).verdict(perfect) == "holds"


def test_one_anomaly_alone_tells_nothing() -> None:
    scores, anomalous = drawn(1, 200, 1.0, seed=8)
    found = judged(scores, anomalous, scores + np.random.default_rng(0).normal(size=201))
    assert found.to_root is not None
    assert (found.interval, found.to_root.interval) == ((0.0, 1.0), (-1.0, 1.0))
    assert AccuracyFloor().verdict(found) == "unclear"
    lasting, labels = of_series(400, seed=9)
    labels[:] = False
    labels[100:130] = True
    assert judged(lasting, labels, block=40).interval == (0.0, 1.0), "thirty windows of one anomaly"


@pytest.mark.parametrize(
    ("noise", "floor", "verdict"),
    [
        (0.02, {}, "holds"),
        (1.0, {}, "fails"),
        (0.3, {"max_drop": 0.01}, "unclear"),
        (0.02, {"minimum": 0.7}, "holds"),
        (0.02, {"minimum": 0.76}, "unclear"),
        (0.02, {"minimum": 0.9}, "fails"),
        (1.0, {"max_drop": 0.2}, "holds"),
        (0.02, {"maximum": 1e-9, "max_increase": 0.0}, "holds"),  # floors of errors say nothing of shares
    ],
)
def test_the_floor_of_an_area(noise: float, floor: dict[str, float], verdict: str) -> None:
    """Points of an area, as points of accuracy."""
    scores, anomalous = drawn(2000, 6000, 1.0, seed=10)
    blurred = scores + np.random.default_rng(11).normal(0, noise, 8000)
    assert AccuracyFloor.model_validate(floor).verdict(judged(blurred, anomalous, scores)) == verdict


def test_what_is_no_score_or_no_test_of_one_is_refused() -> None:
    judge = judge_of(np.arange(6) < 2)
    with pytest.raises(InvalidRequest, match=r"output 'score' has \[3\] values for each sample, and a score is one"):
        judge.read([{"score": np.zeros((6, 3), np.float32)}])
    with pytest.raises(InvalidRequest, match="answers 1 of 6 test samples with NaN or infinity, first sample 4"):
        judge.read([{"score": np.array([0, 1, 2, 3, np.nan, 5])}])
    for odd in (0, 6):
        with pytest.raises(ConfigError, match=f"told has {odd} anomalous samples among 6 labels for 6 test samples"):
            judge_of(np.arange(6) < odd)
    with pytest.raises(ConfigError, match="2 anomalous samples among 6 labels for 5 test samples"):
        judge_of(np.arange(6) < 2, np.zeros((5, 1)))
