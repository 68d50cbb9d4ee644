"""Where a threshold lies: at the 99% quantile of the training samples' scores, or nowhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from tests.unit.train_jobs.compression.test_families import AE
from train_jobs import datasets
from train_jobs.compression import threshold
from train_jobs.compression.subject import ReconstructSubject
from train_jobs.config import TrainConfig


class Brightness(nn.Module):
    """Scores a picture by its mean; `missing` is said of the darkest ones instead."""

    def __init__(self, missing: float | None = None) -> None:
        super().__init__()
        self.missing = missing

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        score = x.float().flatten(1).mean(1)
        if self.missing is not None:
            score = torch.where(score < 60, torch.full_like(score, self.missing), score)
        return x.float(), score


def subject(config: TrainConfig = AE) -> ReconstructSubject:
    dataset = datasets.load(config.dataset)
    return ReconstructSubject(config, config.task.build(config, dataset), dataset)  # type: ignore[arg-type]


def test_one_training_sample_in_a_hundred_lies_above_it() -> None:
    given = subject()
    found = threshold.of(Brightness(), given)
    scores = given.spread(found.samples).reshape(found.samples, -1).astype(np.float32).mean(1)
    assert found.quantile == 0.99
    assert np.isclose(scores, found.value).any(), "it is the score of one of them"
    assert 0 < (scores > found.value + 1e-4).mean() <= 0.01


@pytest.mark.parametrize("missing", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_have_none(missing: float) -> None:
    with pytest.raises(InvalidRequest, match=r"NaN or infinite for \d+ of \d+ training samples"):
        threshold.of(Brightness(missing), subject())
