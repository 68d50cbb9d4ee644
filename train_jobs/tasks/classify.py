"""Which class? Cross-entropy on labelled samples, judged by accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from cluster import stats
from train_jobs.datasets import LabelledDataset
from train_jobs.models.layers import mean_and_std
from train_jobs.tasks.task import Batch, Findings, LabelledSettings, Metric, Part, Parts, Phase, in_pieces

if TYPE_CHECKING:
    from train_jobs.config import TrainConfig

ACCURACY = Metric("accuracy", higher_is_better=True)


class ClassifyConfig(LabelledSettings):
    """A score for each class."""

    MODELS: ClassVar[frozenset[str]] = frozenset(
        {"cnn", "mlp", "resnet18", "resnet50", "mobilenet_v3", "lstm", "rnn"}
    )
    ENSEMBLES: ClassVar[bool] = True

    kind: Literal["classify"] = "classify"
    loss: Literal["cross_entropy", "mse"] = "cross_entropy"
    """mse: squared distance of the probabilities to one-hot labels (Brier's score)."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)

    def build(self, config: TrainConfig, dataset: LabelledDataset, *, runs_dir: Path | None = None) -> Classify:
        return Classify(config, dataset, self)


def split(config: TrainConfig, dataset: LabelledDataset) -> Parts:
    """Training samples in two, by the seed alone; with `labels_per_class`, the first few of each class to train on."""
    order = np.random.default_rng(config.seed).permutation(len(dataset.y_train))
    kept = max(1, int(len(order) * config.validation))
    validation, training = order[:kept], order[kept:]
    if config.labels_per_class is not None:
        labels = dataset.y_train[training]
        few = [training[labels == label][: config.labels_per_class] for label in range(len(dataset.labels))]
        training = np.concatenate(few)

    def part(x: np.ndarray, y: np.ndarray) -> Part:
        return Part(torch.from_numpy(x), torch.from_numpy(y))

    return Parts(
        part(dataset.x_train[training], dataset.y_train[training]),
        part(dataset.x_train[validation], dataset.y_train[validation]),
        part(dataset.x_test, dataset.y_test),
    )


@torch.inference_mode()
def correct(model: nn.Module, x: Tensor, y: Tensor) -> int:
    """How many samples the model gets right. Puts it into eval mode."""
    model.eval()
    return sum(int((model(piece.x).argmax(1) == piece.y).sum()) for piece in in_pieces(Part(x, y)))


class CrossEntropy(nn.Module):
    """Batch -> sum of the losses."""

    def __init__(self, model: nn.Module, config: ClassifyConfig) -> None:
        super().__init__()
        self.model = model
        self._config = config

    def forward(self, batch: Batch) -> Tensor:
        return self.of(self.model(batch.x), batch.y)

    def of(self, logits_BK: Tensor, y_B: Tensor) -> Tensor:
        if self._config.loss == "mse":
            wanted = F.one_hot(y_B, logits_BK.shape[1]).to(logits_BK.dtype)
            return F.mse_loss(logits_BK.softmax(1), wanted, reduction="sum")
        return F.cross_entropy(logits_BK, y_B, reduction="sum", label_smoothing=self._config.label_smoothing)


class Classify:
    """The task of telling classes apart."""

    metric = ACCURACY

    def __init__(self, config: TrainConfig, dataset: LabelledDataset, settings: ClassifyConfig) -> None:
        self.parts = split(config, dataset)
        self.shapes = {"inputs": list(dataset.x_train.shape[1:]), "outputs": [len(dataset.labels)]}
        self.model = build_classifier(config, dataset, self.parts)
        self.phases: tuple[Phase, ...] = (Phase("train", CrossEntropy(self.model, settings)),)

    def sums(self, model: nn.Module, part: Part) -> Tensor:
        return torch.tensor([correct(model, part.x, part.y), len(part)], dtype=torch.float64)

    def metrics(self, sums: Tensor) -> dict[str, float]:
        return {"accuracy": float(sums[0] / sums[1])}

    def findings(self, model: nn.Module) -> Findings:
        right, total = map(int, self.sums(model, self.parts.test))
        low, high = stats.jeffreys(right, total)
        return Findings({"accuracy": right / total, "accuracy_low": low, "accuracy_high": high})


def build_classifier(config: TrainConfig, dataset: LabelledDataset, parts: Parts) -> nn.Module:
    """The config's model for this data; pictures are normalised by what it is trained on."""
    model: Any = config.model.build(dataset.x_train.shape[1:], (len(dataset.labels),))
    if hasattr(model.preprocess, "normalise"):
        model.preprocess.normalise(*mean_and_std(parts.train.x))
    built: nn.Module = model
    return built
