"""What a rank does in the tests of distributed training; a module of its own, so that each process imports little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.unit.train_jobs import curves
from train_jobs import checkpoint, loop
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.parallel.hooks import CommHook
from train_jobs.tasks import ClassifyConfig, classify

CONFIG = TrainConfig(
    recipe="parity", dataset="digits", epochs=3, batch_size=13, lr=2e-3, optimizer="adamw", weight_decay=0.01,
    schedule="one_cycle", task=ClassifyConfig(label_smoothing=0.1), flip=True, validation=0.1,
)  # fmt: skip
"""144 pictures in batches of 13: the last batch is one picture, so all workers but the first have none of it."""


def curve(config: TrainConfig, dataset: LabelledDataset, resume: dict[str, Any] | None = None) -> dict[str, Any]:
    """Train in float64: what `curves.curve` tells, and the accuracies."""
    told = curves.curve(config.model_copy(update={"precision": "fp64"}), dataset, resume=resume)
    return told | {"accuracy": [metrics["accuracy"] for metrics in told["metrics"]]}


def diverge_on_the_last_rank(config: TrainConfig, dataset: LabelledDataset) -> str:
    """One worker meets a NaN in the last batch of an epoch, the others do not: what does each say?"""
    steps = 0
    true_loss = classify.F.cross_entropy

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        last = steps == 3
        return true_loss(*args, **kwargs) * (float("nan") if last and dist.get_rank() == 1 else 1.0)

    classify.F.cross_entropy = poisoned
    try:
        loop.train(config, dataset)
    except loop.Diverged as error:
        return str(error)
    finally:
        classify.F.cross_entropy = true_loss
    return "no error"


def several(config: TrainConfig, dataset: LabelledDataset) -> dict[str, Any]:
    """Three scenarios in one process group: starting one costs more than all of them."""
    stopping = config.model_copy(update={"epochs": 12, "patience": 2, "lr": 1e-12, "schedule": "constant"})
    whole_batches = config.model_copy(update={"batch_size": 48})
    pieces = {
        "accumulated": {"accumulate": 3},
        "full": {"full_batch": True, "epochs": 2},
        "clipped": {"clip_norm": 0.5, "l1": 1e-4, "optimizer": "sgd"},
        "bf16": {"comm_hook": CommHook(kind="bf16")},
        "powersgd": {"comm_hook": CommHook(kind="powersgd", rank=4, start_step=2)},
    }
    return {
        **{name: curve(config.model_copy(update=changes), dataset) for name, changes in pieces.items()},
        "curve": curve(config, dataset),
        "stopped": curve(stopping, dataset),
        "diverged": diverge_on_the_last_rank(whole_batches, dataset),
    }


def save_together(folder: Path) -> None:
    """Both workers hold the same tensors, and clocks that differ."""
    state = {f"w{i}": torch.full((1000,), float(i)) for i in range(6)}
    checkpoint.save({**state, "clock": dist.get_rank()}, folder, step=5)
