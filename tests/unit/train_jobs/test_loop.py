"""The loop: the same curve at any number of workers, across a restart, and an end that all workers reach together."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cluster.errors import ConfigError, TrainingFailed
from tests.unit.train_jobs import gloo, scenarios
from tests.unit.train_jobs.scenarios import CONFIG
from train_jobs import checkpoint, loop
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.loop import Diverged, Progress, TrainResult, train


@pytest.fixture(scope="module")
def alone(few_digits: LabelledDataset) -> dict[str, Any]:
    return scenarios.curve(CONFIG, few_digits)


@pytest.fixture(scope="module")
def groups(few_digits: LabelledDataset) -> dict[int, list[dict[str, Any]]]:
    return gloo.run(scenarios.several, CONFIG, few_digits, world_sizes=(2, 3))


@pytest.fixture(params=[2, 3])
def together(request: pytest.FixtureRequest, groups: dict[int, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """What each of 2 or 3 workers saw."""
    return groups[request.param]


def assert_same_weights(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor], tolerance: float) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=tolerance, atol=tolerance)


def test_several_workers_follow_the_curve_of_one(alone: dict[str, Any], together: list[dict[str, Any]]) -> None:
    assert alone["loss"][0] - alone["loss"][-1] > 0.4, "it learns something: the curves are no flat lines"
    for rank in together:
        assert rank["curve"]["loss"] == pytest.approx(alone["loss"], abs=1e-5)
        assert rank["curve"]["accuracy"] == alone["accuracy"]
        assert rank["curve"]["time_left_s"] == 0.0, "what the others did counts as done"
        assert_same_weights(rank["curve"]["weights"], alone["weights"], 1e-5)


def test_all_workers_hear_the_same_numbers_and_hold_the_same_weights(together: list[dict[str, Any]]) -> None:
    first = together[0]["curve"]
    for rank in together[1:]:
        assert rank["curve"]["loss"] == first["loss"], "bit for bit: decisions hang on them"
        assert_same_weights(rank["curve"]["weights"], first["weights"], 0.0)


def test_all_workers_stop_early_after_the_same_epoch(together: list[dict[str, Any]]) -> None:
    for rank in together:
        accuracies = rank["stopped"]["accuracy"]
        assert len(accuracies) == 3, "the first epoch is the best; two without a better one follow"
        assert accuracies[0] >= max(accuracies)


def test_a_nan_on_one_worker_ends_the_run_on_all_with_the_way_out(together: list[dict[str, Any]]) -> None:
    for rank in together:
        assert "loss is nan in epoch 1; lower lr=0.002 (--set lr=...)" in rank["diverged"]


def test_a_run_goes_on_with_another_number_of_workers(
    alone: dict[str, Any], together: list[dict[str, Any]], few_digits: LabelledDataset
) -> None:
    resumed = scenarios.curve(CONFIG, few_digits, together[0]["curve"]["states"][0])
    assert resumed["loss"] == pytest.approx(alone["loss"], abs=1e-5)
    assert_same_weights(resumed["weights"], alone["weights"], 1e-5)


class _Killed(Exception):
    pass


@pytest.mark.parametrize("schedule", ["constant", "one_cycle"])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_one_epoch_and_two_more_are_three(
    few_digits: LabelledDataset, tmp_path: Path, optimizer: str, schedule: str
) -> None:
    config = CONFIG.model_copy(
        update={"dropout": 0.3, "batch_size": 32, "optimizer": optimizer, "schedule": schedule, "epochs": 3}
    )
    straight = train(config, few_digits)

    def die(progress: Progress, state: dict[str, Any]) -> None:
        checkpoint.save(state, tmp_path)
        raise _Killed

    with pytest.raises(_Killed):
        train(config, few_digits, on_epoch=die)
    resumed = train(config, few_digits, resume=checkpoint.load(tmp_path))
    assert (straight.resumed_from_epoch, resumed.resumed_from_epoch) == (0, 1)
    assert [row.epoch for row in resumed.history] == [1, 2, 3]
    assert [row.loss for row in resumed.history] == pytest.approx([row.loss for row in straight.history], rel=1e-6)
    assert resumed.history[-1].time_left_s == 0.0, "what was done before the restart is not waited for"
    assert_same_weights(resumed.model.state_dict(), straight.model.state_dict(), 1e-6)


def test_the_model_has_the_weights_of_its_best_epoch(few_digits: LabelledDataset) -> None:
    config = CONFIG.model_copy(update={"epochs": 6, "lr": 0.02, "schedule": "constant", "batch_size": 32})
    result = train(config, few_digits)
    accuracies = [row.val_accuracy for row in result.history]
    assert max(accuracies) > accuracies[-1], "the last epoch is not the best here: otherwise this proves nothing"
    _, _, x_val, y_val = loop.split(config, few_digits)
    assert loop.correct(result.model, x_val, y_val) / len(y_val) == max(accuracies)
    assert not result.model.training


def test_it_learns_the_digits(trained: TrainResult, digits: LabelledDataset) -> None:
    right = loop.correct(trained.model, torch.from_numpy(digits.x_test), torch.from_numpy(digits.y_test))
    assert right / len(digits.y_test) > 0.9
    assert all(p.is_contiguous() for p in trained.model.parameters()), "as everybody expects them; not channels last"


def test_the_same_seed_repeats_the_run_and_another_does_not(few_digits: LabelledDataset) -> None:
    config = CONFIG.model_copy(update={"epochs": 1, "dropout": 0.5})
    first, again = train(config, few_digits), train(config, few_digits)
    other = train(config.model_copy(update={"seed": 1}), few_digits)
    assert first.history[0].loss == again.history[0].loss != other.history[0].loss


def test_every_epoch_draws_its_own_noise(few_digits: LabelledDataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, int]] = []
    true_seed = loop.seed_noise
    monkeypatch.setattr(loop, "seed_noise", lambda **numbers: (seen.append(numbers), true_seed(**numbers)))
    train(CONFIG.model_copy(update={"seed": 7}), few_digits)
    assert seen == [{"epoch": epoch, "seed": 7, "rank": 0} for epoch in range(3)]


def test_a_learning_rate_out_of_all_bounds_fails_with_the_way_out(few_digits: LabelledDataset) -> None:
    saved: list[int] = []
    config = CONFIG.model_copy(update={"lr": 1e30, "optimizer": "sgd", "schedule": "constant"})
    with pytest.raises(Diverged, match=r"loss is (nan|inf) in epoch 1; lower lr=1e\+30 \(--set lr=") as caught:
        train(config, few_digits, on_epoch=lambda progress, state: saved.append(progress.epoch))
    assert isinstance(caught.value, TrainingFailed)
    assert not saved, "a state full of NaN is never handed out to be saved"


def test_a_checkpoint_of_another_config_is_refused(few_digits: LabelledDataset) -> None:
    states: list[dict[str, Any]] = []
    train(CONFIG.model_copy(update={"epochs": 1}), few_digits, on_epoch=lambda _, state: states.append(state))
    with pytest.raises(ConfigError, match="was started with epochs=1, now it is epochs=3"):
        train(CONFIG, few_digits, resume=states[0])


def test_pictures_of_another_data_set_are_refused(digits: LabelledDataset) -> None:
    with pytest.raises(ConfigError, match="dataset='mnist', these pictures are 'digits'"):
        train(CONFIG.model_copy(update={"dataset": "mnist"}), digits)


def test_progress_tells_where_the_run_is(few_digits: LabelledDataset) -> None:
    seen: list[Progress] = []
    config = CONFIG.model_copy(update={"epochs": 2, "batch_size": 2, "num_workers": 1})
    train(config, few_digits, on_progress=seen.append)
    within = [p for p in seen if math.isnan(p.val_accuracy)]
    ends = [p for p in seen if not math.isnan(p.val_accuracy)]
    assert [p.epoch for p in ends] == [1, 2]
    assert [p.epoch for p in within] == [1, 2], "72 steps an epoch, a word after every 50"
    assert ends[-1].time_left_s == 0
    assert within[0].time_left_s > within[1].time_left_s > 0
    assert all(p.samples_per_s > 0 and 0 < p.loss < 10 and p.epochs == 2 for p in seen)


def test_the_split_keeps_validation_apart_and_is_the_same_for_all(digits: LabelledDataset) -> None:
    numbered = replace(digits, y_train=np.arange(len(digits.y_train)))
    _, training, _, validation = loop.split(CONFIG, numbered)
    assert len(validation) == int(0.1 * len(digits.y_train))
    assert sorted(torch.cat([training, validation]).tolist()) == list(range(len(digits.y_train)))
    assert torch.equal(loop.split(CONFIG, numbered)[3], validation)
    other = loop.split(CONFIG.model_copy(update={"seed": 1}), numbered)[3]
    assert not torch.equal(other, validation)


def test_mean_and_std_are_those_of_the_pictures(digits: LabelledDataset) -> None:
    scaled = digits.x_train.astype(np.float64) / 255.0
    assert loop.mean_and_std(torch.from_numpy(digits.x_train)) == pytest.approx((scaled.mean(), scaled.std()))


def test_the_model_normalises_by_what_it_was_trained_on(trained: TrainResult, quick_config: TrainConfig,
                                                         digits: LabelledDataset) -> None:  # fmt: skip
    x, *_ = loop.split(quick_config, digits)
    normalised = trained.model.preprocess(x)
    assert float(normalised.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(normalised.std()) == pytest.approx(1.0, abs=1e-3)


@pytest.mark.parametrize(("schedule", "betas"), [("constant", (0.9, 0.999)), ("one_cycle", (0.95, 0.999))])
def test_only_one_cycle_touches_the_momentum(schedule: str, betas: tuple[float, float]) -> None:
    config = TrainConfig.model_validate(CONFIG.model_dump() | {"schedule": schedule})
    model = torch.nn.Linear(1, 1)
    optimizer = loop._optimizer(config, model)
    loop._schedule(config, optimizer, steps=10)
    assert optimizer.param_groups[0]["betas"] == pytest.approx(betas)
    assert (optimizer.param_groups[0]["lr"] == config.lr) == (schedule == "constant")
