"""Fine-tuning: a smaller model gets its quality back, the same way every time, never leaves worse than it came, and
listens to a teacher as much as it is told to."""

from __future__ import annotations

import copy
import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.errors import ConfigError, TrainingFailed
from tests.unit.train_jobs.compression.subjects import (
    FAMILIES,
    answers,
    case,
    classify,
    ensemble,
    few,
    same,
    weights,
    wrong,
)
from train_jobs.compression.finetune import FinetuneConfig, finetune
from train_jobs.compression.prune import PruneConfig, prune
from train_jobs.datasets import LabelledDataset
from train_jobs.export import INPUT
from train_jobs.loop import TrainResult
from train_jobs.models import CNN
from train_jobs.parallel.shards import batches
from train_jobs.tasks.classify import correct


@pytest.fixture(scope="module")
def pruned(trained: TrainResult) -> nn.Module:
    return prune(trained.model, PruneConfig(), inputs=INPUT)


def right(model: nn.Module, digits: LabelledDataset) -> float:
    return correct(model, torch.from_numpy(digits.x_test), torch.from_numpy(digits.y_test)) / len(digits.y_test)


def test_a_pruned_classifier_of_the_digits_gets_its_accuracy_back(
    trained: TrainResult, pruned: nn.Module, digits: LabelledDataset
) -> None:
    before = weights(pruned)
    told: list[str] = []
    tuned = finetune(pruned, classify(digits), FinetuneConfig(batch_size=32), notify=told.append)
    assert right(pruned, digits) < right(trained.model, digits) - 0.02, "pruning costs accuracy: something is to be won"
    assert right(tuned, digits) > right(trained.model, digits) - 0.01
    assert same(weights(pruned), before), "what came is not touched"
    assert not tuned.training
    assert all(p.is_contiguous() for p in tuned.parameters())
    assert [line.split(":")[0] for line in told] == [f"fine-tune epoch {n}/3" for n in (1, 2, 3)]


def plain(model: nn.Module, dataset: LabelledDataset, config: FinetuneConfig) -> nn.Module:
    """The loop written out for classifiers."""
    order = np.random.default_rng(config.seed).permutation(len(dataset.y_train))
    kept = int(len(order) * config.validation)
    x, x_val = (torch.from_numpy(dataset.x_train[part]) for part in (order[kept:], order[:kept]))
    y, y_val = (torch.from_numpy(dataset.y_train[part]) for part in (order[kept:], order[:kept]))
    tuned = copy.deepcopy(model).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True)
    steps = math.ceil(len(x) / config.batch_size) * config.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=steps + 1)
    best, best_right = copy.deepcopy(tuned.state_dict()), correct(tuned, x_val, y_val)
    torch.manual_seed(config.seed)
    for epoch in range(config.epochs):
        tuned.train()
        for index, _ in batches(len(x), config.batch_size, epoch=epoch, seed=config.seed):
            loss = F.cross_entropy(tuned(x[index]), y[index])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        right = correct(tuned, x_val, y_val)
        if right >= best_right:
            best, best_right = copy.deepcopy(tuned.state_dict()), right
    tuned.load_state_dict(best)
    return tuned


def test_without_a_teacher_it_is_the_plain_loop_to_the_last_bit(few_digits: LabelledDataset) -> None:
    torch.manual_seed(0)
    model, config = CNN(dropout=0.2), FinetuneConfig(epochs=3, batch_size=16, validation=0.1)
    tuned = finetune(model, classify(few_digits), config)
    assert same(weights(tuned), weights(plain(model, few_digits, config)))
    assert not same(weights(tuned), weights(model)), "it has learnt"


def test_the_same_seed_gives_the_same_weights_whatever_was_drawn_before(few_digits: LabelledDataset) -> None:
    torch.manual_seed(0)
    model, config = CNN(dropout=0.5), FinetuneConfig(epochs=2, batch_size=32, validation=0.1)
    first = finetune(model, classify(few_digits), config)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    again = finetune(model, classify(few_digits), config)
    assert torch.equal(torch.get_rng_state(), state), "nor does it draw from what others draw from"
    assert same(weights(first), weights(again))
    other = finetune(model, classify(few_digits), config.model_copy(update={"seed": 1}))
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
    tuned = finetune(CNN(), classify(few_digits), config, notify=told.append)
    by_epoch = [float(re.search(r"validation ([\d.]+)", line)[1]) for line in told]  # type: ignore[index]
    assert len(set(by_epoch)) > 1, "the epochs differ: otherwise this proves nothing"
    assert validated(few_digits, config, tuned) == pytest.approx(max(by_epoch), abs=1e-4)


def test_where_every_epoch_is_worse_the_model_stays_as_it_came(
    trained: TrainResult, few_digits: LabelledDataset
) -> None:
    ruinous = FinetuneConfig(epochs=1, batch_size=16, lr=1.0, validation=0.4)
    told: list[str] = []
    tuned = finetune(trained.model, classify(few_digits), ruinous, notify=told.append)
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
        finetune(model, classify(dataset), config, notify=told.append)
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
    finetune(Normalised(), classify(few_digits), config, notify=told.append)
    assert len(told) == 2


def test_frozen_statistics_and_weights_alike_are_learnt_in_a_few_steps(few_digits: LabelledDataset) -> None:
    torch.manual_seed(0)
    model = Normalised()
    config = FinetuneConfig(epochs=4, batch_size=16, lr=0.01, validation=0.1)
    tuned = finetune(model, classify(few_digits), config)
    assert right(tuned, few_digits) > right(copy.deepcopy(model), few_digits) + 0.3


def test_a_learning_rate_out_of_all_bounds_fails_with_the_way_out(few_digits: LabelledDataset) -> None:
    with pytest.raises(TrainingFailed, match=r"fine-tuning diverged: loss (nan|inf) in epoch 1; lower lr=1e\+30"):
        finetune(CNN(), classify(few_digits), FinetuneConfig(lr=1e30, batch_size=16))


def disturbed(model: nn.Module) -> nn.Module:
    made, generator = copy.deepcopy(model), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p += 0.5 * p.abs().mean() * torch.randn(p.shape, generator=generator)
    return made


@pytest.mark.parametrize("name", FAMILIES)
def test_a_disturbed_model_of_every_family_recovers(name: str) -> None:
    made = case(name)
    worse = disturbed(made.model)
    config = FinetuneConfig(epochs=2, batch_size=64, validation=0.1, lr=2e-3)
    tuned = finetune(worse, made.subject, config, teacher=made.model)
    assert made.score(tuned) > made.score(worse)
    assert [a.shape for a in answers(tuned, made.x())] == [a.shape for a in answers(made.model, made.x())]


def test_with_all_of_the_loss_the_teacher_is_believed_and_the_labels_are_not(
    trained: TrainResult, few_digits: LabelledDataset
) -> None:
    """A student of wrong labels, judged by right ones, with a teacher who knows better."""
    kept = np.random.default_rng(0).permutation(160)[:32]
    labels = wrong(few_digits).y_train
    labels[kept] = few_digits.y_train[kept]
    x = torch.from_numpy(few_digits.x_train)
    theirs = answers(trained.model, x)[0].argmax(1)
    agreed = {}
    for share in (0.0, 1.0):
        torch.manual_seed(0)
        config = FinetuneConfig(epochs=6, batch_size=16, validation=0.2, teacher=share, temperature=4.0)
        tuned = finetune(CNN(), classify(replace(few_digits, y_train=labels)), config, teacher=trained.model)
        agreed[share] = float((answers(tuned, x)[0].argmax(1) == theirs).float().mean())
    assert agreed[0.0] < 0.2
    assert agreed[1.0] > 0.6


def test_the_shares_of_the_loss_are_those_of_the_config(trained: TrainResult, few_digits: LabelledDataset) -> None:
    """One step over all samples: its loss is told."""
    subject, student = classify(few_digits), copy.deepcopy(trained.model)
    with torch.no_grad():
        student.get_parameter("head.4.weight").mul_(0.5)
    (x, y), *_ = subject.lessons(epoch=0, batch_size=1000, seed=0, validation=0.1)
    answer, theirs = answers(student, x)[0], answers(trained.model, x)[0]
    hard = F.cross_entropy(answer, y)
    heat = 3.0
    soft = F.kl_div((answer / heat).log_softmax(1), (theirs / heat).softmax(1), reduction="batchmean") * heat**2
    config = FinetuneConfig(epochs=1, batch_size=144, teacher=0.3, temperature=heat, validation=0.1, lr=1e-9)
    told: list[str] = []
    finetune(student, subject, config, teacher=trained.model, notify=told.append)
    expected = 0.7 * float(hard) + 0.3 * float(soft)
    assert float(told[0].split("loss ")[1].split(",")[0]) == pytest.approx(expected, abs=2e-3)


def test_the_teacher_stays_as_it_is(trained: TrainResult, pruned: nn.Module, few_digits: LabelledDataset) -> None:
    teacher = copy.deepcopy(trained.model).train()
    before = weights(teacher)
    finetune(pruned, classify(few_digits), FinetuneConfig(epochs=1, teacher=0.5, features=1.0), teacher=teacher)
    assert same(weights(teacher), before)
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())


@pytest.mark.parametrize("name", ["cnn", "lstm"])
@pytest.mark.parametrize("features", [0.0, 0.5])
def test_an_ensemble_teaches_one_model(name: str, features: float) -> None:
    made = case(name)
    teacher = ensemble(name)
    config = FinetuneConfig(epochs=1, batch_size=32, teacher=1.0, features=features, validation=0.1)
    told: list[str] = []
    tuned = finetune(made.model, made.subject, config, teacher=teacher, notify=told.append)
    assert weights(tuned).keys() == weights(made.model).keys(), "the map of the features is gone"
    assert math.isfinite(float(told[0].split("loss ")[1].split(",")[0]))


def test_the_teachers_features_are_approached(trained: TrainResult) -> None:
    """By the best linear map, fitted afterwards: how much of the teacher's features the student's do not explain."""
    dataset = few()
    x = torch.from_numpy(dataset.x_train)

    def unexplained(student: nn.Module) -> float:
        with torch.inference_mode():
            own, theirs = (model.eval().penultimate(x) for model in (student, trained.model))  # type: ignore[operator]
        own = torch.cat([own, torch.ones(len(own), 1)], 1)
        return float((theirs - own @ torch.linalg.lstsq(own, theirs).solution).square().mean())

    torch.manual_seed(0)
    student, config = CNN(width=0.25), FinetuneConfig(epochs=8, batch_size=16, validation=0.1)
    without = finetune(student, classify(dataset), config)
    taught = config.model_copy(update={"features": 1.0})
    with_them = finetune(student, classify(dataset), taught, teacher=trained.model)
    assert unexplained(with_them) < 0.9 * unexplained(without)


def test_zeros_that_are_frozen_stay_while_the_rest_learns(trained: TrainResult, few_digits: LabelledDataset) -> None:
    name = "head.1.weight"
    zero = torch.rand(trained.model.get_parameter(name).shape, generator=torch.Generator().manual_seed(0)) < 0.5
    config = FinetuneConfig(epochs=2, batch_size=16, validation=0.4, weight_decay=0.5)
    tuned = finetune(trained.model, classify(few_digits), config, frozen_zeros={name: zero})
    after, before = tuned.get_parameter(name), trained.model.get_parameter(name)
    assert torch.equal(after == 0, zero)
    assert not torch.equal(after[~zero], before[~zero])
    free = finetune(trained.model, classify(few_digits), config).get_parameter(name)
    assert not bool((free == 0).any())


def test_half_of_the_pictures_are_mirrored_and_others_each_epoch(few_digits: LabelledDataset) -> None:
    seen: list[Tensor] = []

    class Watching(CNN):
        def forward(self, x_BCHW: Tensor) -> Tensor:
            if self.training:
                seen.append(x_BCHW.clone())
            return super().forward(x_BCHW)

    subject = classify(few_digits)
    model = Watching(inputs=tuple(few_digits.x_train.shape[1:]))
    finetune(model, subject, FinetuneConfig(epochs=2, batch_size=1000, flip=True))
    shares = []
    for epoch in range(2):
        shown = [x for x, _ in subject.lessons(epoch=epoch, batch_size=16, seed=0, validation=0.05)]
        theirs = seen[epoch * len(shown) : (epoch + 1) * len(shown)]
        turned = [(a != b).flatten(1).any(1) for a, b in zip(theirs, shown, strict=True)]
        for a, b, which in zip(theirs, shown, turned, strict=True):
            assert torch.equal(a[which], b.flip(-1)[which])
        shares.append(torch.cat(turned))
    assert all(0.3 < float(each.double().mean()) < 0.7 for each in shares)
    assert not torch.equal(shares[0], shares[1])


def test_series_are_not_mirrored() -> None:
    forecaster = case("lstm")
    with pytest.raises(ConfigError, match="flip=true mirrors pictures"):
        finetune(forecaster.model, forecaster.subject, FinetuneConfig(epochs=1, flip=True))


def test_what_its_owner_froze_learns_here() -> None:
    made = case("gan")
    assert not any(p.requires_grad for p in made.model.parameters()), "an averaged generator"
    worse = disturbed(made.model)
    tuned = finetune(worse, made.subject, FinetuneConfig(epochs=1), teacher=made.model)
    for name, p in tuned.named_parameters():
        assert not torch.equal(p, worse.get_parameter(name)), name


@pytest.mark.parametrize("settings", [{"teacher": 0.5}, {"features": 0.1}])
def test_a_teacher_that_is_wanted_and_not_given_is_asked_for(
    settings: dict[str, float], few_digits: LabelledDataset
) -> None:
    with pytest.raises(ConfigError, match=r"teacher=0(\.5)? and features=0(\.1)? .*none was given; pass teacher="):
        finetune(CNN(), classify(few_digits), FinetuneConfig(**settings))  # type: ignore[arg-type]


def test_a_generator_has_nothing_to_learn_from_but_its_teacher() -> None:
    made = case("gan")
    with pytest.raises(ConfigError, match=r"teacher=1 and features=0 .* none was given"):
        finetune(made.model, made.subject, FinetuneConfig())


def test_features_of_models_that_do_not_tell_them_are_refused() -> None:
    made = case("gan_dense")
    with pytest.raises(ConfigError, match=r"features=1 needs models .* Sequential of family gan .*features=0"):
        finetune(made.model, made.subject, FinetuneConfig(features=1.0), teacher=made.model)


@pytest.mark.parametrize(
    "wrong_field",
    [
        {"epochs": 0}, {"lr": 0.0}, {"lr": float("inf")}, {"validation": 0.5}, {"lr_": 1}, {"teacher": 1.1},
        {"temperature": 0.0}, {"features": -1.0},
    ],
)  # fmt: skip
def test_a_config_out_of_bounds_is_refused(wrong_field: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong_field))):
        FinetuneConfig.model_validate(wrong_field)
