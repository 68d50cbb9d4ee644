"""The judge of numbers: the error by hand, ratios on the same draws, intervals that cover, windows that stay a view."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from cluster.errors import ConfigError, InvalidRequest
from cluster.slo import AccuracyFloor
from cluster.variants import Accuracy
from tests.unit.train_jobs.judges.contract import Case, JudgeContract, Tensors
from train_jobs.config import TrainConfig
from train_jobs.datasets import ett
from train_jobs.judges import ErrorJudge
from train_jobs.judges.relative import improvement
from train_jobs.models import MLPConfig
from train_jobs.tasks import ForecastConfig

Floats = NDArray[np.float64]


def judge_of(x: NDArray[Any], y: NDArray[Any], **more: Any) -> ErrorJudge:
    return ErrorJudge(x=x, y=y, dataset="told", inputs="x", output="y", **more)


def against(mine: Floats, theirs: Floats, *, block: int = 1) -> Accuracy:
    """Errors of two graphs on the same samples."""
    nothing = np.zeros((len(mine), 1), np.float32)
    return judge_of(nothing, nothing, block=block).accuracy(mine, runtime="torch", root=("r" * 16, theirs))


class TestErrorJudge(JudgeContract):
    @pytest.fixture
    def case(self) -> Case:
        """A window's answer is its last values, in reverse; the truth is that with noise."""
        rng = np.random.default_rng(0)
        x = sliding_window_view(rng.normal(size=1009).astype(np.float32), 10)
        y = x[:, :-4:-1] + rng.normal(0, 0.2, (1000, 3)).astype(np.float32)
        judge = judge_of(x, y, block=10)

        def graph(batch: Tensors) -> dict[str, NDArray[Any]]:
            return {"y": batch["x"][:, :-4:-1]}

        return Case(judge, 1000, graph, lambda batch: {"y": 1.3 * graph(batch)["y"]})


def test_the_error_is_the_mean_square_over_all_values_of_a_sample_on_the_given_scale() -> None:
    rng = np.random.default_rng(1)
    y, answer = rng.normal(size=(2, 20, 4, 3)).astype(np.float32)
    scale = np.array([1.0, 2.0, 10.0])
    judge = judge_of(y, y, scale=scale)
    by_hand = [np.mean([((answer[n, h, c] - y[n, h, c]) / scale[c]) ** 2 for h in range(4) for c in range(3)])
               for n in range(20)]  # fmt: skip
    kept = judge.read([{"y": answer[:15]}, {"y": answer[15:]}])
    assert kept.dtype == np.float64
    np.testing.assert_allclose(kept, by_hand, rtol=1e-6)
    assert judge.accuracy(kept, runtime="torch").value == pytest.approx(np.mean(by_hand), rel=1e-6)


def test_an_answer_is_brought_onto_the_scale_of_the_truth() -> None:
    y = np.random.default_rng(1).random((6, 4)).astype(np.float32)
    judge = judge_of(y, y, answer_scale=lambda answer: answer / 255.0)
    np.testing.assert_allclose(judge.read([{"y": 255.0 * y}]), 0.0, atol=1e-12)
    np.testing.assert_allclose(judge.read([{"y": 255.0 * y + 25.5}]), 0.01, rtol=1e-4)


def test_the_figure_of_a_forecaster_is_its_task_s() -> None:
    config = TrainConfig(
        recipe="mlp", dataset="seasonal", model=MLPConfig(hidden=(8,)), task=ForecastConfig(lookback=36, horizon=12)
    )
    task = config.task.build(config, ett.seasonal(400))
    model, test = task.model.eval(), task.parts.test
    std = model.preprocess.std.numpy()  # type: ignore[union-attr,operator]
    judge = judge_of(test.x.numpy(), test.y.numpy(), scale=std)
    with torch.inference_mode():
        kept = judge.read({"y": model(torch.from_numpy(batch["x"])).numpy()} for batch in judge.inputs(20))
        told = task.findings(model).metrics["mse"]
    assert judge.accuracy(kept, runtime="torch").value == pytest.approx(told, rel=1e-5)


def test_hundreds_of_thousands_of_windows_stay_a_view_of_their_series() -> None:
    """All of them would be 320 MB."""
    x = sliding_window_view(np.arange(200_399, dtype=np.float32), 400)
    judge = judge_of(x, x[:, ::8])
    tracemalloc.start()
    kept = judge.read({"y": batch["x"][:, ::8]} for batch in judge.inputs(250))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(kept) == 200_000
    assert not kept.any()
    assert most < 20 << 20


# Intervals


def test_a_ratio_on_the_same_samples_is_surer_than_the_two_errors() -> None:
    rng = np.random.default_rng(2)
    theirs = rng.exponential(size=500)
    found = against(theirs * rng.normal(1.02, 0.05, 500), theirs)
    assert found.to_root is not None
    low, high = found.to_root.interval
    assert found.to_root.value == pytest.approx(-0.02, abs=0.01)
    alone = found.interval[1] / found.interval[0] - 1
    assert high - low < 0.1 * alone


def test_an_error_that_lasts_is_less_sure_than_one_that_does_not() -> None:
    rng = np.random.default_rng(3)
    level = np.repeat(rng.exponential(size=40), 50)  # fifty neighbours are wrong alike
    theirs = level * rng.normal(1, 0.05, 2000) ** 2
    mine = theirs * np.repeat(rng.normal(1, 0.1, 40), 50)
    alone, together = against(mine, theirs), against(mine, theirs, block=50)
    for one, other in ((alone.interval, together.interval), (alone.to_root, together.to_root)):
        ends = [each if isinstance(each, tuple) else each.interval for each in (one, other)]  # type: ignore[union-attr]
        assert ends[1][1] - ends[1][0] > 3 * (ends[0][1] - ends[0][0])
    assert alone.value == together.value


def test_the_intervals_cover_as_often_as_they_say() -> None:
    """Two graphs whose errors are correlated; the true ones are 1 and 1.1."""
    covered = np.zeros(2, int)
    for seed in range(200):
        rng = np.random.default_rng(seed)
        off = rng.normal(size=150)
        theirs, mine = off**2, (np.sqrt(1.0) * off + rng.normal(0, np.sqrt(0.1), 150)) ** 2
        found = against(mine, theirs)
        assert found.to_root is not None
        covered += [found.interval[0] <= 1.1 <= found.interval[1],
                    found.to_root.interval[0] <= -0.1 <= found.to_root.interval[1]]  # fmt: skip
    assert (covered > 0.90 * 200).all()
    assert (covered < 0.99 * 200).all()


def test_an_error_of_nought_has_a_share_that_json_can_hold() -> None:
    assert improvement(0.0, 0.0) == 0.0
    assert improvement(1.0, 2.0) == 0.5
    assert improvement(2.0, 1.0) == -1.0
    assert improvement(1.0, 0.0) == -1e6
    found = against(np.ones(10), np.zeros(10))
    assert found.to_root is not None
    assert found.to_root.value == -1e6
    assert AccuracyFloor().verdict(found) == "fails"


# Floors


@pytest.mark.parametrize(
    ("larger", "scatter", "floor", "verdict"),
    [
        (1.02, 0.05, {}, "holds"),
        (0.90, 0.05, {"max_increase": 0.0}, "holds"),
        (1.20, 0.05, {}, "fails"),
        (1.05, 0.40, {}, "unclear"),
        (1.20, 0.05, {"max_increase": 0.3}, "holds"),
        (1.20, 0.05, {"maximum": 2.0}, "holds"),
        (1.20, 0.05, {"maximum": 1.2}, "unclear"),
        (1.02, 0.05, {"maximum": 0.5}, "fails"),
        (1.20, 0.05, {"maximum": 2.0, "max_increase": 0.05}, "fails"),
        (1.02, 0.05, {"max_drop": 0.0, "minimum": 0.99}, "holds"),  # floors of shares say nothing of errors
    ],
)
def test_the_floor_of_an_error(larger: float, scatter: float, floor: dict[str, float], verdict: str) -> None:
    rng = np.random.default_rng(4)
    theirs = rng.exponential(size=2000)
    mine = theirs * rng.normal(larger, scatter, 2000)
    assert AccuracyFloor.model_validate(floor).verdict(against(mine, theirs)) == verdict


# What is refused


def test_answers_that_are_none_are_refused() -> None:
    y = np.zeros((6, 4), np.float32)
    judge = judge_of(y, y)
    with pytest.raises(InvalidRequest, match=r"output 'y' has shape \[6, 3\] where \[6, 4\] is the truth; leave out"):
        judge.read([{"y": y[:, :3]}])
    spoilt = y.copy()
    spoilt[2, 1], spoilt[5] = np.nan, np.inf
    with pytest.raises(InvalidRequest, match="answers 2 of 6 test samples with NaN or infinity, first sample 2; leave"):
        judge.read([{"y": spoilt}])
    with pytest.raises(InvalidRequest, match="gives 0 answers to 6 test samples"):
        judge.read([])


@pytest.mark.parametrize(("samples", "answers"), [(1, 1), (0, 0), (5, 4)])
def test_a_test_part_that_says_nothing_is_refused(samples: int, answers: int) -> None:
    with pytest.raises(ConfigError, match=f"told has {samples} test samples and {answers} answers to them; give as"):
        judge_of(np.zeros((samples, 2)), np.zeros((answers, 2)))
