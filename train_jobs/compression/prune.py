"""nn.Module -> a smaller nn.Module: whole channels removed, with everything that depends on them.

What must shrink together is read off the traced graph (compression/channels.py), or, for recurrent networks and tied
autoencoders, off the model's own structure (compression/units.py). Inputs and outputs keep their shape, and so does the
code of an autoencoder. What goes first is PruneConfig.importance, summed over all weights of a group:

    magnitude   squared weights: Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, section 4.1; Li et
                al., "Pruning Filters for Efficient ConvNets", ICLR 2017, section 3.1, for one layer
    taylor      weight times gradient, batch by batch: Molchanov et al., "Importance Estimation for Neural Network
                Pruning", CVPR 2019, section 3.1
    bn_scale    scales of batch normalisation: Liu et al., "Learning Efficient Convolutional Networks through Network
                Slimming", ICCV 2017, section 3
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cluster.errors import ConfigError, InvalidRequest, TrainingFailed
from cluster.variants import TensorSpec
from train_jobs.compression.channels import Traced
from train_jobs.compression.finetune import FinetuneConfig, finetune
from train_jobs.compression.sparsify import masks
from train_jobs.compression.units import Saliency, has_units, units_of
from train_jobs.export import example_of
from train_jobs.models.layers import batch_norms

if TYPE_CHECKING:
    from train_jobs.compression.subject import Subject

_BATCHES, _BATCH = 8, 64
"""What importance=taylor looks at."""


class PruneConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    ratio: float = Field(default=0.3, gt=0, lt=1)
    """Share of the channels that goes: of each layer's, or with scope=global of all together."""
    round_to: int = Field(default=8, ge=1)
    """Channels are kept in multiples of this, and one multiple at least: kernels work in vectors of eight floats or
    more."""
    importance: Literal["magnitude", "taylor", "bn_scale"] = "magnitude"
    scope: Literal["local", "global"] = "local"
    """local: every layer loses the same share; global: the least channels of all layers go, each layer's importances
    divided by their mean."""
    steps: int = Field(default=1, ge=1)
    """The ratio is reached in so many equal steps."""
    between: FinetuneConfig | None = None
    """Fine-tuning after each step but the last, with the trained model at hand as a teacher."""
    finetune: FinetuneConfig = FinetuneConfig()
    """What the pruned model needs in the end: for the caller, `prune` itself does not do it."""


class Group(Protocol):
    """Channels that go together, one from each of `parts` (of a group normalisation, say)."""

    @property
    def name(self) -> str:
        """Of the layer that makes them."""

    @property
    def size(self) -> int:
        """Channels of one part."""

    @property
    def parts(self) -> int: ...

    def importance(self, saliency: Saliency) -> Tensor | None:
        """(size,), its mean 1; None where nothing says."""

    def keep(self, kept: Tensor) -> None:
        """Leave the channels `kept` (int64, in order) of each part."""


def prune(
    model: nn.Module, config: PruneConfig, *, inputs: TensorSpec, subject: Subject | None = None,
    hold_zeros: bool = False, notify: Callable[[str], None] = lambda line: None,
) -> nn.Module:  # fmt: skip
    """A smaller copy, not yet fine-tuned by `config.finetune`; its outputs keep their shape, so that its answers mean
    the same. `model` is what is served (of a GAN the averaged generator), and stays as it is.

    `subject` is what importance=taylor and `between` learn from; `hold_zeros`: weights that are zero stay so between
    steps. Raises ConfigError if they lack it; InvalidRequest if the model cannot be traced, no layer has channels to
    spare, the ratio would empty one, or the model has not what the importance is read from; TrainingFailed if
    fine-tuning in between diverges.
    """
    _check(model, config, subject)
    # The graph is read off autograd's: what its owner has frozen would be missing there (and could not be fine-tuned).
    pruned = copy.deepcopy(model).eval().requires_grad_(True)
    before = _parameters(pruned)
    try:
        example = example_of(inputs)
        expected = _shapes(pruned, example)
        with warnings.catch_warnings(), torch.enable_grad():
            warnings.simplefilter("ignore")
            _shrink(pruned, model, config, example, subject, hold_zeros, notify)
        shapes = _shapes(pruned, example)
    except (InvalidRequest, TrainingFailed):
        raise
    except Exception as error:
        raise InvalidRequest(f"the model cannot be pruned as a graph ({error!r}); leave pruning out") from error
    if shapes != expected:
        had, has = (each[0] if len(each) == 1 else each for each in (expected, shapes))
        raise InvalidRequest(f"pruning would change the output from {had} to {has}; leave it out")
    if _parameters(pruned) >= before:
        raise InvalidRequest(
            f"no layer has channels to spare at ratio={config.ratio} in steps of round_to={config.round_to}; raise the "
            "ratio or lower round_to"
        )
    return pruned


def _check(model: nn.Module, config: PruneConfig, subject: Subject | None) -> None:
    if config.importance == "bn_scale" and not batch_norms(model):
        raise InvalidRequest(
            "importance=bn_scale reads the scales of batch normalisation, and the model has none; take "
            "importance=magnitude or taylor"
        )
    if subject is None and config.importance == "taylor":
        raise ConfigError("importance=taylor takes gradients on samples; pass subject=, or take importance=magnitude")
    if subject is None and config.between is not None:
        raise ConfigError("between fine-tunes on samples; pass subject=, or set between=null")


@torch.inference_mode()
def _shapes(model: nn.Module, example: Tensor) -> list[list[int]]:
    answer = model(example)
    return [list(each.shape) for each in (answer if isinstance(answer, tuple | list) else (answer,))]


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _shrink(
    pruned: nn.Module, trained: nn.Module, config: PruneConfig, example: Tensor, subject: Subject | None,
    hold_zeros: bool, notify: Callable[[str], None],
) -> None:  # fmt: skip
    """Step by step, in place."""
    traced = None if has_units(pruned) else Traced(pruned, example)
    first: dict[str, int] = {}
    for step in range(1, config.steps + 1):
        ratio = config.ratio * step / config.steps
        groups: Sequence[Group] = units_of(pruned) if traced is None else traced.groups()
        for group in groups:
            first.setdefault(group.name, group.size)
        _take(groups, _saliency(pruned, trained, config, subject), first, config, ratio)
        if step < config.steps and config.between is not None:
            assert subject is not None
            notify(f"pruned by {ratio:.0%}, step {step} of {config.steps}")
            # Into the same module: the traced graph knows its layers by who they are.
            held = masks(pruned) if hold_zeros else None
            tuned = finetune(pruned, subject, config.between, teacher=trained, frozen_zeros=held, notify=notify)
            pruned.load_state_dict(tuned.state_dict())
    if traced is not None:
        traced.unwrap()


def _saliency(model: nn.Module, trained: nn.Module, config: PruneConfig, subject: Subject | None) -> Saliency:
    if config.importance == "bn_scale":
        return {norm.weight: norm.weight.detach().abs() for norm in batch_norms(model) if norm.affine}
    if config.importance == "magnitude":
        return {parameter: parameter.detach().square() for parameter in model.parameters()}
    assert subject is not None
    told: dict[Tensor, Tensor] = {parameter: torch.zeros_like(parameter) for parameter in model.parameters()}
    tuning = config.finetune  # whose validation samples are kept out of this, too
    lessons = subject.lessons(epoch=0, batch_size=_BATCH, seed=tuning.seed, validation=tuning.validation)
    for x, y in itertools.islice(lessons, _BATCHES):
        model.zero_grad(set_to_none=True)
        _loss(model, trained, subject, x, y).backward()  # type: ignore[no-untyped-call]
        for parameter, total in told.items():
            if parameter.grad is not None:
                total += (parameter.detach() * parameter.grad).abs()
    model.zero_grad(set_to_none=True)
    if not any(bool(total.any()) for total in told.values()):
        raise InvalidRequest(
            f"importance=taylor finds no gradient in a model of family {subject.family} (one that learns from the "
            "trained model alone has none while it still is that model); take importance=magnitude"
        )
    return told


def _loss(model: nn.Module, trained: nn.Module, subject: Subject, x: Tensor, y: Tensor) -> Tensor:
    if not subject.needs_teacher:
        return subject.loss(model(x), x, y)
    with torch.no_grad():
        teachers = trained(x)
    return subject.apart(model(x), teachers, temperature=1.0)


def _take(
    groups: Sequence[Group], saliency: Saliency, first: dict[str, int], config: PruneConfig, ratio: float
) -> None:
    """Remove the least channels, until `ratio` of the `first` ones (by group, of one part) are gone."""
    scored = [(group, scores) for group in groups if (scores := group.importance(saliency)) is not None]
    for (group, scores), count in zip(scored, _counts(scored, first, config, ratio), strict=True):
        if count < 1:
            raise InvalidRequest(
                f"ratio={ratio:g} leaves none of the {group.size * group.parts} channels of {group.name or 'the model'}"
                f"; lower the ratio{', or set scope=local' if config.scope == 'global' else ''}"
            )
        unit = config.round_to // math.gcd(config.round_to, group.parts)
        kept = min(group.size, max(unit, count - count % unit))
        if kept < group.size:
            group.keep(torch.argsort(scores)[group.size - kept :].sort().values)


def _counts(
    scored: list[tuple[Group, Tensor]], first: dict[str, int], config: PruneConfig, ratio: float
) -> list[int]:
    """How many channels of each group stay, before rounding."""
    if config.scope == "local":
        return [_left(first[group.name], ratio) for group, _ in scored]
    if not scored:
        return []
    every = torch.cat([scores for _, scores in scored])
    gone = len(every) - _left(sum(first[group.name] for group, _ in scored), ratio)
    stays = torch.ones(len(every), dtype=torch.bool)
    stays[torch.argsort(every, stable=True)[: max(0, gone)]] = False
    return [int(each.sum()) for each in torch.split(stays, [group.size for group, _ in scored])]


def _left(channels: int, ratio: float) -> int:
    return math.floor(channels * (1 - ratio) + 1e-9)  # 10 * (1 - 0.9) is a little less than 1
