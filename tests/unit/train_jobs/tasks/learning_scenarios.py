"""What a rank does in the parity tests of the learning tricks; apart, so that each process imports little."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.unit.train_jobs import curves
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.models import CNNConfig, MLPConfig, VisionConfig
from train_jobs.tasks import DistillConfig, MultiTaskConfig

_COMMON: dict[str, Any] = {
    "dataset": "digits", "epochs": 2, "batch_size": 13, "validation": 0.1, "precision": "fp64", "schedule": "cosine",
    "lr": 3e-3, "optimizer": "adamw",
}  # fmt: skip
"""144 pictures in batches of 13: the last batch is one picture, so all workers but the first have none of it."""

CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
MULTITASK = TrainConfig(recipe="multitask", model=CNNConfig(width=0.25), task=MultiTaskConfig(), **_COMMON)
DISTILL = TrainConfig(
    recipe="distill", model=CNNConfig(width=0.25), task=DistillConfig(teachers=("teacher",), features=0.5), **_COMMON
)
MOBILENET = TrainConfig(
    recipe="mobilenet", model=VisionConfig(kind="mobilenet_v3", norm="group"), **_COMMON | {"epochs": 1, "lr": 1e-3}
)
TEACHER = TrainConfig(
    recipe="teacher", model=MLPConfig(hidden=(64,)), **_COMMON | {"precision": "fp32", "epochs": 12}
)
CONFIGS = {config.recipe: config for config in (MULTITASK, DISTILL, MOBILENET)}


def dressed(dataset: LabelledDataset) -> LabelledDataset:
    """The same digits under the names of clothes, so that they have departments."""
    return replace(dataset, labels=CLOTHES)


def curve(
    config: TrainConfig, dataset: LabelledDataset, runs_dir: Path, resume: dict[str, Any] | None = None
) -> dict[str, Any]:
    """The losses, the metrics, the weights, and the state after each epoch and within them."""
    data = dressed(dataset) if config.task.kind == "multitask" else dataset
    if isinstance(config.model, VisionConfig):  # a large one: three steps will do
        data = replace(dataset, x_train=dataset.x_train[:30], y_train=dataset.y_train[:30])
    return curves.curve(config, data, resume=resume, runs_dir=runs_dir)


def all_curves(dataset: LabelledDataset, runs_dir: Path) -> dict[str, dict[str, Any]]:
    """All tricks in one process group: starting one costs more than all of them."""
    return {name: curve(config, dataset, runs_dir) for name, config in CONFIGS.items()}
