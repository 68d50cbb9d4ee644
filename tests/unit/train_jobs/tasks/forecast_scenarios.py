"""What a rank does in the parity tests of the forecasters; apart, so that each process imports little."""

from __future__ import annotations

from typing import Any

from tests.unit.train_jobs.curves import curve
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset, ett
from train_jobs.models import MLPConfig, RecurrentConfig
from train_jobs.tasks import ForecastConfig

POINTS = 280
"""168 rows to train on: 121 windows of 48, in batches of 12; the last batch is one window, so all workers but the first
have none of it."""
_COMMON: dict[str, Any] = {
    "dataset": "seasonal", "epochs": 2, "batch_size": 12, "precision": "fp64", "schedule": "cosine", "lr": 5e-3,
}  # fmt: skip

LSTM = TrainConfig(
    recipe="lstm", model=RecurrentConfig(hidden=8, layers=2, patch=4), clip_norm=1.0,
    task=ForecastConfig(lookback=36, horizon=12, normalise="revin", channels="shared"), **_COMMON,
)  # fmt: skip
RNN = TrainConfig(
    recipe="rnn", model=RecurrentConfig(kind="rnn", hidden=8), optimizer="sgd",
    task=ForecastConfig(lookback=36, horizon=12, season=24, loss="mae"), **_COMMON,
)  # fmt: skip
MLP = TrainConfig(
    recipe="mlp", model=MLPConfig(hidden=(8,)), accumulate=2,
    task=ForecastConfig(lookback=36, horizon=12, loss="huber", univariate=True), **_COMMON,
)  # fmt: skip
ROWS = TrainConfig(
    recipe="rows", model=RecurrentConfig(hidden=8), **{**_COMMON, "dataset": "digits", "batch_size": 13},
    validation=0.1,
)  # fmt: skip
CONFIGS = {config.recipe: config for config in (LSTM, RNN, MLP, ROWS)}


def all_curves(digits: LabelledDataset) -> dict[str, dict[str, Any]]:
    """Every family in one process group: starting one costs more than all of them."""
    series = ett.seasonal(POINTS)
    return {
        name: curve(config, digits if config.dataset == "digits" else series) for name, config in CONFIGS.items()
    }
