"""The training loop, to be read top to bottom: batch, forward, loss, backward, step, report.

Knows nothing of Ray: the same function runs in this process, under torchrun, and in a Ray Train worker. Whatever
workers must agree on (is the loss finite, is this the best epoch, do we stop) follows from numbers summed over all of
them, so no worker ever waits for one that went another way.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from cluster.errors import TrainingFailed
from train_jobs import datasets
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.models import CNN, build_model
from train_jobs.parallel.shards import batches, mirrored, seed_noise
from train_jobs.parallel.workers import Workers

_REPORT_STEPS = 50


class Diverged(TrainingFailed):
    """The loss is no longer finite: on every worker alike, and again after any restart, so nothing is restarted."""


@dataclass(frozen=True)
class Progress:
    """Where a run is. Rates in pictures/s over all workers, times in s.

    Within an epoch `loss` is of rank 0's pictures only and `val_accuracy` is NaN; at its end both are of all.
    """

    epoch: int
    epochs: int
    samples_per_s: float
    loss: float
    val_accuracy: float
    time_left_s: float


@dataclass
class TrainResult:
    """The model with its best weights, and one Progress per epoch."""

    model: CNN
    history: list[Progress] = field(default_factory=list)
    resumed_from_epoch: int = 0


@dataclass
class _Best:
    """The weights with the best validation accuracy so far; `epoch` counts from 0, -1 is before the first."""

    weights: dict[str, Tensor]
    accuracy: float = -1.0
    epoch: int = -1


@dataclass
class _Clock:
    """Pictures done since the start, or the resumption, and what that says of the time left."""

    total: int
    done: int = 0
    started: float = field(default_factory=time.monotonic)

    def progress(self, epoch: int, epochs: int, loss: float, val_accuracy: float = math.nan) -> Progress:
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        return Progress(epoch + 1, epochs, rate, loss, val_accuracy, (self.total - self.done) / max(rate, 1e-9))


def split(config: TrainConfig, dataset: LabelledDataset) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(x, y) to train on and (x, y) to validate on; the split depends on the seed alone."""
    order = np.random.default_rng(config.seed).permutation(len(dataset.y_train))
    kept = max(1, int(len(order) * config.validation))
    validation, training = order[:kept], order[kept:]
    parts = (
        dataset.x_train[training], dataset.y_train[training], dataset.x_train[validation], dataset.y_train[validation],
    )  # fmt: skip
    x, y, x_val, y_val = (torch.from_numpy(part) for part in parts)
    return x, y, x_val, y_val


def mean_and_std(x: Tensor) -> tuple[float, float]:
    """Of uint8 pictures on the scale 0..1, from counts of the 256 values: exact, so the same on every machine."""
    share = np.bincount(x.numpy().ravel(), minlength=256) / x.numel()
    values = np.arange(256) / 255.0
    mean = float(share @ values)
    return mean, math.sqrt(float(share @ (values - mean) ** 2))


def _optimizer(config: TrainConfig, model: nn.Module) -> torch.optim.Optimizer:
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), momentum=0.9, **settings)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(model.parameters(), **settings)


def _schedule(
    config: TrainConfig, optimizer: torch.optim.Optimizer, steps: int
) -> torch.optim.lr_scheduler.LRScheduler:
    if config.schedule == "one_cycle":
        return torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=steps + 1)
    return torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)


@torch.inference_mode()
def correct(model: nn.Module, x: Tensor, y: Tensor, *, batch_size: int = 512) -> int:
    """How many pictures the model gets right."""
    model.eval()
    starts = range(0, len(x), batch_size)
    return sum(int((model(x[i : i + batch_size]).argmax(1) == y[i : i + batch_size]).sum()) for i in starts)


def train(
    config: TrainConfig,
    dataset: LabelledDataset,
    *,
    resume: dict[str, Any] | None = None,
    on_epoch: Callable[[Progress, dict[str, Any]], None] = lambda progress, state: None,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> TrainResult:
    """Train to the end, or on from `resume`.

    `on_epoch` gets the state to checkpoint after each epoch, on every rank; its tensors are the living ones, so write
    them out before returning. Raises Diverged if the loss is no longer finite (checkpoints written before stay as they
    are), ConfigError if the data set is not the config's or `resume` is of another run.
    """
    datasets.require(dataset, config.dataset)
    workers = Workers.of_this_process()
    torch.manual_seed(config.seed)
    x, y, x_val, y_val = split(config, dataset)
    bare = build_model(config.family, dropout=config.dropout)
    bare.preprocess.normalise(*mean_and_std(x))
    bare.to(memory_format=torch.channels_last)  # 1.7 times as fast on a CPU: pooling is, above all
    model = workers.data_parallel(bare)
    optimizer = _optimizer(config, bare)
    schedule = _schedule(config, optimizer, math.ceil(len(x) / config.batch_size) * config.epochs)

    history: list[Progress] = []
    best = _Best(_copy(bare))
    first = 0
    if resume is not None:
        config.require_same_run(resume["config"], where="this checkpoint's run")
        bare.load_state_dict(resume["weights"])
        optimizer.load_state_dict(resume["optimizer"])
        schedule.load_state_dict(resume["schedule"])
        history = [Progress(**row) for row in resume["history"]]
        best, first = _Best(**resume["best"]), resume["epoch"]

    clock = _Clock(total=(config.epochs - first) * len(x))
    for epoch in range(first, config.epochs):
        if config.patience is not None and epoch - best.epoch > config.patience:
            break
        seed_noise(epoch=epoch, seed=config.seed, rank=workers.rank)
        shown = mirrored(x, epoch=epoch, seed=config.seed) if config.flip else x
        deal = batches(
            len(x), config.batch_size, epoch=epoch, seed=config.seed, rank=workers.rank, world_size=workers.size
        )
        model.train()
        losses: list[Tensor] = []
        seen = 0
        for index, whole in deal:
            logits = model(shown[index])
            loss = F.cross_entropy(logits, y[index], reduction="sum", label_smoothing=config.label_smoothing)
            # DDP averages over workers; this makes it the gradient of the mean over the global batch, also where the
            # last batch is dealt out unevenly or leaves a worker without a picture.
            scaled = loss * (workers.size / whole)
            optimizer.zero_grad(set_to_none=True)
            scaled.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            losses.append(loss.detach())
            seen += len(index)
            clock.done += whole
            if len(losses) % _REPORT_STEPS == 0:
                on_progress(clock.progress(epoch, config.epochs, float(torch.stack(losses).sum()) / seen))

        mine = slice(workers.rank, None, workers.size)
        loss_sum, right = workers.sum(float(torch.stack(losses).sum()), correct(bare, x_val[mine], y_val[mine]))
        if not math.isfinite(loss_sum):
            raise Diverged(
                f"loss is {loss_sum} in epoch {epoch + 1}; lower lr={config.lr} (--set lr=...) in a run of another "
                "name; the checkpoint of the epoch before is intact"
            )
        progress = clock.progress(epoch, config.epochs, loss_sum / len(x), right / len(x_val))
        history.append(progress)
        if progress.val_accuracy > best.accuracy:
            best = _Best(_copy(bare), progress.val_accuracy, epoch)
        on_progress(progress)
        on_epoch(
            progress,
            {
                "config": config.model_dump(mode="json"),
                "epoch": epoch + 1,
                "weights": bare.state_dict(),
                "optimizer": optimizer.state_dict(),
                "schedule": schedule.state_dict(),
                "history": [asdict(row) for row in history],
                "best": vars(best),
            },
        )
    bare.load_state_dict(best.weights)
    return TrainResult(bare.to(memory_format=torch.contiguous_format).eval(), history, first)


def _copy(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}
