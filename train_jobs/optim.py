"""TrainConfig -> torch's optimizer, learning rate by step, and what is added to the gradient. All of it is torch's own;
here is only what each field means."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from train_jobs.config import TrainConfig
from train_jobs.tasks import Phase
from train_jobs.transfer import Thaw


def optimizer(config: TrainConfig, phase: Phase, thaw: Thaw) -> torch.optim.Optimizer:
    """One for all parameters of a phase; a group for each learning rate."""
    groups: dict[float, list[Tensor]] = defaultdict(list)
    for parameter in phase.loss.parameters():
        groups[config.lr * phase.lr_scale * thaw.scale(parameter)].append(parameter)
    parameters: list[dict[str, Any]] = [{"params": members, "lr": lr} for lr, members in groups.items()]
    settings: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay, "fused": True}
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, momentum=config.momentum, **settings)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return kind(parameters, betas=config.betas, **settings)


def schedule(
    config: TrainConfig, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate of each step."""
    if config.schedule == "one_cycle":
        rates = [group["lr"] for group in optimizer.param_groups]
        return torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=rates, total_steps=steps_per_epoch * config.epochs + 1
        )
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_at(config, step / steps_per_epoch))


def rate_at(config: TrainConfig, epoch: float) -> float:
    """What the learning rate is multiplied by, `epoch` epochs after the start; constant and cosine schedules.

    With snapshots the cosine begins anew for each: Loshchilov and Hutter, "SGDR", ICLR 2017, equation 5, with T_mult 1.
    With swa it ends at `swa_lr` where averaging begins, and stays there: Izmailov et al., "Averaging Weights Leads to
    Wider Optima and Better Generalization", UAI 2018, section 3.2.
    """
    if epoch < config.warmup_epochs:
        return max(epoch, 1e-3) / config.warmup_epochs
    if config.schedule == "constant":
        return 1.0
    swa = config.average == "swa"
    end = config.swa_first_epoch if swa else config.epochs
    low = config.swa_lr if swa else 0.0
    done = (epoch - config.warmup_epochs) / max(end - config.warmup_epochs, 1e-9) * config.snapshots
    within = 1.0 if done >= config.snapshots else done - math.floor(done)
    return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * within))


def l1_penalty(module: nn.Module) -> Tensor:
    """Sum of the magnitudes of all weights that train; biases and scales (one-dimensional) are left alone."""
    weights = [p.abs().sum() for p in module.parameters() if p.requires_grad and p.ndim > 1]
    return torch.stack(weights).sum()
