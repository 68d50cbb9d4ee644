"""Weights met on the way -> the final model: their mean (SWA), or one member of an ensemble each (snapshots)."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from train_jobs.config import TrainConfig
from train_jobs.models.ensemble import Ensemble
from train_jobs.models.layers import batch_norms
from train_jobs.tasks import Part
from train_jobs.tasks.task import in_pieces

Weights = dict[str, Tensor]


class Averager:
    """What is collected at the ends of epochs; its `state` travels in the checkpoints."""

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.state: dict[str, Any] = {"count": 0, "mean": {}, "snapshots": []}

    def epoch_done(self, model: nn.Module, epoch: int) -> None:
        """Take from the model what this epoch, counted from 0, has to give."""
        config = self._config
        if config.average == "swa" and epoch >= config.swa_first_epoch:
            self.state["count"] += 1
            mean, weights = self.state["mean"], model.state_dict()
            if not mean:
                self.state["mean"] = copied(weights)
                return
            for name, tensor in weights.items():
                if tensor.is_floating_point():
                    mean[name] += (tensor - mean[name]) / self.state["count"]
        if config.snapshots > 1 and (epoch + 1) % (config.epochs // config.snapshots) == 0:
            self.state["snapshots"].append(copied(model.state_dict()))

    def final(self, model: nn.Module, build: Callable[[], nn.Module], train: Part) -> nn.Module | None:
        """The model that results, or None where it is simply that of the best epoch."""
        if self.state["count"]:
            model.load_state_dict(self.state["mean"])
            renew_statistics(model, train)
            return model
        if self.state["snapshots"]:
            members = [build() for _ in self.state["snapshots"]]
            for member, weights in zip(members, self.state["snapshots"], strict=True):
                member.load_state_dict(weights)
            return Ensemble(members)
        return None


@torch.no_grad()
def renew_statistics(model: nn.Module, train: Part, samples: int = 4096) -> None:
    """Batch normalisation's running statistics for weights that no batch has gone through (Izmailov et al., 3.2)."""
    layers = batch_norms(model)
    if not layers:
        return
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # a plain mean over what follows
    model.train()
    for piece in in_pieces(Part(train.x[:samples], train.y[:samples]), 256):
        model(piece.x)
    for layer, momentum in zip(layers, momenta, strict=True):
        layer.momentum = momentum
    model.eval()


def copied(weights: Weights) -> Weights:
    """The weights as they are now."""
    return {name: tensor.detach().clone() for name, tensor in weights.items()}


def ensemble_of(model: nn.Module, size: int) -> nn.Module:
    """An empty ensemble of that shape, to load weights into; the model itself where size is 1."""
    return model if size == 1 else Ensemble([copy.deepcopy(model) for _ in range(size)])
