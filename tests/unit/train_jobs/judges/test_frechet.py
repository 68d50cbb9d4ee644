"""The judge of made pictures: training's own distance, the same latents for every graph, a bias that cancels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from cluster.errors import InvalidRequest
from cluster.slo import AccuracyFloor
from tests.unit.train_jobs.judges.contract import Case, Graph, JudgeContract, Tensors
from tests.unit.train_jobs.tasks.generative_scenarios import GAN as CONFIG
from train_jobs.datasets import LabelledDataset
from train_jobs.judges import FrechetJudge
from train_jobs.models import GAN
from train_jobs.tasks import AdversarialConfig, frechet
from train_jobs.tasks.adversarial import Adversarial


@pytest.fixture(scope="module")
def task(few_digits: LabelledDataset) -> Adversarial:
    torch.manual_seed(0)
    return AdversarialConfig().build(CONFIG.model_copy(update={"precision": "fp32"}), few_digits)


def judge_of(task: Any, seed: int = 0) -> FrechetJudge:
    return FrechetJudge(task=task, dataset="told", inputs="latent", output="image", seed=seed)


def generator_of(task: Adversarial) -> Graph:
    assert isinstance(task.model, GAN)
    generator = task.model.average.eval()

    def graph(batch: Tensors) -> dict[str, NDArray[Any]]:
        with torch.inference_mode():
            return {"image": generator(torch.from_numpy(batch["latent"])).numpy()}

    return graph


class TestFrechetJudge(JudgeContract):
    @pytest.fixture
    def case(self, task: Adversarial, digits: LabelledDataset) -> Case:
        """A generator that knows the training pictures by heart, and one of their negatives."""

        def graph(batch: Tensors) -> dict[str, NDArray[Any]]:
            rows = (np.abs(batch["latent"][:, 0]) * 1e4).astype(int) % len(digits.x_train)
            return {"image": digits.x_train[rows].astype(np.float32) / 255.0}

        return Case(judge_of(task), 450, graph, lambda batch: {"image": 1.0 - graph(batch)["image"]})


def test_the_figure_is_the_one_that_training_found(task: Adversarial) -> None:
    judge = judge_of(task)
    kept = judge.read(map(generator_of(task), judge.inputs(100)))
    assert kept.shape == (450, 32), "by as many features as the task's classifier has"
    with torch.inference_mode():
        told = task.findings(task.model.eval()).metrics["frechet"]
    found = judge.accuracy(kept, runtime="torch")
    assert found.value == pytest.approx(told, rel=1e-3)
    assert (found.metric, found.higher_is_better) == ("frechet", False)


def test_pictures_of_another_shape_or_that_are_none_are_refused(task: Adversarial) -> None:
    judge, graph = judge_of(task), generator_of(task)
    made = [graph(batch) for batch in judge.inputs(450)]
    with pytest.raises(InvalidRequest, match=r"'image' has shape \[450, 1, 28, 20\], and pictures are \[1, 28, 28\]"):
        judge.read([{"image": made[0]["image"][..., :20]}])
    spoilt = made[0]["image"].copy()
    spoilt[7] = np.nan
    with pytest.raises(InvalidRequest, match="answers 1 of 450 test samples with NaN or infinity, first sample 7"):
        judge.read([{"image": spoilt}])


class Gaussian:
    """Pictures of four pixels that are their own features; `real` of them, drawn once."""

    def __init__(self, made: int, real: int = 400) -> None:
        self.shapes = {"inputs": [4], "outputs": [1, 2, 2]}
        self._latents = torch.zeros(made, 4)
        self._real = torch.from_numpy(np.random.default_rng(99).normal(size=(real, 4)))

    def tested(self) -> Tensor:
        return self._latents

    def features(self, pictures: Tensor) -> Tensor:
        return pictures.flatten(1)

    def real_moments(self) -> Tensor:
        return frechet.moments(self._real)


def drawn(samples: int, seed: int, *, away: float = 0.6, wide: float = 1.3) -> NDArray[np.float32]:
    """Features that are off in mean and spread."""
    return (np.random.default_rng(seed).normal(size=(samples, 4)) * wide + away).astype(np.float32)


def moved(features: NDArray[np.float32], seed: int, by: float) -> NDArray[np.float32]:
    """What a graph that is a little off makes of the same latents."""
    return (features * by + np.random.default_rng(seed).normal(0, 0.02, features.shape)).astype(np.float32)


def test_the_intervals_cover_as_often_as_they_say_though_the_distance_is_too_high() -> None:
    """Of the figure and of the ratio, both of 300 pictures; what they are about is found by drawing many times."""
    judge = judge_of(Gaussian(300))
    real = Gaussian(300).real_moments()

    def distance(features: NDArray[np.float32]) -> float:
        return frechet.distance(frechet.moments(torch.from_numpy(features)), real)

    drawn_often = [(drawn(300, seed), seed) for seed in range(1000, 1400)]
    distances = np.array([(distance(each), distance(moved(each, seed, 1.05))) for each, seed in drawn_often])
    theirs, mine = distances.mean(0)
    truths = np.array([mine, np.mean(1 - distances[:, 1] / distances[:, 0])])
    covered = np.zeros(2, int)
    for seed in range(60):
        features = drawn(300, seed)
        found = judge.accuracy(moved(features, seed, 1.05), runtime="torch", root=("r" * 16, features))
        assert found.to_root is not None
        covered += [found.interval[0] <= truths[0] <= found.interval[1],
                    found.to_root.interval[0] <= truths[1] <= found.to_root.interval[1]]  # fmt: skip
        assert found.interval[0] < found.value < found.interval[1]
    assert theirs < mine
    assert (covered > 0.86 * 60).all()


def test_a_ratio_of_the_same_latents_is_surer_than_the_two_distances() -> None:
    judge, features = judge_of(Gaussian(500)), drawn(500, 1)
    found = judge.accuracy(moved(features, 1, 1.01), runtime="torch", root=("r" * 16, features))
    assert found.to_root is not None
    low, high = found.to_root.interval
    assert high - low < 0.3 * (found.interval[1] - found.interval[0]) / found.value


@pytest.mark.parametrize(
    ("by", "floor", "verdict"),
    [
        (1.003, {}, "holds"),
        (1.15, {}, "fails"),
        (1.15, {"max_increase": 0.9}, "holds"),
        (1.003, {"maximum": 3.0}, "holds"),
        (1.003, {"maximum": 1.8}, "unclear"),
        (1.003, {"maximum": 0.5}, "fails"),
    ],
)
def test_the_floor_of_a_distance(by: float, floor: dict[str, float], verdict: str) -> None:
    judge, features = judge_of(Gaussian(1000)), drawn(1000, 2)
    found = judge.accuracy(moved(features, 2, by), runtime="torch", root=("r" * 16, features))
    assert AccuracyFloor.model_validate(floor).verdict(found) == verdict


def test_wide_features_make_do_with_fewer_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    features = drawn(300, 3)
    judge = judge_of(Gaussian(300))
    whole = judge.accuracy(features, runtime="torch")
    monkeypatch.setattr("train_jobs.judges.frechet._HELD", 16 * 40)
    fewer = judge.accuracy(features, runtime="torch")
    assert fewer.value == pytest.approx(whole.value)
    widths = [each.interval[1] - each.interval[0] for each in (whole, fewer)]
    assert widths[0] != widths[1]
    assert widths[1] == pytest.approx(widths[0], rel=0.5)
