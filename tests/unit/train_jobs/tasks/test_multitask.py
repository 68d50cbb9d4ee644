"""Several heads on one trunk: each has its own right answers, their weights are learned, the class is served."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from cluster.errors import ConfigError
from tests.unit.train_jobs.tasks.learning_scenarios import MULTITASK, dressed
from train_jobs import runs
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.export import to_onnx
from train_jobs.loop import TrainResult, train
from train_jobs.models.multihead import MultiHead
from train_jobs.tasks import Batch, MultiTaskConfig
from train_jobs.tasks.multitask import MultiTask, MultiTaskLoss, turned

CONFIG = MULTITASK.model_copy(update={"precision": "fp32", "epochs": 30, "batch_size": 16, "lr": 6e-3})


@pytest.fixture(scope="module")
def done(few_digits: LabelledDataset) -> TrainResult:
    return train(CONFIG, dressed(few_digits))


@pytest.fixture
def task(few_digits: LabelledDataset) -> MultiTask:
    torch.manual_seed(0)
    return MultiTaskConfig().build(CONFIG, dressed(few_digits))


def batch_of(task: MultiTask, rows: list[int], step: int = 0) -> Batch:
    index = torch.tensor(rows, dtype=torch.int64)
    return Batch(task.parts.train.x[index], task.parts.train.y[index], index, 8, step, seed=0)


def loss_of(task: MultiTask) -> MultiTaskLoss:
    loss = task.phases[0].loss
    assert isinstance(loss, MultiTaskLoss)
    return loss


def test_pictures_are_turned_by_quarters_to_the_left() -> None:
    x = torch.arange(4 * 9, dtype=torch.uint8).reshape(4, 1, 3, 3)
    made = turned(x, torch.tensor([0, 1, 2, 3]))
    for quarter in range(4):
        assert torch.equal(made[quarter], torch.rot90(x[quarter], quarter, (1, 2)))


def test_each_head_has_its_own_right_answers(task: MultiTask) -> None:
    model, batch = task.model, batch_of(task, list(range(8)), step=3)
    assert isinstance(model, MultiHead)
    by_head = dict(zip(("class", "department", "rotation"), loss_of(task).each(batch), strict=True))
    features = model.penultimate(batch.x)
    department = torch.tensor([0, 1, 0, 2, 0, 3, 0, 3, 4, 3])[batch.y]
    turns = torch.tensor([(row + 3) % 4 for row in range(8)])
    for head, logits, wanted in (
        ("class", model(batch.x), batch.y),
        ("department", model.heads["department"](features), department),
        ("rotation", model.heads["rotation"](model.penultimate(turned(batch.x, turns))), turns),
    ):
        torch.testing.assert_close(by_head[head], F.cross_entropy(logits, wanted, reduction="sum"))


def test_a_batch_s_loss_is_the_sum_of_its_parts_whoever_works_on_them(task: MultiTask) -> None:
    loss = loss_of(task)
    with torch.no_grad():
        loss.log_variances.copy_(torch.tensor([0.3, -0.2, 0.1]))  # type: ignore[union-attr]
        whole = loss(batch_of(task, list(range(8))))
        parts = loss(batch_of(task, [0, 2, 4, 6])) + loss(batch_of(task, [1, 3, 5, 7])) + loss(batch_of(task, []))
    torch.testing.assert_close(whole, parts)


def test_losses_are_weighed_by_their_uncertainty(task: MultiTask, few_digits: LabelledDataset) -> None:
    loss, batch = loss_of(task), batch_of(task, list(range(8)))
    each = torch.stack(loss.each(batch)).detach()
    assert float(loss(batch).detach()) == pytest.approx(float(each.sum()), rel=1e-6), "all variances are 1 at first"
    s = torch.tensor([0.5, -1.0, 2.0])
    with torch.no_grad():
        loss.log_variances.copy_(s)  # type: ignore[union-attr]
    expected = sum(math.exp(-v) * float(e) + 8 * v / 2 for v, e in zip(s.tolist(), each, strict=True))
    assert float(loss(batch).detach()) == pytest.approx(expected, rel=1e-5)
    fixed = MultiTaskConfig(weighting="fixed").build(CONFIG, dressed(few_digits))
    assert not [name for name, _ in loss_of(fixed).named_parameters() if not name.startswith("model.")]
    assert loss_of(fixed).weights() == {"class": 1.0, "department": 1.0, "rotation": 1.0}


def test_the_weights_move_and_all_heads_learn(done: TrainResult) -> None:
    assert isinstance(done.task, MultiTask)
    weights = loss_of(done.task).weights()
    assert all(abs(weight - 1) > 0.02 for weight in weights.values())
    assert len({round(weight, 4) for weight in weights.values()}) == 3, "each by its own loss"
    found = done.findings
    assert found is not None
    assert found.metrics["accuracy"] > 0.5
    assert found.metrics["department_accuracy"] > 0.55
    assert found.metrics["rotation_accuracy"] > 0.4, "a quarter by chance"
    assert found.notes[0].startswith("weights of the losses at the end: class ")


def test_what_is_served_is_the_class(done: TrainResult, few_digits: LabelledDataset, tmp_path: Path) -> None:
    (tmp_path / "multitask").mkdir()
    runs.finish(tmp_path / "multitask", CONFIG, "digits", done)
    loaded = runs.load("multitask", tmp_path).model
    x = torch.from_numpy(few_digits.x_test)
    assert loaded(x).shape == (450, 10)
    assert torch.equal(loaded(x), done.model(x))
    right = float((loaded(x).argmax(1).numpy() == few_digits.y_test).mean())
    assert done.findings is not None
    assert right == pytest.approx(done.findings.metrics["accuracy"])
    assert isinstance(loaded, MultiHead)
    graph = to_onnx(loaded)
    assert b"trunk.head.4.weight" in graph
    assert b"heads.rotation" not in graph, "nobody serves the other heads"


def test_its_blocks_end_with_all_heads(task: MultiTask) -> None:
    model = task.model
    assert isinstance(model, MultiHead)
    held = [id(p) for block in model.blocks() for p in block.parameters()]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert len(list(model.blocks()[-1].parameters())) == 6


@pytest.mark.parametrize("heads", [["department"], ["class", "class"], []])
def test_heads_without_the_class_or_twice_are_refused(heads: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"must hold class, and each head once"):
        CONFIG.with_overrides([f"task.heads={heads}"])


def test_heads_that_the_data_has_no_answers_for_are_refused(few_digits: LabelledDataset) -> None:
    with pytest.raises(ConfigError, match=r"digits has the classes 0, 1, 2, 3, 4, .*leave it out: --set 'task\.heads="):
        MultiTaskConfig().build(CONFIG, few_digits)
    oblong = replace(dressed(few_digits), x_train=few_digits.x_train[..., :20])
    with pytest.raises(ConfigError, match=r"turns square pictures, and digits has samples of \[1, 28, 20\]"):
        MultiTaskConfig().build(CONFIG, oblong)


def test_a_model_that_it_cannot_use_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model.kind=gan does not do task.kind=multitask"):
        TrainConfig(recipe="x").with_overrides(["model.kind=gan", "task.kind=multitask"])
