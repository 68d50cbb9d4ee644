"""What compression has to know of a model's family: samples to calibrate on, something to learn from, a figure to
choose the best epoch by, and the judge of the result. One class for each family; every pass works with any of them.

A generator of pictures has no labels to learn from: its subject teaches it what the trained one makes of the same
latents. Every other subject has a loss of its own, and a teacher's answers may be mixed in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from numpy.typing import NDArray
from torch import Tensor, nn

from cluster.errors import ConfigError
from cluster.tensors import DATATYPE_OF_NUMPY
from cluster.variants import TensorSpec
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.export import output_spec
from train_jobs.judges import AucJudge, ClassifyJudge, ErrorJudge, FrechetJudge, Judge
from train_jobs.models.autoencoder import VAE, Autoencoder, Sampler
from train_jobs.parallel.shards import batches, noise
from train_jobs.tasks import CLASSIFIERS, Part
from train_jobs.tasks.adversarial import Adversarial
from train_jobs.tasks.classify import correct
from train_jobs.tasks.forecast import Forecast, errors
from train_jobs.tasks.reconstruct import Reconstruct
from train_jobs.tasks.task import in_pieces

_LATENTS = 200
"""Stream of the latents that a generator is compressed with; no step of its training drew from it."""
_TAUGHT = 20_000
"""Latents of one pass through them."""


class Subject(Protocol):
    """A family, seen by the passes. Tensors as the graph takes and gives them."""

    family: str
    inputs: TensorSpec

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    labels: tuple[str, ...]
    needs_teacher: bool
    """Is there nothing to learn from but the trained model's answers?"""
    prior: Literal["normal"] | None
    """What its inputs are drawn from, if they are no data."""

    def judge(self) -> Judge:
        """Of the whole test part."""

    def samples(self, count: int) -> NDArray[np.generic]:
        """The first `count` training inputs, as the graph takes them: to calibrate on."""

    def size(self, validation: float) -> int:
        """Samples of an epoch."""

    def lessons(
        self, *, epoch: int, batch_size: int, seed: int, validation: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """An epoch of (x, y) batches of what is not kept for validation, each sample once, in an order of its own."""

    def kept(self, *, seed: int, validation: float) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, y) batches of what is kept for validation."""

    def loss(self, answer: Any, x: Tensor, y: Tensor) -> Tensor:
        """Mean over the batch of the family's own loss; zero where `needs_teacher`."""

    def apart(self, answer: Any, teachers: Any, *, temperature: float) -> Tensor:
        """Mean over the batch of how far an answer is from a teacher's."""

    def features(self, module: nn.Module, x: Tensor) -> Tensor | None:
        """What the last layer decides upon (B, D); None where a module of this family does not say."""

    def validation(self, module: nn.Module, *, seed: int, validation: float) -> float:
        """How good is the module on the samples kept for it? Higher is better."""


def _of_run(part: Part, seed: int, validation: float) -> tuple[Part, Part]:
    """Training samples in two, by the seed alone: (to learn from, for validation)."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(part)))
    kept = max(1, int(len(part) * validation))
    return Part(part.x[order[kept:]], part.y[order[kept:]]), Part(part.x[order[:kept]], part.y[order[:kept]])


class _Sampled:
    """What subjects with a training part have in common."""

    needs_teacher = False
    prior: Literal["normal"] | None = None
    labels: tuple[str, ...] = ()
    _train: Part

    def samples(self, count: int) -> NDArray[np.generic]:
        return self._train.x[:count].contiguous().numpy()

    def size(self, validation: float) -> int:
        return len(self._train) - max(1, int(len(self._train) * validation))

    def lessons(
        self, *, epoch: int, batch_size: int, seed: int, validation: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        part = _of_run(self._train, seed, validation)[0]
        for index, _ in batches(len(part), batch_size, epoch=epoch, seed=seed):
            yield part.x[index], part.y[index]

    def features(self, module: nn.Module, x: Tensor) -> Tensor | None:
        penultimate = getattr(module, "penultimate", None)
        return None if penultimate is None else penultimate(x)

    def kept(self, *, seed: int, validation: float) -> Iterator[tuple[Tensor, Tensor]]:
        for piece in in_pieces(self._kept(seed, validation)):
            yield piece.x, piece.y

    def _kept(self, seed: int, validation: float) -> Part:
        return _of_run(self._train, seed, validation)[1]


class ClassifySubject(_Sampled):
    """Samples -> a score for each class (B, K)."""

    def __init__(self, dataset: LabelledDataset, *, family: str, inputs: TensorSpec, outputs: TensorSpec) -> None:
        self.family, self.inputs, self.outputs, self.labels = family, inputs, (outputs,), dataset.labels
        self._dataset = dataset
        self._train = Part(torch.from_numpy(dataset.x_train), torch.from_numpy(dataset.y_train))

    def judge(self) -> Judge:
        return ClassifyJudge(self._dataset, inputs=self.inputs.name, outputs=self.outputs[0].name)

    def loss(self, answer: Any, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(answer, y)

    def apart(self, answer: Any, teachers: Any, *, temperature: float) -> Tensor:
        """Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2."""
        told = F.kl_div(
            F.log_softmax(answer / temperature, 1), F.log_softmax(teachers / temperature, 1), reduction="batchmean",
            log_target=True,
        )  # fmt: skip
        return told * temperature**2

    def validation(self, module: nn.Module, *, seed: int, validation: float) -> float:
        kept = self._kept(seed, validation)
        return correct(module, kept.x, kept.y) / len(kept)


class ForecastSubject(_Sampled):
    """Windows (B, L, C) -> the hours after them (B, H, C)."""

    def __init__(self, config: TrainConfig, task: Forecast, *, dataset: str) -> None:
        lookback, channels = task.shapes["inputs"]
        self.family = config.model.family
        self.inputs = TensorSpec(name="window", datatype="FP32", shape=(-1, lookback, channels))
        self.outputs = (TensorSpec(name="forecast", datatype="FP32", shape=(-1, *task.shapes["outputs"])),)
        self._task, self._train, self._dataset = task, task.parts.train, dataset
        self._std = task.model.preprocess.std

    def judge(self) -> Judge:
        """Neighbouring windows share most of their hours, so they are resampled in blocks."""
        test, std = self._task.parts.test, self._std.numpy()  # type: ignore[operator, union-attr]
        settings = self._task.shapes
        return ErrorJudge(
            x=test.x.numpy(), y=test.y.numpy(), dataset=self._dataset, metric="mse", inputs=self.inputs.name,
            output=self.outputs[0].name, scale=std, block=settings["inputs"][0] + settings["outputs"][0],
        )  # fmt: skip

    def loss(self, answer: Any, x: Tensor, y: Tensor) -> Tensor:
        return ((answer - y) / self._std).square().mean()  # type: ignore[no-any-return]

    def apart(self, answer: Any, teachers: Any, *, temperature: float) -> Tensor:
        return ((answer - teachers) / self._std).square().mean()  # type: ignore[no-any-return]

    def _kept(self, seed: int, validation: float) -> Part:
        return self._task.parts.validation

    @torch.inference_mode()
    def validation(self, module: nn.Module, *, seed: int, validation: float) -> float:
        """On the series' own validation part; windows of the training part share hours with those that were kept."""
        module.eval()
        part = self._task.parts.validation
        return -sum(float(errors(module, piece).square().mean()) * len(piece) for piece in in_pieces(part)) / len(part)

    def size(self, validation: float) -> int:
        return len(self._train)

    def lessons(
        self, *, epoch: int, batch_size: int, seed: int, validation: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for index, _ in batches(len(self._train), batch_size, epoch=epoch, seed=seed):
            yield self._train.x[index], self._train.y[index]


class ReconstructSubject(_Sampled):
    """Samples -> (reconstruction, score): judged by the anomalies that the score finds where the test part tells them,
    else by what is lost."""

    def __init__(self, config: TrainConfig, task: Reconstruct, dataset: Any) -> None:
        self.family = config.model.family
        shape = tuple(task.shapes["inputs"])
        datatype = DATATYPE_OF_NUMPY[task.parts.train.x.numpy().dtype]
        self.inputs = TensorSpec(
            name="image" if datatype == "UINT8" and len(shape) == 3 else "window", datatype=datatype, shape=(-1, *shape)
        )
        self.outputs = (
            TensorSpec(name="reconstruction", datatype="FP32", shape=(-1, *shape)),
            TensorSpec(name="score", datatype="FP32", shape=(-1,)),
        )
        self._task, self._dataset = task, dataset
        train = task.parts.train
        self._train = Part(train.x, torch.zeros(len(train), dtype=torch.int64))
        self._kept_part = task.parts.validation

    def spread(self, count: int) -> NDArray[np.generic]:
        """At most so many training inputs, evenly from all of them: neighbours in a series are alike."""
        rows = np.unique(np.linspace(0, len(self._train) - 1, count).astype(np.int64))
        return self._train.x[torch.from_numpy(rows)].contiguous().numpy()

    def judge(self) -> Judge:
        test, preprocess = self._task.parts.test, self._task.model.preprocess
        anomalous = test.y.numpy()
        if anomalous.min() == 0 and anomalous.max() == 1 and getattr(self._dataset, "labels", ("", "")) != ():
            from train_jobs.datasets.anomaly import NORMAL_OR_NOT, AnomalySeries

            if isinstance(self._dataset, AnomalySeries) or self._dataset.labels == NORMAL_OR_NOT:
                block = self._dataset.window if isinstance(self._dataset, AnomalySeries) else 1
                return AucJudge(
                    x=test.x.numpy(), anomalous=anomalous, dataset=self._dataset.name, inputs=self.inputs.name,
                    output="score", block=block,
                )  # fmt: skip
        scaled = np.concatenate([preprocess(piece.x).numpy() for piece in in_pieces(test)])  # type: ignore[operator]
        return ErrorJudge(
            x=test.x.numpy(), y=scaled, dataset=self._dataset.name, metric="mse", inputs=self.inputs.name,
            output="reconstruction", scale=None, block=1, answer_scale=self._scaled,
        )  # fmt: skip

    def _scaled(self, answer: NDArray[np.generic]) -> NDArray[np.generic]:
        """A reconstruction in the data's units, on the model's scale."""
        preprocess: Any = self._task.model.preprocess
        return np.asarray(preprocess(torch.from_numpy(np.ascontiguousarray(answer))).numpy())

    def loss(self, answer: Any, x: Tensor, y: Tensor) -> Tensor:
        """The score is the family's own loss of each sample (for a VAE its evidence bound), without noise."""
        return answer[1].mean()  # type: ignore[no-any-return]

    def apart(self, answer: Any, teachers: Any, *, temperature: float) -> Tensor:
        preprocess: Any = self._task.model.preprocess
        return (preprocess(answer[0]) - preprocess(teachers[0])).square().mean()  # type: ignore[no-any-return]

    def _kept(self, seed: int, validation: float) -> Part:
        return self._kept_part

    @torch.inference_mode()
    def validation(self, module: nn.Module, *, seed: int, validation: float) -> float:
        module.eval()
        part = self._kept_part
        return -sum(float(module(piece.x)[1].double().sum()) for piece in in_pieces(part)) / len(part)

    def size(self, validation: float) -> int:
        return len(self._train)

    def lessons(
        self, *, epoch: int, batch_size: int, seed: int, validation: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for index, _ in batches(len(self._train), batch_size, epoch=epoch, seed=seed):
            yield self._train.x[index], self._train.y[index]


class _Drawn:
    """Latents (B, Z) -> samples (B, ...): learns from the trained model, for there is nothing else to learn from."""

    needs_teacher = True
    prior: Literal["normal"] | None = "normal"
    labels: tuple[str, ...] = ()

    def __init__(self, config: TrainConfig, latent: int, shape: tuple[int, ...], *, output: str, teacher: nn.Module):
        self.family = config.model.family
        self.inputs = TensorSpec(name="latent", datatype="FP32", shape=(-1, latent))
        self.outputs = (TensorSpec(name=output, datatype="FP32", shape=(-1, *shape)),)
        self._latent, self._seed, self._teacher = latent, config.seed, teacher

    def samples(self, count: int) -> NDArray[np.generic]:
        return noise((count, self._latent), self._seed, 0, _LATENTS).numpy()

    def size(self, validation: float) -> int:
        return _TAUGHT

    def lessons(
        self, *, epoch: int, batch_size: int, seed: int, validation: float
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Latents are free: each epoch draws new ones."""
        drawn = noise((_TAUGHT, self._latent), seed, epoch + 1, _LATENTS)
        for x in torch.split(drawn, batch_size):
            yield x, torch.zeros(len(x), dtype=torch.int64)

    def loss(self, answer: Any, x: Tensor, y: Tensor) -> Tensor:
        return answer.new_zeros(())  # type: ignore[no-any-return]

    def apart(self, answer: Any, teachers: Any, *, temperature: float) -> Tensor:
        """Absolute: squared differences teach a generator to blur."""
        return (answer - teachers).abs().mean()  # type: ignore[no-any-return]

    def features(self, module: nn.Module, x: Tensor) -> Tensor | None:
        return None

    def kept(self, *, seed: int, validation: float) -> Iterator[tuple[Tensor, Tensor]]:
        drawn = noise((1024, self._latent), seed, 0, _LATENTS + 1)
        yield drawn, torch.zeros(len(drawn), dtype=torch.int64)

    @torch.inference_mode()
    def validation(self, module: nn.Module, *, seed: int, validation: float) -> float:
        module.eval()
        ((x, _),) = self.kept(seed=seed, validation=validation)
        return -float((module(x) - self._teacher(x)).abs().mean())


class GenerateSubject(_Drawn):
    """Latents (B, Z) -> pictures (B, C, H, W) in 0..1: judged by the Fréchet distance to the test part."""

    def __init__(self, config: TrainConfig, task: Adversarial, *, dataset: str, teacher: nn.Module) -> None:
        latent, shape = task.shapes["inputs"][0], tuple(task.shapes["outputs"])
        super().__init__(config, latent, shape, output="image", teacher=teacher)
        self._task, self._dataset = task, dataset

    def judge(self) -> Judge:
        return FrechetJudge(task=self._task, dataset=self._dataset, inputs="latent", output="image", seed=self._seed)


class DecodeSubject(_Drawn):
    """Codes (B, Z) of a variational autoencoder -> samples, on the model's scale: judged by how well the codes of the
    test part come back as what they are codes of."""

    def __init__(self, config: TrainConfig, task: Reconstruct, vae: VAE, *, dataset: str) -> None:
        shape = tuple(task.shapes["inputs"])
        output = "image" if len(shape) == 3 else "window"
        super().__init__(config, vae.latent, shape, output=output, teacher=Sampler(vae).eval())
        self._task, self._dataset, self._vae = task, dataset, vae

    @torch.inference_mode()
    def judge(self) -> Judge:
        pieces = [self._vae.preprocess(piece.x) for piece in in_pieces(self._task.parts.test)]
        codes_NZ = torch.cat([self._vae.encode(piece)[0] for piece in pieces]).numpy()
        return ErrorJudge(
            x=codes_NZ, y=torch.cat(pieces).numpy(), dataset=self._dataset, metric="mse", inputs="latent",
            output=self.outputs[0].name, block=1,
        )  # fmt: skip


def subject_of(model: nn.Module, config: TrainConfig, dataset: Any, *, runs_dir: Path | None = None) -> Subject:
    """The subject of a finished run's `model`. Raises ConfigError for a task whose models are not compressed."""
    kind = config.task.kind
    if kind in CLASSIFIERS:
        return ClassifySubject(
            dataset, family=config.model.family, inputs=input_spec(dataset), outputs=output_spec(len(dataset.labels))
        )
    if kind not in ("forecast", "reconstruct", "adversarial"):
        raise ConfigError(
            f"{config.recipe} does task.kind={kind}; Sluice compresses "
            f"{', '.join(sorted(CLASSIFIERS | {'forecast', 'reconstruct', 'adversarial'}))}"
        )
    task: Any = config.task.build(config, dataset, runs_dir=runs_dir)
    if kind == "forecast":
        return ForecastSubject(config, task, dataset=dataset.name)
    if kind == "adversarial":
        return GenerateSubject(config, task, dataset=dataset.name, teacher=served(model))
    assert isinstance(model, Autoencoder | VAE)
    return ReconstructSubject(config, task, dataset)


def input_spec(dataset: LabelledDataset) -> TensorSpec:
    """What a classifier of these samples takes."""
    pictures = dataset.x_train.dtype == np.uint8 and dataset.x_train.ndim == 4
    return TensorSpec(
        name="image" if pictures else "input", datatype=DATATYPE_OF_NUMPY[dataset.x_train.dtype],
        shape=(-1, *dataset.x_train.shape[1:]),
    )  # fmt: skip


def served(model: nn.Module) -> nn.Module:
    """What of a run's model is served: of a generator and its judge, the averaged generator."""
    average = getattr(model, "average", None)
    return average if isinstance(average, nn.Module) else model
