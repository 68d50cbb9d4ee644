"""A trained run's config -> a narrower or shallower model of the same family, which learns from the trained one:

    student = student_of(config, shapes, width=0.5)
    small = distill(student, trained, subject, DistillConfig())

Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015: also of an ensemble, whose knowledge one
model then has. Unlike a run of train_jobs/tasks/distill.py it needs no recipe of its own, and is part of compression.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pydantic import Field
from torch import nn

from cluster.errors import ConfigError
from train_jobs.compression.finetune import FinetuneConfig, finetune
from train_jobs.compression.subject import Subject, served
from train_jobs.config import TrainConfig
from train_jobs.models import CNNConfig, GANConfig, MLPConfig, ModelConfig, RecurrentConfig, VisionConfig
from train_jobs.models.coder import CoderConfig
from train_jobs.models.vision import BLOCKS

_GROUPS = 8
"""A generator's width is a multiple of this."""


class DistillConfig(FinetuneConfig):
    """How narrow the student is, and how it learns: from scratch, so for longer than what was only pruned."""

    epochs: int = Field(default=15, ge=1)
    teacher: float = Field(default=0.9, ge=0, le=1)
    temperature: float = Field(default=4.0, gt=0)
    width: float = Field(default=0.5, gt=0, le=1)
    """Times the trained model's: channels, units, a generator's width. 1 for an ensemble that is to be one model, or a
    student that is only shallower."""
    depth: int | None = Field(default=None, ge=1)
    """Hidden layers of an mlp, an autoencoder's way in (and out), or a recurrent network; the first ones' widths. Of a
    ResNet: residual blocks in each stage. None: as many as the trained model has."""


def student_of(
    config: TrainConfig, shapes: Mapping[str, Any], width: float, depth: int | None = None
) -> nn.Module:
    """A fresh model like the one that `config` trains on data of such `shapes` (Task.shapes), as narrow as told; the
    same one every time. Its inputs, outputs and code are the same. Of a GAN the generator alone; of an ensemble one.

    Raises ConfigError for a depth that the model has not.
    """
    smaller = config.model_copy(update={"model": _narrower(config.model, width, depth)})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        made = smaller.task.skeleton(smaller, dict(shapes))
    return served(made).requires_grad_(True)


def distill(
    student: nn.Module, teacher: nn.Module, subject: Subject, config: DistillConfig, *,
    notify: Callable[[str], None] = lambda line: None,
) -> nn.Module:  # fmt: skip
    """A trained copy of `student`, in eval mode; how its inputs are scaled is the teacher's. Both stay as they are.

    Raises as `finetune` does.
    """
    learner = copy.deepcopy(student)
    theirs, own = (getattr(model, "preprocess", None) for model in (teacher, learner))
    if theirs is not None and own is not None:
        own.load_state_dict(theirs.state_dict())
    return finetune(learner, subject, config, teacher=teacher, notify=lambda line: notify(f"student: {line}"))


def _narrower(model: ModelConfig, width: float, depth: int | None) -> ModelConfig:
    changes: dict[str, Any]
    if isinstance(model, MLPConfig):
        changes = {"hidden": _scaled(model.hidden, width, depth)}
    elif isinstance(model, CoderConfig):
        changes = {"hidden": _scaled(model.widths, width, depth)}
    elif isinstance(model, RecurrentConfig):
        (hidden, *_), layers = _scaled((model.hidden,) * model.layers, width, depth), depth or model.layers
        changes = {"hidden": hidden, "layers": layers}
    elif isinstance(model, VisionConfig) and model.kind in BLOCKS:
        changes = {"width": model.width * width, "blocks": _blocks(model, depth)}
    elif depth is not None:
        raise ConfigError(
            f"depth={depth}: model.kind={model.kind} has its number of layers by design; leave it out and set width"
        )
    elif isinstance(model, CNNConfig | VisionConfig):
        changes = {"width": model.width * width}
    else:
        assert isinstance(model, GANConfig)
        changes = {"width": max(_GROUPS, round(model.width * width / _GROUPS) * _GROUPS)}
    return type(model).model_validate(model.model_dump() | changes)


def _blocks(model: VisionConfig, depth: int | None) -> int | None:
    most = max(BLOCKS[model.kind]) if model.blocks is None else model.blocks
    if depth is not None and depth > most:
        raise ConfigError(f"depth={depth} is more than the {most} blocks of a stage of the trained model; lower it")
    return model.blocks if depth is None else depth


def _scaled(hidden: tuple[int, ...], width: float, depth: int | None) -> tuple[int, ...]:
    if not hidden:
        raise ConfigError("the model has no hidden layer that a student could have less of; leave distillation out")
    if depth is not None and depth > len(hidden):
        raise ConfigError(f"depth={depth} is more than the {len(hidden)} hidden layers of the trained model; lower it")
    return tuple(max(1, round(units * width)) for units in hidden[:depth])
