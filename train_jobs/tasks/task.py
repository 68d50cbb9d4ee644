"""What a task is: the tensors, the modules that are trained on them, and the figures by which the result is judged.

    config + data set -> Task -> train_jobs/loop.py calls its phases, batch by batch, and its metric once an epoch

A phase is a module whose forward takes a Batch and returns the *sum* of the batch's losses: the loop divides by the
size of the global batch, so a run is the same one however its batches are dealt out. A classifier has one phase; a GAN
has two, each with an optimizer of its own. What a phase only looks at (the discriminator while the generator learns, a
teacher) it must not register as a submodule: data parallelism would wait for gradients that never come.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from train_jobs import datasets
from train_jobs.datasets.labelled import Notify
from train_jobs.parallel.shards import noise

if TYPE_CHECKING:
    from train_jobs.config import TrainConfig


@dataclass(frozen=True)
class Part:
    """Samples x (N, ...) and targets y (N, ...); a float series may be a view of overlapping windows."""

    x: Tensor
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def share(self, rank: int, size: int) -> Part:
        """What one of `size` workers looks at: together they see every sample once."""
        return Part(self.x[rank::size], self.y[rank::size])


@dataclass(frozen=True)
class Parts:
    """The test part is for the end: nothing in training looks at it."""

    train: Part
    validation: Part
    test: Part


@dataclass(frozen=True)
class Batch:
    """One worker's share of a global batch."""

    x: Tensor
    y: Tensor
    rows: Tensor
    """int64: where in the global batch each sample stands."""
    whole: int
    """Samples in the global batch."""
    step: int
    """Optimizer steps before this one, over all epochs."""
    seed: int

    def randn(self, *shape: int, stream: int = 0) -> Tensor:
        """Normal noise (B, *shape), drawn for the global batch: each sample gets the same whoever works on it."""
        drawn = noise((self.whole, *shape), self.seed, self.step, stream)[self.rows.cpu()]
        return drawn.to(self.x.device, self.x.dtype if self.x.is_floating_point() else torch.get_default_dtype())


@dataclass(frozen=True)
class Phase:
    """A loss with an optimizer of its own. `loss` maps Batch to the sum of the losses; its parameters are trained."""

    name: str
    loss: nn.Module
    lr_scale: float = 1.0


@dataclass(frozen=True)
class Metric:
    """The figure that chooses the best epoch."""

    name: str
    higher_is_better: bool

    def better(self, one: float, than: float) -> bool:
        return one > than if self.higher_is_better else one < than

    @property
    def worst(self) -> float:
        return float("-inf") if self.higher_is_better else float("inf")


@dataclass(frozen=True)
class Findings:
    """The trained model on the test part: figures by name, tables to print, pictures (N, C, H, W) uint8 to look at."""

    metrics: dict[str, float]
    notes: tuple[str, ...] = ()
    pictures: dict[str, Tensor] = field(default_factory=dict)


class Task(Protocol):
    """One run's work. `model` holds all that is kept; `phases` share its parameters out among their optimizers."""

    parts: Parts
    model: nn.Module
    phases: tuple[Phase, ...]
    metric: Metric
    shapes: dict[str, Any]
    """What the task's config needs beside itself to build an empty model again: `skeleton(config, shapes)`."""

    def sums(self, model: nn.Module, part: Part) -> Tensor:
        """float64 (S,): figures of `part` that may be added up over workers. `model` is in eval mode."""

    def metrics(self, sums: Tensor) -> dict[str, float]:
        """What the added sums mean; `metric.name` is among them."""

    def findings(self, model: nn.Module) -> Findings:
        """The model, in eval mode, on the whole test part; with the naive answer beside where there is one."""


class TaskSettings(Protocol):
    """A task's config: one pydantic class per kind of work.

    MODELS: the kinds of model that do it. ENSEMBLES: may several models be averaged?
    """

    MODELS: ClassVar[frozenset[str]]
    ENSEMBLES: ClassVar[bool]

    def load(self, spec: str, *, notify: Callable[[str], None] | None = None) -> Any:
        """The data set that TrainConfig.dataset names; `.name`, `.spec` and `.source` tell which it is."""

    def build(self, config: TrainConfig, dataset: Any, *, runs_dir: Path | None = None) -> Task:
        """The task on that data, its model fresh. Runs that the config names are looked for in `runs_dir`."""

    def skeleton(self, config: TrainConfig, shapes: dict[str, Any]) -> nn.Module:
        """The model again, to load weights into, without the data."""


class LabelledSettings(BaseModel):
    """What the settings of tasks on labelled samples have in common: their data, and a model without more to it."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def load(self, spec: str, *, notify: Notify | None = None) -> Any:
        return datasets.load(spec, notify=notify)

    def skeleton(self, config: TrainConfig, shapes: dict[str, Any]) -> nn.Module:
        return config.model.build(tuple(shapes["inputs"]), tuple(shapes["outputs"]))


def in_pieces(part: Part, size: int = 512) -> list[Part]:
    """`part` in pieces that fit into memory whatever the model does with them."""
    return [Part(part.x[i : i + size], part.y[i : i + size]) for i in range(0, len(part), size)]
