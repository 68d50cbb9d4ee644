"""Averages of weights, and what batch normalisation makes of them; ensembles of models."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from train_jobs.averaging import Averager, ensemble_of, renew_statistics
from train_jobs.models import Ensemble
from train_jobs.recipes import cnn_digits
from train_jobs.tasks import Part


class _Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x)  # type: ignore[no-any-return]


def test_statistics_become_those_of_the_training_data() -> None:
    model, x = _Normed(), torch.randn(512, 3, generator=torch.Generator().manual_seed(0)) * 4 + 7
    renew_statistics(model, Part(x, torch.zeros(512)))
    torch.testing.assert_close(model.norm.running_mean, x.mean(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(model.norm.running_var, x.var(0), rtol=2e-2, atol=1e-2)
    assert model.norm.momentum == 0.1, "as it was"
    assert not model.training


def test_the_mean_is_over_the_last_epochs_and_survives_a_checkpoint() -> None:
    config = cnn_digits().with_overrides(["schedule=cosine", "average=swa", "epochs=4", "swa_start=0.5"])
    model, averager = nn.Linear(1, 1), Averager(config)
    for epoch in range(4):
        with torch.no_grad():
            model.weight.fill_(10.0**epoch)
        again = Averager(config)
        again.state = averager.state
        averager = again
        averager.epoch_done(model, epoch)
    final = averager.final(model, lambda: nn.Linear(1, 1), Part(torch.zeros(1, 1), torch.zeros(1)))
    assert final is model
    assert float(model.weight) == (100 + 1000) / 2


def test_without_averaging_there_is_no_other_final_model() -> None:
    averager = Averager(cnn_digits())
    averager.epoch_done(nn.Linear(1, 1), 14)
    assert averager.final(nn.Linear(1, 1), lambda: nn.Linear(1, 1), Part(torch.zeros(1), torch.zeros(1))) is None


def test_an_ensemble_averages_probabilities() -> None:
    members = [nn.Linear(4, 3) for _ in range(3)]
    x = torch.randn(5, 4)
    expected = torch.stack([member(x).softmax(1) for member in members]).mean(0)
    torch.testing.assert_close(Ensemble(members)(x).exp(), expected)


@pytest.mark.parametrize("size", [1, 3])
def test_an_empty_ensemble_takes_the_weights_of_a_full_one(size: int) -> None:
    full = ensemble_of(nn.Linear(4, 3), size)
    empty = ensemble_of(nn.Linear(4, 3), size)
    empty.load_state_dict(full.state_dict())
    x = torch.randn(2, 4)
    torch.testing.assert_close(empty(x), full(x))
