"""A smaller model -> the same model with most of its quality back: a short run in this process, on what its family
learns from (train_jobs/compression/subject.py) and, where asked for, on what the trained model makes of it.

Deliberately small beside train_jobs/loop.py: no checkpoints and no workers, because it takes seconds to a minute; made
again from the same model, config and data it gives the same weights.

Shapes: B batch, D features of the student, T features of the teacher.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cluster.errors import ConfigError, TrainingFailed
from train_jobs.models.ensemble import Ensemble

if TYPE_CHECKING:
    from train_jobs.compression.subject import Subject

_STEPS, _SMALLEST_BATCH = 40, 16
"""An epoch of a small set has so many steps at least, unless its batches would become smaller than that."""


class FinetuneConfig(BaseModel):
    """AdamW with a one-cycle schedule."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    epochs: int = Field(default=3, ge=1)
    batch_size: int = Field(default=128, ge=1)
    """At most: a small set takes smaller batches, so that an epoch has steps enough to learn anything."""
    lr: float = Field(default=3e-3, gt=0)
    """The highest of the cycle."""
    weight_decay: float = Field(default=0.01, ge=0)
    validation: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the training samples that choose the best epoch."""
    flip: bool = False
    """Mirror half of the pictures left-right, other ones each epoch. For long runs: what was trained so wants it."""
    seed: int = Field(default=0, ge=0)
    teacher: float = Field(default=0.0, ge=0, le=1)
    """Share of the loss that is the distance to the trained model's answers (Hinton, Vinyals and Dean, "Distilling the
    Knowledge in a Neural Network", 2015, section 2); the rest is the family's own loss. All of it where the family has
    none: a generator of pictures."""
    temperature: float = Field(default=2.0, gt=0)
    """Divides a classifier's logits and its teacher's: the higher, the more the unlikely classes tell."""
    features: float = Field(default=0.0, ge=0)
    """Weight of the mean squared distance between the teacher's features, what its last layer decides upon, and a
    linear map of the model's own (Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015, equation 3, on all
    layers at once), as a share of the features' mean square, so that one weight suits any teacher. The map is learned
    along and dropped. 0: none; more costs a second pass per batch."""


class _Loss:
    """(model, x, y) -> what is minimised: the family's own loss, the teacher's answers, the teacher's features."""

    def __init__(self, subject: Subject, config: FinetuneConfig, teacher: nn.Module | None) -> None:
        self._subject, self._config = subject, config
        self._share = 1.0 if subject.needs_teacher else config.teacher
        self._teacher: nn.Module | None = None
        self.projection: nn.Linear | None = None
        if self._share or config.features:
            if teacher is None:
                raise ConfigError(
                    f"teacher={self._share:g} and features={config.features:g} of the loss come from the trained model "
                    "and none was given; pass teacher=, or set both to 0 (a generator always needs one)"
                )
            self._teacher = _ready(teacher).eval().requires_grad_(False)

    @torch.no_grad()
    def project(self, model: nn.Module) -> None:
        """Begin the map from the features of `model` to the teacher's, where there is to be one. Both in eval mode."""
        if self._config.features:
            x = torch.from_numpy(self._subject.samples(1))
            own, theirs = (self._features(each, x).shape[1] for each in (model, self._teacher))
            self.projection = nn.Linear(own, theirs)

    def __call__(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        answer = model(x)
        loss = (1.0 - self._share) * self._subject.loss(answer, x, y)
        if self._share:
            with torch.no_grad():
                teachers = self._answers(x)
            loss = loss + self._share * self._subject.apart(answer, teachers, temperature=self._config.temperature)
        if self.projection is not None:
            with torch.no_grad():
                wanted_BT = self._features(self._teacher, x)
            off_BT = self.projection(self._features(model, x)) - wanted_BT
            size = wanted_BT.square().mean().clamp_min(torch.finfo(wanted_BT.dtype).tiny)
            loss = loss + self._config.features * off_BT.square().mean() / size
        return loss

    def _answers(self, x: Tensor) -> Any:
        assert self._teacher is not None
        return self._teacher(x)

    def _features(self, model: nn.Module | None, x: Tensor) -> Tensor:
        """(B, D); of an ensemble those of its members side by side."""
        assert model is not None
        models = list(model.members) if isinstance(model, Ensemble) else [model]
        found = [self._subject.features(each, x) for each in models]
        told = [each for each in found if each is not None]
        if len(told) < len(found):
            raise ConfigError(
                f"features={self._config.features:g} needs models that tell what their last layer decides upon "
                f"(penultimate()), and a {type(models[0]).__name__} of family {self._subject.family} does not; set "
                "features=0"
            )
        return torch.cat(told, 1)


def finetune(
    model: nn.Module, subject: Subject, config: FinetuneConfig, *, teacher: nn.Module | None = None,
    frozen_zeros: Mapping[str, Tensor] | None = None, notify: Callable[[str], None] = lambda line: None,
) -> nn.Module:  # fmt: skip
    """A trained copy of `model`, all of whose parameters learn: the weights of the best epoch by the subject's
    validation, or those that came if no epoch is as good.

    `teacher` is the trained model, or an ensemble; it stays as it is. `frozen_zeros` names parameters and says which of
    their values are zero and stay so (bool, of their shape). Raises TrainingFailed if the loss is no longer finite, and
    ConfigError if the config wants a teacher or features that there are not.
    """
    size = subject.size(config.validation)
    tuned = _ready(model).requires_grad_(True)
    zeros = _frozen(tuned, frozen_zeros or {})
    loss_of = _Loss(subject, config, teacher)
    batch_size = min(config.batch_size, max(_SMALLEST_BATCH, size // _STEPS))
    steps = math.ceil(size / batch_size) * config.epochs
    best_score = subject.validation(tuned, seed=config.seed, validation=config.validation)
    best = copy.deepcopy(tuned.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(config.seed)  # of which dropout draws
        tuned.eval()
        loss_of.project(tuned)
        learning = [*tuned.parameters(), *([] if loss_of.projection is None else loss_of.projection.parameters())]
        optimizer = torch.optim.AdamW(learning, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=config.lr, total_steps=steps + 1)
        for epoch in range(config.epochs):
            tuned.train()
            losses = []
            for x, y in subject.lessons(
                epoch=epoch, batch_size=batch_size, seed=config.seed, validation=config.validation
            ):
                if len(x) == 1 < size:
                    continue  # left over at the end; batch normalisation cannot take one sample alone
                loss = loss_of(tuned, _mirrored(x) if config.flip else x, y)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                schedule.step()
                _hold(zeros)
                losses.append(loss.detach())
            mean_loss = float(torch.stack(losses).mean())
            if not math.isfinite(mean_loss):
                raise TrainingFailed(
                    f"fine-tuning diverged: loss {mean_loss} in epoch {epoch + 1}; lower lr={config.lr}"
                )
            score = subject.validation(tuned, seed=config.seed, validation=config.validation)
            notify(f"fine-tune epoch {epoch + 1}/{config.epochs}: loss {mean_loss:.3f}, validation {score:.4f}")
            if score >= best_score:  # of equals the last: its learning rate was the lowest
                best, best_score = copy.deepcopy(tuned.state_dict()), score
    tuned.load_state_dict(best)
    return tuned.to(memory_format=torch.contiguous_format).eval()


def _mirrored(x: Tensor) -> Tensor:
    """Half of the pictures (B, C, H, W), left-right. Raises ConfigError for what is no picture."""
    if x.ndim != 4:
        raise ConfigError(f"flip=true mirrors pictures, and a sample here has shape {tuple(x.shape[1:])}; unset it")
    return torch.where(torch.rand(len(x), 1, 1, 1) < 0.5, x.flip(-1), x)


def _ready(model: nn.Module) -> nn.Module:
    """A copy, laid out so that convolutions are 1.7 times as fast on a CPU."""
    return copy.deepcopy(model).to(memory_format=torch.channels_last)


def _frozen(model: nn.Module, frozen_zeros: Mapping[str, Tensor]) -> list[tuple[nn.Parameter, Tensor]]:
    """Each parameter with what of it is zero, set so."""
    parameters = dict(model.named_parameters())
    zeros = [(parameters[name], zero) for name, zero in frozen_zeros.items()]
    _hold(zeros)
    return zeros


@torch.no_grad()
def _hold(zeros: list[tuple[nn.Parameter, Tensor]]) -> None:
    for parameter, zero in zeros:
        parameter.masked_fill_(zero, 0.0)
