"""Classifiers of pictures."""

from __future__ import annotations

from train_jobs.config import TrainConfig
from train_jobs.models import CNNConfig, VisionConfig


def cnn_mnist() -> TrainConfig:
    """The textbook run: Adam, batch 64, 10 epochs; test accuracy at least 0.99."""
    return TrainConfig(recipe="cnn_mnist", dataset="mnist", schedule="one_cycle", lr=2e-3)


def cnn_fashion_mnist() -> TrainConfig:
    """Product pictures; test accuracy at least 0.91."""
    return TrainConfig(
        recipe="cnn_fashion_mnist", dataset="fashion-mnist", epochs=12, batch_size=128, lr=3e-3, optimizer="adamw",
        weight_decay=0.01, schedule="one_cycle", model=CNNConfig(dropout=0.2), flip=True, patience=6,
    )  # fmt: skip


def cnn_fashion_mnist_quick() -> TrainConfig:
    """What the demo trains: the same model in a minute or so, test accuracy still at least 0.91.

    In so few epochs it is far from overfitting: without dropout and mirrored pictures it gets further.
    """
    changes = {"recipe": "cnn_fashion_mnist_quick", "epochs": 6, "lr": 5e-3, "model": CNNConfig(), "flip": False}
    return cnn_fashion_mnist().model_copy(update=changes)


def cnn_digits() -> TrainConfig:
    """scikit-learn's embedded digits: seconds, for machines without data or network."""
    return TrainConfig(recipe="cnn_digits", dataset="digits", epochs=15, batch_size=32, schedule="one_cycle", lr=3e-3,
                       validation=0.1)  # fmt: skip


def cnn_clothing() -> TrainConfig:
    """Photographs of products in colour, 32x32, few of them: 3,409 to train on."""
    return TrainConfig(
        recipe="cnn_clothing", dataset="clothing", epochs=30, batch_size=64, lr=3e-3, optimizer="adamw",
        weight_decay=0.05, schedule="one_cycle", model=CNNConfig(dropout=0.4), flip=True, validation=0.1,
    )  # fmt: skip


def cnn_clothing_large() -> TrainConfig:
    """The five classes with most photographs: what transfer_clothing begins with."""
    return cnn_clothing().model_copy(update={"recipe": "cnn_clothing_large", "dataset": "clothing-large"})


def resnet18_clothing() -> TrainConfig:
    """A residual network from scratch; with a GPU, --set model.small=true gets further."""
    changes = {"recipe": "resnet18_clothing", "model": VisionConfig(kind="resnet18", dropout=0.2), "epochs": 8}
    return cnn_clothing().model_copy(update=changes)


def resnet50_clothing() -> TrainConfig:
    """A deeper one."""
    changes = {"recipe": "resnet50_clothing", "model": VisionConfig(kind="resnet50", dropout=0.2), "epochs": 10}
    return cnn_clothing().model_copy(update=changes)


def mobilenet_clothing() -> TrainConfig:
    """A network made for small machines: MobileNetV3-Small."""
    model = VisionConfig(kind="mobilenet_v3", dropout=0.2)
    return cnn_clothing().model_copy(update={"recipe": "mobilenet_clothing", "model": model, "epochs": 25})
