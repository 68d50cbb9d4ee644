"""Named runs: a function that returns a TrainConfig. Derive one from another with `model_copy(update=...)`."""

from __future__ import annotations

from collections.abc import Callable

from cluster.errors import ConfigError
from train_jobs.config import TrainConfig


def cnn_mnist() -> TrainConfig:
    """The textbook run: Adam, batch 64, 10 epochs; test accuracy at least 0.99."""
    return TrainConfig(recipe="cnn_mnist", dataset="mnist", schedule="one_cycle", lr=2e-3)


def cnn_fashion_mnist() -> TrainConfig:
    """Product pictures; test accuracy at least 0.91."""
    return TrainConfig(
        recipe="cnn_fashion_mnist", dataset="fashion-mnist", epochs=12, batch_size=128, lr=3e-3, optimizer="adamw",
        weight_decay=0.01, schedule="one_cycle", dropout=0.2, flip=True, patience=6,
    )  # fmt: skip


def cnn_fashion_mnist_quick() -> TrainConfig:
    """What the demo trains: the same model in a minute or so, test accuracy still at least 0.91.

    In so few epochs it is far from overfitting: without dropout and mirrored pictures it gets further.
    """
    changes = {"recipe": "cnn_fashion_mnist_quick", "epochs": 6, "lr": 5e-3, "dropout": 0.0, "flip": False}
    return cnn_fashion_mnist().model_copy(update=changes)


def cnn_digits() -> TrainConfig:
    """scikit-learn's embedded digits: seconds, for machines without data or network."""
    return TrainConfig(recipe="cnn_digits", dataset="digits", epochs=15, batch_size=32, schedule="one_cycle", lr=3e-3,
                       validation=0.1)  # fmt: skip


RECIPES: dict[str, Callable[[], TrainConfig]] = {
    f.__name__: f for f in (cnn_mnist, cnn_fashion_mnist, cnn_fashion_mnist_quick, cnn_digits)
}


def recipe(name: str) -> TrainConfig:
    """The config of a recipe. Raises ConfigError listing the names there are."""
    if name not in RECIPES:
        raise ConfigError(f"recipe={name!r} is unknown; recipes: {', '.join(sorted(RECIPES))}")
    return RECIPES[name]()


def on_dataset(config: TrainConfig, dataset: str) -> TrainConfig:
    """What to train when `dataset` had to stand in for the config's own: only the embedded digits ever do.

    What the user changed in the recipe stays changed.
    """
    assert dataset == "digits", dataset
    before = RECIPES[config.recipe]()
    changed = {key: value for key, value in config if key != "dataset" and value != getattr(before, key)}
    return cnn_digits().model_copy(update=changed)
