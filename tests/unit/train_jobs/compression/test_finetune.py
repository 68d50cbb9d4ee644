"""Fine-tuning: a pruned model gets its accuracy back, the same way every time, and never leaves worse than it came."""

from __future__ import annotations

import copy
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.errors import TrainingFailed
from train_jobs.compression.finetune import FinetuneConfig, finetune
from train_jobs.compression.prune import PruneConfig, prune
from train_jobs.datasets import LabelledDataset
from train_jobs.export import INPUT
from train_jobs.loop import TrainResult
from train_jobs.models import CNN
from train_jobs.tasks.classify import correct


@pytest.fixture(scope="module")
def pruned(trained: TrainResult) -> nn.Module:
    return prune(trained.model, PruneConfig(), inputs=INPUT)


def right(model: nn.Module, digits: LabelledDataset) -> float:
    return correct(model, torch.from_numpy(digits.x_test), torch.from_numpy(digits.y_test)) / len(digits.y_test)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_pruned_classifier_of_the_digits_gets_its_accuracy_back(
    trained: TrainResult, pruned: nn.Module, digits: LabelledDataset
) -> None:
    before = weights(pruned)
    told: list[str] = []
    tuned = finetune(pruned, digits, FinetuneConfig(batch_size=32), notify=told.append)
    assert right(pruned, digits) < right(trained.model, digits) - 0.02, "pruning costs accuracy: something is to be won"
    assert right(tuned, digits) > right(trained.model, digits) - 0.01
    assert same(weights(pruned), before), "what came is not touched"
    assert not tuned.training
    assert all(p.is_contiguous() for p in tuned.parameters())
    assert [line.split(":")[0] for line in told] == [f"fine-tune epoch {n}/3" for n in (1, 2, 3)]


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(few_digits: LabelledDataset) -> None:
    torch.manual_seed(0)
    model, config = CNN(dropout=0.5), FinetuneConfig(epochs=2, batch_size=32, validation=0.1)
    first = finetune(model, few_digits, config)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = finetune(model, few_digits, config)
    assert torch.equal(torch.get_rng_state(), state), "nor does it draw from what others draw from"
    assert same(weights(first), weights(again))
    other = finetune(model, few_digits, config.model_copy(update={"seed": 1}))
    assert not same(weights(first), weights(other))


def validated(dataset: LabelledDataset, config: FinetuneConfig, model: nn.Module) -> float:
    """Accuracy on the samples that choose the epoch."""
    order = np.random.default_rng(config.seed).permutation(len(dataset.y_train))
    kept = order[: int(len(order) * config.validation)]
    x, y = torch.from_numpy(dataset.x_train[kept]), torch.from_numpy(dataset.y_train[kept])
    return correct(model, x, y) / len(kept)


def test_the_best_epoch_is_what_stays(few_digits: LabelledDataset) -> None:
    torch.manual_seed(0)
    config = FinetuneConfig(epochs=6, batch_size=16, lr=0.02, validation=0.4)
    told: list[str] = []
    tuned = finetune(CNN(), few_digits, config, notify=told.append)
    by_epoch = [float(re.search(r"validation ([\d.]+)", line)[1]) for line in told]  # type: ignore[index]
    assert len(set(by_epoch)) > 1, "the epochs differ: otherwise this proves nothing"
    assert validated(few_digits, config, tuned) == pytest.approx(max(by_epoch), abs=1e-4)


def test_where_every_epoch_is_worse_the_model_stays_as_it_came(
    trained: TrainResult, few_digits: LabelledDataset
) -> None:
    ruinous = FinetuneConfig(epochs=1, batch_size=16, lr=1.0, validation=0.4)
    told: list[str] = []
    tuned = finetune(trained.model, few_digits, ruinous, notify=told.append)
    assert same(weights(tuned), weights(trained.model))
    assert float(told[0].rsplit(" ", 1)[1]) < validated(few_digits, ruinous, tuned)


def test_validation_samples_are_not_trained_on(few_digits: LabelledDataset) -> None:
    config = FinetuneConfig(epochs=1, batch_size=32, validation=0.25)
    order = np.random.default_rng(config.seed).permutation(len(few_digits.y_train))
    turned = few_digits.y_train.copy()
    turned[order[: len(order) // 4]] = (turned[order[: len(order) // 4]] + 1) % 10
    torch.manual_seed(0)
    model = CNN()
    lines: list[list[str]] = [[], []]
    for dataset, told in zip((few_digits, replace(few_digits, y_train=turned)), lines, strict=True):
        finetune(model, dataset, config, notify=told.append)
    (true,), (false,) = lines
    assert true.split(", ")[0] == false.split(", ")[0], "the loss does not see their labels"
    assert true != false, "the judgement does"


class Normalised(nn.Module):
    """Batch normalisation of vectors: in training it cannot take a batch of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 16), nn.BatchNorm1d(16), nn.Linear(16, 10))

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.layers(x.float() / 255.0)
        return logits


def test_a_batch_of_one_that_is_left_over_is_left_out(few_digits: LabelledDataset) -> None:
    torch.manual_seed(0)
    config = FinetuneConfig(epochs=2, batch_size=11, validation=0.1, lr=0.01)
    assert (len(few_digits.y_train) - 16) % config.batch_size == 1
    told: list[str] = []
    finetune(Normalised(), few_digits, config, notify=told.append)
    assert len(told) == 2


def test_frozen_statistics_and_weights_alike_are_learnt_in_a_few_steps(few_digits: LabelledDataset) -> None:
    torch.manual_seed(0)
    model = Normalised()
    tuned = finetune(model, few_digits, FinetuneConfig(epochs=4, batch_size=16, lr=0.01, validation=0.1))
    assert right(tuned, few_digits) > right(copy.deepcopy(model), few_digits) + 0.3


def test_a_learning_rate_out_of_all_bounds_fails_with_the_way_out(few_digits: LabelledDataset) -> None:
    with pytest.raises(TrainingFailed, match=r"fine-tuning diverged: loss (nan|inf) in epoch 1; lower lr=1e\+30"):
        finetune(CNN(), few_digits, FinetuneConfig(lr=1e30, batch_size=16))


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": 0.0}, {"lr": float("inf")}, {"validation": 0.5}, {"lr_": 1}])
def test_a_config_out_of_bounds_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        FinetuneConfig.model_validate(wrong)
