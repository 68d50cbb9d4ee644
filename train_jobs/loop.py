"""The training loop, to be read top to bottom: batch, forward, loss, backward, step, report.

Knows nothing of Ray: the same function runs in this process, under torchrun, and in a Ray Train worker.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from cluster.errors import TrainingFailed
from train_jobs.config import TrainConfig
from train_jobs.datasets import PictureDataset
from train_jobs.models import build_model
from train_jobs.parallel.shards import batches


@dataclass(frozen=True)
class Progress:
    """Where a run is. Rates in pictures/s over all workers, times in s; `val_accuracy` is NaN within an epoch."""

    epoch: int
    epochs: int
    samples_per_s: float
    loss: float
    val_accuracy: float
    time_left_s: float


@dataclass
class TrainResult:
    """The model with its best weights, and one Progress per epoch."""

    model: nn.Module
    history: list[Progress] = field(default_factory=list)
    resumed_from_epoch: int = 0


def split(config: TrainConfig, dataset: PictureDataset) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y) to train on and (x, y) to validate on; the split depends on the seed alone."""
    order = np.random.default_rng(config.seed).permutation(len(dataset.y_train))
    kept = max(1, int(len(order) * config.validation))
    validation, training = order[:kept], order[kept:]
    parts = (
        dataset.x_train[training], dataset.y_train[training], dataset.x_train[validation], dataset.y_train[validation],
    )  # fmt: skip
    x, y, x_val, y_val = (torch.from_numpy(part) for part in parts)
    return x, y, x_val, y_val


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=config.lr, momentum=0.9, weight_decay=config.weight_decay)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)


@torch.inference_mode()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 512) -> float:
    """Share of right answers."""
    model.eval()
    right = sum(
        int((model(x[i : i + batch_size]).argmax(1) == y[i : i + batch_size]).sum()) for i in range(0, len(x), batch_size)
    )
    return right / len(x)


def train(
    config: TrainConfig,
    dataset: PictureDataset,
    *,
    resume: dict[str, Any] | None = None,
    on_epoch: Callable[[Progress, dict[str, Any]], None] = lambda progress, state: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> TrainResult:
    """Train to the end, or on from `resume`. `on_epoch` gets the state to checkpoint after each epoch, on every rank.

    Raises TrainingFailed if the loss is no longer finite; checkpoints written before stay as they are.
    """
    distributed = dist.is_available() and dist.is_initialized()
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if distributed else (0, 1)
    torch.manual_seed(config.seed)
    bare = build_model(config.family, dropout=config.dropout)
    model = DistributedDataParallel(bare) if distributed else bare
    x, y, x_val, y_val = split(config, dataset)
    optimizer = _optimizer(config, bare)
    steps = math.ceil(len(x) / config.batch_size) * config.epochs
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=steps + 1)
    if config.schedule == "constant":
        schedule = None
        for group in optimizer.param_groups:
            group["lr"] = config.lr

    history: list[Progress] = []
    best = {"accuracy": -1.0, "epoch": -1, "weights": {k: v.clone() for k, v in bare.state_dict().items()}}
    first = 0
    if resume is not None:
        bare.load_state_dict(resume["weights"])
        optimizer.load_state_dict(resume["optimizer"])
        if schedule is not None:
            schedule.load_state_dict(resume["schedule"])
        history = [Progress(**row) for row in resume["history"]]
        best, first = resume["best"], resume["epoch"]

    started, done = time.monotonic(), 0
    for epoch in range(first, config.epochs):
        if config.patience is not None and epoch - best["epoch"] > config.patience:
            break
        torch.manual_seed(config.seed * 1009 + epoch * 31 + rank)  # dropout and flips differ by worker, repeat by seed
        model.train()
        losses = []
        for index, whole in batches(
            len(x), config.batch_size, epoch=epoch, seed=config.seed, rank=rank, world_size=world_size
        ):
            picture, label = x[index], y[index]
            if config.flip:
                mirrored = torch.rand(len(index)) < 0.5
                picture[mirrored] = picture[mirrored].flip(-1)
            logits = model(picture)
            # Sum over the global batch's size: DDP averages over workers, so the gradient is that of one big batch
            # also where the last batch is dealt out unevenly.
            total = F.cross_entropy(logits, label, reduction="sum", label_smoothing=config.label_smoothing)
            loss = total * (world_size / whole)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            losses.append(loss.detach())
            done += whole
            if len(losses) % 50 == 0:
                on_progress(_progress(config, epoch, losses, done, started, len(x), first, float("nan")))
        if not math.isfinite(float(torch.stack(losses).mean())):
            raise TrainingFailed(
                f"loss is {float(torch.stack(losses).mean())} in epoch {epoch + 1}; lower lr={config.lr} "
                "(--set lr=...); the last checkpoint is intact"
            )
        reached = accuracy(bare, x_val, y_val)
        progress = _progress(config, epoch, losses, done, started, len(x), first, reached)
        history.append(progress)
        if reached > best["accuracy"]:
            weights = {k: v.clone() for k, v in bare.state_dict().items()}
            best = {"accuracy": reached, "epoch": epoch, "weights": weights}
        on_progress(progress)
        on_epoch(
            progress,
            {
                "epoch": epoch + 1,
                "weights": bare.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict() if schedule is not None else {},
                "history": [asdict(row) for row in history],
                "best": best,
            },
        )
    bare.load_state_dict(best["weights"])
    return TrainResult(model=bare.eval(), history=history, resumed_from_epoch=first)


def _progress(
    config: TrainConfig, epoch: int, losses: list[Tensor], done: int, started: float, samples: int, first: int,
    reached: float,
) -> Progress:  # fmt: skip
    rate = done / max(time.monotonic() - started, 1e-9)
    left = (config.epochs - first) * samples - done
    return Progress(epoch + 1, config.epochs, rate, float(torch.stack(losses).mean()), reached, left / max(rate, 1e-9))
