"""Forecasts of series, and pictures read row by row; each beside a feed-forward network."""

from __future__ import annotations

from train_jobs.config import TrainConfig
from train_jobs.models import MLPConfig, RecurrentConfig
from train_jobs.tasks import ForecastConfig


def lstm_etth1() -> TrainConfig:
    """A transformer's loads and oil temperature, a day ahead (others: --set task.horizon=48), by an LSTM."""
    return TrainConfig(
        recipe="lstm_etth1", dataset="etth1", task=ForecastConfig(),
        model=RecurrentConfig(hidden=64, patch=24, dropout=0.2), epochs=5, batch_size=64, lr=4e-3, schedule="cosine",
        clip_norm=1.0,
    )  # fmt: skip


def rnn_etth1() -> TrainConfig:
    """The same by a plain recurrent network: what the LSTM's gates buy."""
    model = RecurrentConfig(kind="rnn", hidden=64, patch=24, dropout=0.2)
    changes = {"recipe": "rnn_etth1", "model": model, "epochs": 8, "lr": 2e-3}
    return lstm_etth1().model_copy(update=changes)


def mlp_etth1() -> TrainConfig:
    """The same by a feed-forward network."""
    changes = {"recipe": "mlp_etth1", "model": MLPConfig(hidden=(128,), dropout=0.2), "lr": 2e-3}
    return lstm_etth1().model_copy(update=changes)


def linear_etth1() -> TrainConfig:
    """The same by one linear map, which published networks have been found not to beat (NLinear)."""
    changes = {"recipe": "linear_etth1", "model": MLPConfig(hidden=()), "lr": 2e-3}
    return lstm_etth1().model_copy(update=changes)


def lstm_rows_fashion_mnist() -> TrainConfig:
    """Product pictures read row by row by an LSTM."""
    return TrainConfig(
        recipe="lstm_rows_fashion_mnist", dataset="fashion-mnist", model=RecurrentConfig(hidden=96), epochs=6,
        batch_size=128, lr=4e-3, schedule="one_cycle", clip_norm=1.0,
    )  # fmt: skip


def rnn_rows_fashion_mnist() -> TrainConfig:
    """The same by a plain recurrent network."""
    model = RecurrentConfig(kind="rnn", hidden=96)
    changes = {"recipe": "rnn_rows_fashion_mnist", "model": model, "epochs": 8, "lr": 2e-3}
    return lstm_rows_fashion_mnist().model_copy(update=changes)


def mlp_fashion_mnist() -> TrainConfig:
    """The same pictures by a feed-forward network."""
    return TrainConfig(
        recipe="mlp_fashion_mnist", dataset="fashion-mnist", model=MLPConfig(hidden=(256, 128), dropout=0.2),
        epochs=10, batch_size=128, lr=3e-3, schedule="one_cycle",
    )  # fmt: skip
