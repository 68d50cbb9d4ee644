"""A small trained model of every family with its subject, made once: what the module passes are tried on."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from train_jobs import datasets
from train_jobs.compression.subject import ClassifySubject, GenerateSubject, Subject, served, subject_of
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset, ett
from train_jobs.export import INPUT, output_spec
from train_jobs.loop import train
from train_jobs.models import (
    AutoencoderConfig,
    CNNConfig,
    Ensemble,
    GANConfig,
    MLPConfig,
    ModelConfig,
    RecurrentConfig,
    VAEConfig,
)
from train_jobs.tasks import AdversarialConfig, ClassifyConfig, ForecastConfig, ReconstructConfig, TaskConfig
from train_jobs.tasks.adversarial import Adversarial

_PICTURES: dict[str, Any] = {"dataset": "digits", "epochs": 3, "batch_size": 16, "lr": 5e-3, "validation": 0.1}
_SERIES: dict[str, Any] = {"dataset": "seasonal", "epochs": 2, "batch_size": 16, "lr": 5e-3}
_WINDOWS = ForecastConfig(lookback=36, horizon=12, normalise="revin", channels="shared")


def _config(name: str, model: ModelConfig, task: TaskConfig, settings: dict[str, Any]) -> TrainConfig:
    return TrainConfig(recipe=name, model=model, task=task, num_workers=1, **settings)


_DENSE_CODE: dict[str, Any] = {"layers": "dense", "hidden": (32, 16), "latent": 6}
_CONV_CODE: dict[str, Any] = {"hidden": (8, 16), "latent": 6}
CONFIGS = {
    config.recipe: config
    for config in (
        _config("cnn", CNNConfig(width=0.5), ClassifyConfig(), _PICTURES),
        _config("rows", RecurrentConfig(hidden=16), ClassifyConfig(), _PICTURES),
        _config("lstm", RecurrentConfig(hidden=16, layers=2, patch=4), _WINDOWS, _SERIES),
        _config("rnn", RecurrentConfig(kind="rnn", hidden=16, patch=4), _WINDOWS, _SERIES),
        _config("mlp", MLPConfig(hidden=(32, 16)), _WINDOWS, _SERIES),
        _config("gan", GANConfig(latent=8, width=16), AdversarialConfig(), _PICTURES),
        _config("gan_batch", GANConfig(latent=8, width=16, norm="batch"), AdversarialConfig(), _PICTURES),
        _config("gan_dense", GANConfig(latent=8, width=8, layers="dense"), AdversarialConfig(), _PICTURES),
        _config("autoencoder", AutoencoderConfig(**_CONV_CODE), ReconstructConfig(), _PICTURES),
        _config("dense", AutoencoderConfig(**_DENSE_CODE), ReconstructConfig(), _PICTURES),
        _config("tied", AutoencoderConfig(tied=True, **_DENSE_CODE), ReconstructConfig(), _PICTURES),
        _config("vae", VAEConfig(**_CONV_CODE), ReconstructConfig(), _PICTURES),
    )
}
FAMILIES = tuple(CONFIGS)
GENERATORS = ("gan", "gan_batch", "gan_dense")
CODERS = ("autoencoder", "dense", "tied", "vae")


@dataclass(frozen=True)
class Case:
    """Read only: shared by all tests. `model` is what is served."""

    config: TrainConfig
    model: nn.Module
    subject: Subject
    shapes: dict[str, Any]

    def x(self, count: int = 5) -> Tensor:
        return torch.from_numpy(self.subject.samples(count))

    @torch.inference_mode()
    def score(self, model: nn.Module) -> float:
        """Higher is better: minus the loss on what it learns from, finer than an accuracy of a few samples."""
        (x, y), *_ = self.subject.lessons(epoch=0, batch_size=500, seed=0, validation=0.1)
        answer = model.eval()(x)
        if self.subject.needs_teacher:
            return -float(self.subject.apart(answer, self.model(x), temperature=1.0))
        return -float(self.subject.loss(answer, x, y))


def few(count: int = 400) -> LabelledDataset:
    digits = datasets.load("digits")
    return replace(digits, x_train=digits.x_train[:count], y_train=digits.y_train[:count])


class FewLatents(GenerateSubject):
    """An epoch of latents is long; this one is not."""

    def size(self, validation: float) -> int:
        return 640

    def lessons(
        self, *, epoch: int, batch_size: int, seed: int, validation: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        every = super().lessons(epoch=epoch, batch_size=batch_size, seed=seed, validation=validation)
        yield from itertools.islice(every, -(-640 // batch_size))


@functools.cache
def case(name: str) -> Case:
    """One of FAMILIES, trained for a moment."""
    config = CONFIGS[name]
    data: Any = ett.seasonal(280) if config.dataset == "seasonal" else few()
    result = train(config, data)
    model, task = served(result.model).eval(), result.task
    if isinstance(task, Adversarial):
        subject: Subject = FewLatents(config, task, dataset=data.name, teacher=model)
    else:
        subject = subject_of(model, config, data)
    return Case(config, model, subject, task.shapes)


def classify(dataset: LabelledDataset) -> ClassifySubject:
    """Pictures of digits."""
    return ClassifySubject(dataset, family="cnn", inputs=INPUT, outputs=output_spec(10))


def ensemble(name: str, members: int = 2) -> Ensemble:
    """Of models that differ by their first weights; not trained."""
    made = []
    for seed in range(members):
        torch.manual_seed(seed)
        each = case(name)
        model = each.config.task.skeleton(each.config, each.shapes)
        if hasattr(model, "preprocess"):
            model.preprocess.load_state_dict(each.model.preprocess.state_dict())  # type: ignore[union-attr]
        made.append(model)
    return Ensemble(made).eval()


def answers(model: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Every output, in eval mode."""
    with torch.inference_mode():
        answer = model.eval()(x)
    return answer if isinstance(answer, tuple) else (answer,)


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def wrong(dataset: LabelledDataset) -> LabelledDataset:
    """Every label moved on by one."""
    return replace(dataset, y_train=np.asarray((dataset.y_train + 1) % 10))
