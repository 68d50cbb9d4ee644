"""Several questions to one trunk: the class, the department that it lies in, and which way a picture was turned.

Losses weigh themselves: Kendall, Gal and Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
Geometry and Semantics", CVPR 2018, equation 10 with its regression term replaced by a classification; s = log sigma^2
is what is learned, as section 3.2 advises. Turned pictures: Gidaris, Singh and Komodakis, "Unsupervised Representation
Learning by Predicting Image Rotations", ICLR 2018, section 2.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import field_validator
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs.datasets import LabelledDataset
from train_jobs.datasets.clothing import departments
from train_jobs.models.multihead import MultiHead
from train_jobs.tasks.classify import Classify, build_classifier, split
from train_jobs.tasks.task import Batch, Findings, LabelledSettings, Phase, in_pieces

if TYPE_CHECKING:
    from train_jobs.config import TrainConfig

Head = Literal["class", "department", "rotation"]
_TURNS = 4


class MultiTaskConfig(LabelledSettings):
    """The classes, and what else the same picture tells. Judged by the classes alone."""

    MODELS: ClassVar[frozenset[str]] = frozenset({"cnn", "mlp", "resnet18", "resnet50", "mobilenet_v3"})
    ENSEMBLES: ClassVar[bool] = False

    kind: Literal["multitask"] = "multitask"
    heads: tuple[Head, ...] = ("class", "department", "rotation")
    """class must be among them. department: known for clothes; rotation: a turned copy of each picture, twice the
    work of a step."""
    weighting: Literal["uncertainty", "fixed"] = "uncertainty"
    """fixed: each loss counts as much as another."""

    @field_validator("heads")
    @classmethod
    def _with_class(cls, heads: tuple[Head, ...]) -> tuple[Head, ...]:
        if "class" not in heads or len(set(heads)) < len(heads):
            raise ValueError(f"heads={list(heads)} must hold class, and each head once")
        return heads

    def build(self, config: TrainConfig, dataset: LabelledDataset, *, runs_dir: Path | None = None) -> MultiTask:
        """Raises ConfigError for a head that the data has no answers for."""
        return MultiTask(config, dataset, self)

    def skeleton(self, config: TrainConfig, shapes: dict[str, Any]) -> nn.Module:
        return MultiHead(config.model.build(tuple(shapes["inputs"]), tuple(shapes["outputs"])), shapes["heads"])


def turned(x_BCHW: Tensor, turns_B: Tensor) -> Tensor:
    """Square pictures, each turned to the left by its number of quarters."""
    made = x_BCHW
    for turn in range(1, _TURNS):
        chosen = (turns_B == turn).view(-1, 1, 1, 1)
        made = torch.where(chosen, torch.rot90(x_BCHW, turn, (2, 3)), made)
    return made


class MultiTaskLoss(nn.Module):
    """Batch -> sum over the samples of all heads' losses, weighted. The log-variances are its own parameters."""

    def __init__(self, model: MultiHead, settings: MultiTaskConfig, departments_K: Tensor | None) -> None:
        super().__init__()
        self.model = model
        self._heads, self._departments_K = settings.heads, departments_K
        learned = settings.weighting == "uncertainty"
        self.log_variances = nn.Parameter(torch.zeros(len(settings.heads))) if learned else None

    def forward(self, batch: Batch) -> Tensor:
        losses = torch.stack(self.each(batch))
        if self.log_variances is None:
            return losses.sum()
        return ((-self.log_variances).exp() * losses + 0.5 * self.log_variances * len(batch.y)).sum()

    def each(self, batch: Batch) -> list[Tensor]:
        """Cross-entropy of each head, summed over the batch."""
        asked = batch.x
        turns_B = ((batch.rows + batch.step) % _TURNS).to(batch.y.device)
        if "rotation" in self._heads:
            asked = torch.cat([batch.x, turned(batch.x, turns_B)])
        features = self.model.penultimate(asked)
        upright, own = features[: len(batch.y)], features[len(batch.y) :]
        losses = []
        for head in self._heads:
            if head == "class":
                logits, wanted = self.model.decide(upright), batch.y
            elif head == "department":
                assert self._departments_K is not None
                logits, wanted = self.model.decide(upright, head), self._departments_K.to(batch.y.device)[batch.y]
            else:
                logits, wanted = self.model.decide(own, head), turns_B
            losses.append(F.cross_entropy(logits, wanted, reduction="sum"))
        return losses

    def weights(self) -> dict[str, float]:
        """What each head's loss is multiplied by."""
        if self.log_variances is None:
            return dict.fromkeys(self._heads, 1.0)
        return dict(zip(self._heads, (-self.log_variances.detach()).exp().tolist(), strict=True))


class MultiTask(Classify):
    """Classify, with further heads that learn beside it."""

    def __init__(self, config: TrainConfig, dataset: LabelledDataset, settings: MultiTaskConfig) -> None:
        inputs, known = dataset.x_train.shape[1:], departments(dataset.labels)
        if "rotation" in settings.heads and (len(inputs) != 3 or inputs[1] != inputs[2]):
            raise ConfigError(
                f"task.heads has rotation, which turns square pictures, and {dataset.name} has samples of "
                f"{list(inputs)}; leave it out: --set 'task.heads=[class]'"
            )
        if "department" in settings.heads and known is None:
            raise ConfigError(
                f"task.heads has department, which is known for clothes, and {dataset.name} has the classes "
                f"{', '.join(dataset.labels[:5])}, ...; leave it out: --set 'task.heads=[class, rotation]'"
            )
        self.parts = split(config, dataset)
        sizes = {"department": len(known[0]) if known else 0, "rotation": _TURNS}
        heads: dict[str, int] = {str(head): sizes[head] for head in settings.heads if head != "class"}
        self.shapes: dict[str, Any] = {"inputs": list(inputs), "outputs": [len(dataset.labels)], "heads": heads}
        self._model = MultiHead(build_classifier(config, dataset, self.parts), heads)
        self.model: nn.Module = self._model
        self._departments_K = torch.tensor(known[1]) if known else None
        self._loss = MultiTaskLoss(self._model, settings, self._departments_K)
        self.phases = (Phase("train", self._loss),)

    def findings(self, model: nn.Module) -> Findings:
        """Also the other heads' accuracies, pictures turned by their row, and how the losses were weighed."""
        assert isinstance(model, MultiHead)
        test, metrics = self.parts.test, dict(super().findings(model).metrics)
        right = dict.fromkeys(model.heads, 0)
        for start, piece in zip(range(0, len(test), 512), in_pieces(test, 512), strict=True):
            turns_B = (torch.arange(start, start + len(piece)) % _TURNS).to(piece.y.device)
            for head in right:
                if head == "department":
                    assert self._departments_K is not None
                    x, wanted = piece.x, self._departments_K.to(piece.y.device)[piece.y]
                else:
                    x, wanted = turned(piece.x, turns_B), turns_B
                right[head] += int((model.decide(model.penultimate(x), head).argmax(1) == wanted).sum())
        metrics |= {f"{head}_accuracy": count / len(test) for head, count in right.items()}
        told = ", ".join(f"{head} {weight:.3f}" for head, weight in self._loss.weights().items())
        return Findings(metrics, notes=(f"weights of the losses at the end: {told}",))
