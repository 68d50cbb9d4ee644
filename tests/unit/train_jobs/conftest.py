"""Real pictures and one small trained model, shared by the tests of this package; nothing here needs a network."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from train_jobs import datasets, recipes
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.loop import TrainResult, train


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The models are small: more threads only wait for each other, long ones where cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> LabelledDataset:
    return datasets.load("digits")


@pytest.fixture(scope="session")
def few_digits(digits: LabelledDataset) -> LabelledDataset:
    """160 training pictures: with validation=0.1 there are 144 to train on and 16 to validate on."""
    return replace(digits, x_train=digits.x_train[:160], y_train=digits.y_train[:160])


@pytest.fixture(scope="session")
def quick_config() -> TrainConfig:
    return recipes.cnn_digits().model_copy(update={"epochs": 4})


@pytest.fixture(scope="session")
def trained(quick_config: TrainConfig, digits: LabelledDataset) -> TrainResult:
    """A classifier of the digits that gets about nineteen of twenty right, made in two seconds."""
    return train(quick_config, digits)
