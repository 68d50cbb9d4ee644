"""What a teacher thinks of each class, taught to a student; several teachers speak with one voice.

Soft targets: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2, and section 1
for the mean of several teachers. Features: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3,
here on what the last layer decides upon, all layers at once, and averaged over the features so that one weight suits
teachers of any width.

Shapes: B batch, D features of the student, T features of all teachers, K classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs.datasets import LabelledDataset
from train_jobs.models.ensemble import Ensemble
from train_jobs.tasks.classify import Classify, build_classifier, split
from train_jobs.tasks.task import Batch, Findings, LabelledSettings, Phase, in_pieces
from train_jobs.transfer import finished_run

if TYPE_CHECKING:
    from train_jobs.config import TrainConfig


class DistillConfig(LabelledSettings):
    """A score for each class, learned from the labels and from finished runs."""

    MODELS: ClassVar[frozenset[str]] = frozenset({"cnn", "mlp", "resnet18", "resnet50", "mobilenet_v3"})
    ENSEMBLES: ClassVar[bool] = True

    kind: Literal["distill"] = "distill"
    teachers: tuple[str, ...] = Field(min_length=1)
    """Finished runs by name or folder; of several, and of an ensemble's members, the mean of their probabilities."""
    temperature: float = Field(default=4.0, gt=0)
    """Divides the logits of both: the higher, the more the unlikely classes tell."""
    alpha: float = Field(default=0.9, ge=0, le=1)
    """Share of the teacher in the loss; the rest is the labels'."""
    features: float = Field(default=0.0, ge=0)
    """Weight of the squared distance between the teachers' features and a linear map of the student's; 0: none."""

    def build(self, config: TrainConfig, dataset: LabelledDataset, *, runs_dir: Path | None = None) -> Distill:
        """Raises ConfigError if a teacher is no finished run, or takes or gives something else."""
        return Distill(config, dataset, self, runs_dir)


class Teachers:
    """Finished models that answer and never learn. No module: whoever holds them does not register them."""

    def __init__(self, models: list[nn.Module]) -> None:
        self._models = [m for model in models for m in (model.members if isinstance(model, Ensemble) else [model])]
        for model in self._models:
            model.eval().requires_grad_(False)

    def ready(self, like: Tensor) -> None:
        """Go where a tensor of the student's is, in its precision."""
        first = next(self._models[0].parameters())
        if (first.device, first.dtype) != (like.device, like.dtype):
            for model in self._models:
                model.to(like.device, like.dtype)

    @torch.no_grad()
    def log_probabilities(self, x: Tensor, temperature: float = 1.0) -> Tensor:
        """log of the mean probability (B, K) at this temperature."""
        each = torch.stack([torch.log_softmax(model(x) / temperature, 1) for model in self._models])
        return torch.logsumexp(each, 0) - torch.log(each.new_tensor(float(len(each))))

    @torch.no_grad()
    def features(self, x: Tensor) -> Tensor:
        """What their last layers decide upon, side by side (B, T). Raises ConfigError if one does not say."""
        if any(not hasattr(model, "penultimate") for model in self._models):
            raise ConfigError("task.features needs teachers that have penultimate(): cnn, mlp, resnet18; set it to 0")
        return torch.cat([model.penultimate(x) for model in self._models], 1)  # type: ignore[operator]


class DistillLoss(nn.Module):
    """Batch -> sum of the losses. The map onto the teachers' features is its own parameter, and is not kept."""

    def __init__(self, model: nn.Module, teachers: Teachers, settings: DistillConfig, example: Tensor) -> None:
        super().__init__()
        self.model = model
        self._teachers, self._settings = teachers, settings
        self.projection: nn.Linear | None = None
        if settings.features:
            width = model.blocks()[-1].in_features  # type: ignore[operator]
            self.projection = nn.Linear(width, teachers.features(example).shape[1])

    def forward(self, batch: Batch) -> Tensor:
        self._teachers.ready(next(self.model.parameters()))
        settings, heat = self._settings, self._settings.temperature
        extra: Tensor | float = 0.0
        if self.projection is None:
            logits_BK = self.model(batch.x)
        else:
            features_BD = self.model.penultimate(batch.x)  # type: ignore[operator]
            logits_BK = self.model.blocks()[-1](features_BD)  # type: ignore[operator]
            off_BT = self._teachers.features(batch.x) - self.projection(features_BD)
            extra = settings.features * 0.5 * off_BT.square().mean(1).sum()
        soft = F.kl_div(
            torch.log_softmax(logits_BK / heat, 1), self._teachers.log_probabilities(batch.x, heat),
            reduction="sum", log_target=True,
        )  # fmt: skip
        hard = F.cross_entropy(logits_BK, batch.y, reduction="sum")
        # Soft gradients shrink with the square of the temperature: Hinton et al., end of section 2.
        return settings.alpha * heat**2 * soft + (1 - settings.alpha) * hard + extra


class Distill(Classify):
    """Classify, with teachers."""

    def __init__(
        self, config: TrainConfig, dataset: LabelledDataset, settings: DistillConfig, runs_dir: Path | None
    ) -> None:
        self.parts = split(config, dataset)
        self.shapes = {"inputs": list(dataset.x_train.shape[1:]), "outputs": [len(dataset.labels)]}
        self.model = build_classifier(config, dataset, self.parts)  # before all else: as without a teacher
        self._teachers = Teachers([_teacher(name, runs_dir, self.shapes) for name in settings.teachers])
        loss = DistillLoss(self.model, self._teachers, settings, self.parts.train.x[:1])
        self.phases = (Phase("train", loss),)

    def findings(self, model: nn.Module) -> Findings:
        """Also the teachers' accuracy, and how often the student decides as they do."""
        found, test = super().findings(model), self.parts.test
        self._teachers.ready(next(model.parameters()))
        right = agreed = 0
        for piece in in_pieces(test):
            theirs = self._teachers.log_probabilities(piece.x).argmax(1)
            right += int((theirs == piece.y).sum())
            agreed += int((theirs == model(piece.x).argmax(1)).sum())
        return Findings(
            found.metrics | {"teacher_accuracy": right / len(test), "agreement": agreed / len(test)}, found.notes
        )


def _teacher(name: str, runs_dir: Path | None, shapes: dict[str, Any]) -> nn.Module:
    run = finished_run(name, runs_dir)
    theirs, ours = (tuple(map(tuple, (s["inputs"], s["outputs"]))) for s in (run.shapes, shapes))
    if theirs != ours:
        raise ConfigError(
            f"task.teachers: run {name!r} ({run.config.dataset}) takes {list(theirs[0])} and gives {list(theirs[1])}, "
            f"this run takes {list(ours[0])} and gives {list(ours[1])}; name a run on the same data"
        )
    return run.model
