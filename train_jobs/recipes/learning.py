"""Transfer, multi-task, distillation, ensembles, weight averaging: what makes more of the same data and budget."""

from __future__ import annotations

from train_jobs.config import TrainConfig
from train_jobs.models import CNNConfig
from train_jobs.recipes.pictures import cnn_clothing, cnn_fashion_mnist, cnn_fashion_mnist_quick
from train_jobs.tasks import DistillConfig, MultiTaskConfig
from train_jobs.transfer import TransferConfig


def transfer_clothing() -> TrainConfig:
    """The five rare classes, by a model of the five others; train cnn_clothing_large first."""
    transfer = TransferConfig(source="cnn_clothing_large", layer_lr_decay=0.7, thaw_epochs=2)
    changes = {"recipe": "transfer_clothing", "dataset": "clothing-rest", "transfer": transfer, "epochs": 20}
    return cnn_clothing().model_copy(update=changes)


def multitask_fashion_mnist() -> TrainConfig:
    """The class, the department and a picture's turn, by one trunk; the class is what is served."""
    changes = {"recipe": "multitask_fashion_mnist", "task": MultiTaskConfig(), "epochs": 4}
    return cnn_fashion_mnist_quick().model_copy(update=changes)


def distill_fashion_mnist() -> TrainConfig:
    """A student of a quarter of the width; train its teacher, cnn_fashion_mnist, first."""
    task = DistillConfig(teachers=("cnn_fashion_mnist",))
    changes = {"recipe": "distill_fashion_mnist", "task": task, "model": CNNConfig(width=0.25)}
    return cnn_fashion_mnist_quick().model_copy(update=changes)


def swa_fashion_mnist() -> TrainConfig:
    """cnn_fashion_mnist, its weights averaged over the last three epochs."""
    changes = {"recipe": "swa_fashion_mnist", "average": "swa", "schedule": "cosine", "patience": None}
    return cnn_fashion_mnist().model_copy(update=changes)


def snapshot_fashion_mnist() -> TrainConfig:
    """An ensemble of the weights at the ends of three cycles, for the price of one run."""
    changes = {"recipe": "snapshot_fashion_mnist", "snapshots": 3, "schedule": "cosine", "patience": None}
    return cnn_fashion_mnist().model_copy(update=changes)


def ensemble_fashion_mnist() -> TrainConfig:
    """Three runs of cnn_fashion_mnist_quick that differ by their seed, as one model."""
    return cnn_fashion_mnist_quick().model_copy(update={"recipe": "ensemble_fashion_mnist", "members": 3})
