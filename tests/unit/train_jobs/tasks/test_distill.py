"""Students learn from finished runs: the textbook's loss, teachers that stay as they are, errors that name them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from cluster.errors import ConfigError
from tests.unit.train_jobs.tasks.learning_scenarios import DISTILL
from train_jobs import runs
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.ensembles import finish_ensemble
from train_jobs.loop import TrainResult, train
from train_jobs.tasks import Batch, DistillConfig
from train_jobs.tasks.distill import Distill, DistillLoss, Teachers

CONFIG = DISTILL.model_copy(update={"precision": "fp32", "task": DistillConfig(teachers=("teacher",))})


@pytest.fixture(scope="module")
def runs_dir(
    trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A teacher of nineteen in twenty; another that learned little; both as an ensemble."""
    folder = tmp_path_factory.mktemp("runs")
    other = quick_config.model_copy(update={"seed": 1, "epochs": 1})
    both = quick_config.model_copy(update={"members": 2})
    for name in ("teacher", "other", "both"):
        (folder / name).mkdir()
    runs.finish(folder / "teacher", quick_config, "digits", trained)
    runs.finish(folder / "other", other, "digits", train(other, digits))
    finish_ensemble(folder / "both", both, [runs.load(name, folder) for name in ("teacher", "other")])
    return folder


def built(settings: DistillConfig, data: LabelledDataset, runs_dir: Path) -> tuple[Distill, DistillLoss, Batch]:
    torch.manual_seed(0)
    task = settings.build(CONFIG.model_copy(update={"task": settings}), data, runs_dir=runs_dir)
    loss = task.phases[0].loss
    assert isinstance(loss, DistillLoss)
    x, y = task.parts.train.x[:6], task.parts.train.y[:6]
    return task, loss, Batch(x, y, torch.arange(6), 6, 0, seed=0)


def test_the_loss_is_the_textbook_s(few_digits: LabelledDataset, runs_dir: Path) -> None:
    settings = DistillConfig(teachers=("teacher",), temperature=3.0, alpha=0.7)
    task, loss, batch = built(settings, few_digits, runs_dir)
    teacher = runs.load("teacher", runs_dir).model
    mine, theirs = task.model(batch.x), teacher(batch.x)
    p, q = (theirs / 3).softmax(1), (mine / 3).softmax(1)
    soft = (p * (p.log() - q.log())).sum()
    expected = 0.7 * 9 * soft + 0.3 * F.cross_entropy(mine, batch.y, reduction="sum")
    torch.testing.assert_close(loss(batch), expected)
    assert [name for name, _ in loss.named_parameters() if not name.startswith("model.")] == []


def test_features_are_compared_through_a_map_that_learns(few_digits: LabelledDataset, runs_dir: Path) -> None:
    settings = DistillConfig(teachers=("teacher",), alpha=0.0, features=2.0)
    task, loss, batch = built(settings, few_digits, runs_dir)
    teacher = runs.load("teacher", runs_dir).model
    assert loss.projection is not None
    assert loss.projection.weight.shape == (64, 16)
    mine, theirs = (m.penultimate(batch.x) for m in (task.model, teacher))  # type: ignore[operator]
    hint = 2.0 * 0.5 * (theirs - loss.projection(mine)).square().mean(1).sum()
    torch.testing.assert_close(loss(batch), F.cross_entropy(task.model(batch.x), batch.y, reduction="sum") + hint)
    loss(batch).backward()
    assert loss.projection.weight.grad is not None
    assert float(loss.projection.weight.grad.abs().sum()) > 0
    assert "projection" not in "".join(task.model.state_dict())


def test_several_teachers_and_an_ensemble_speak_with_one_voice(few_digits: LabelledDataset, runs_dir: Path) -> None:
    x = torch.from_numpy(few_digits.x_test[:20])
    first, second, both = (runs.load(name, runs_dir).model for name in ("teacher", "other", "both"))
    expected = torch.stack([(m(x) / 2).softmax(1) for m in (first, second)]).mean(0)
    for teachers in (Teachers([first, second]), Teachers([both])):
        torch.testing.assert_close(teachers.log_probabilities(x, 2.0).exp(), expected)
        assert teachers.features(x).shape == (20, 128), "side by side"


def test_a_student_comes_to_agree_with_its_teacher(few_digits: LabelledDataset, runs_dir: Path) -> None:
    config = CONFIG.model_copy(update={"epochs": 12})
    task = config.task.build(config, few_digits, runs_dir=runs_dir)
    before = task.findings(task.model.eval()).metrics
    after = train(config, few_digits, runs_dir=runs_dir).findings
    assert after is not None
    assert after.metrics["agreement"] > before["agreement"] + 0.3
    assert after.metrics["teacher_accuracy"] == before["teacher_accuracy"] > 0.9


def test_the_teacher_stays_as_it_is_and_out_of_what_is_trained(few_digits: LabelledDataset, runs_dir: Path) -> None:
    task, loss, batch = built(DistillConfig(teachers=("teacher", "other"), features=1.0), few_digits, runs_dir)
    teachers = task._teachers._models
    kept = [{k: v.clone() for k, v in model.state_dict().items()} for model in teachers]
    registered = {id(m) for m in loss.modules()}
    assert not any(id(m) in registered for teacher in teachers for m in teacher.modules())
    loss.train()
    loss(batch).backward()
    for teacher, weights in zip(teachers, kept, strict=True):
        assert not teacher.training
        assert all(p.grad is None for p in teacher.parameters())
        assert all(torch.equal(teacher.state_dict()[k], v) for k, v in weights.items())
    loss.double()
    assert loss(batch).dtype == torch.float64, "teachers follow the student's precision"


def test_a_student_begins_as_it_would_without_a_teacher(few_digits: LabelledDataset, runs_dir: Path) -> None:
    plain = TrainConfig.model_validate(CONFIG.model_dump() | {"task": {"kind": "classify"}})
    weights = []
    for config in (plain, CONFIG):
        torch.manual_seed(4)
        weights.append(config.task.build(config, few_digits, runs_dir=runs_dir).model.state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_a_teacher_of_other_classes_or_pictures_is_refused(few_digits: LabelledDataset, runs_dir: Path) -> None:
    few = few_digits.y_train < 4
    four = replace(few_digits, x_train=few_digits.x_train[few], y_train=few_digits.y_train[few], labels=tuple("0123"))
    with pytest.raises(
        ConfigError,
        match=r"run 'teacher' \(digits\) takes \[1, 28, 28\] and gives \[10\], this run takes \[1, 28, 28\] and gives "
        r"\[4\]; name a run on the same data",
    ):
        CONFIG.task.build(CONFIG, four, runs_dir=runs_dir)
    large = replace(few_digits, x_train=few_digits.x_train.repeat(2, 2))
    with pytest.raises(ConfigError, match=r"this run takes \[1, 56, 28\] and gives \[10\]"):
        CONFIG.task.build(CONFIG, large, runs_dir=runs_dir)


def test_a_teacher_that_is_not_there_is_named_with_the_way_out(few_digits: LabelledDataset, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no finished run 'teacher' .*train it first: sluice train"):
        CONFIG.task.build(CONFIG, few_digits, runs_dir=tmp_path)
    with pytest.raises(ConfigError, match="teachers"):
        CONFIG.with_overrides(["task.teachers=[]"])


def test_features_of_a_teacher_that_has_none_are_refused() -> None:
    bare = Teachers([nn.Sequential(nn.Flatten(), nn.Linear(784, 10))])
    with pytest.raises(ConfigError, match=r"task.features needs teachers that have penultimate\(\)"):
        bare.features(torch.zeros(1, 1, 28, 28))
