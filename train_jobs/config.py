"""TrainConfig: everything that a run depends on, validated once, where it enters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.errors import ConfigError
from train_jobs.models import CNNConfig, ModelConfig
from train_jobs.parallel.hooks import CommHook
from train_jobs.tasks import ClassifyConfig, TaskConfig
from train_jobs.transfer import TransferConfig

_MAY_CHANGE = frozenset({"num_workers", "checkpoint_steps", "device"})
"""What a run may go on with changed: the batches, and so the curve, are the same ones."""


class TrainConfig(BaseModel):
    """A named run. The same config and seed give the same curve; without dropout, at any number of workers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recipe: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Names the variants: "<recipe>/int8"."""
    model: ModelConfig = CNNConfig()
    task: TaskConfig = ClassifyConfig()
    dataset: str = "fashion-mnist"
    """What the task takes: a name that Sluice knows, or data of the user's own (datasets.load)."""
    transfer: TransferConfig | None = None
    """Begin with the weights of another model."""

    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Samples in one optimizer step, over all workers and accumulated pieces."""
    full_batch: bool = False
    """One step per epoch, on all samples: plain gradient descent; batch_size is the size of its pieces then."""
    accumulate: int = Field(default=1, ge=1)
    """Pieces in which a worker's share of a batch goes through the model: less memory, the same step."""
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    lr: float = Field(default=1e-3, gt=0)
    """The learning rate; with `one_cycle` and `cosine` its highest."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Of sgd; 0 is plain gradient descent."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Of adam and adamw; one_cycle moves the first of them."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2: added to the gradient by adam and sgd, apart from it by adamw."""
    l1: float = Field(default=0.0, ge=0)
    """Times the sum of the weights' magnitudes, added to the loss that is minimised (not to the one that is shown)."""
    schedule: Literal["constant", "one_cycle", "cosine"] = "constant"
    warmup_epochs: float = Field(default=0.0, ge=0)
    """Epochs over which the rate rises from nothing; with constant and cosine."""
    clip_norm: float | None = Field(default=None, gt=0)
    """Largest norm of a step's gradient."""
    flip: bool = False
    """Mirror half of the pictures left to right: right for clothes, wrong for digits."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many epochs without a better validation metric; None: never early."""
    average: Literal["none", "swa"] = "none"
    """swa: the model is the mean of the weights at the ends of the last epochs (train_jobs/averaging.py)."""
    swa_start: float = Field(default=0.75, gt=0, lt=1)
    """Share of the epochs after which averaging begins."""
    swa_lr: float = Field(default=0.25, gt=0, le=1)
    """Share of lr from there on: high enough to move between the points that are averaged."""
    snapshots: int = Field(default=1, ge=1)
    """More than 1: so many cosine cycles, and the model is the ensemble of the weights at their ends."""
    members: int = Field(default=1, ge=1)
    """More than 1: so many runs that differ by their seed alone, and the model is their ensemble."""

    validation: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the training samples kept for validation; the test set is never seen in training."""
    labels_per_class: int | None = Field(default=None, ge=1)
    """Train on so many samples of each class only: what few labels are worth."""
    seed: int = Field(default=0, ge=0)
    precision: Literal["fp32", "bf16", "fp16", "fp64"] = "fp32"
    """bf16 and fp16: mixed, weights stay fp32 (fp16 scales its loss, and needs a GPU)."""
    compile: bool = False
    """Let torch.compile fuse the loss; needs a C++ compiler."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_workers: int | tuple[int, int] = 2
    """Data parallel workers; [1, 4] is elastic: as many as the cluster has room for."""
    comm_hook: CommHook = CommHook()
    checkpoint_steps: int | None = Field(default=None, ge=1)
    """Also within an epoch, after every so many steps."""

    @model_validator(mode="after")
    def _fits_together(self) -> TrainConfig:
        low, high = self.workers
        if low < 1 or high < low:
            raise ValueError(f"num_workers={self.num_workers} must be 1 or more, or [least, most]")
        if self.batch_size < high and not self.full_batch:
            raise ValueError(f"batch_size={self.batch_size} leaves some of num_workers={high} without work")
        if self.model.kind not in self.task.MODELS:
            raise ValueError(
                f"model.kind={self.model.kind} does not do task.kind={self.task.kind}, which takes "
                f"{', '.join(sorted(self.task.MODELS))}"
            )
        if self.warmup_epochs and self.schedule == "one_cycle":
            raise ValueError(f"warmup_epochs={self.warmup_epochs}: one_cycle has a warm-up of its own; take cosine")
        if self.warmup_epochs > self.epochs:
            raise ValueError(f"warmup_epochs={self.warmup_epochs} is longer than epochs={self.epochs}")
        several = [name for name, on in (("average", self.average != "none"), ("snapshots", self.snapshots > 1),
                                         ("members", self.members > 1)) if on]  # fmt: skip
        if len(several) > 1:
            raise ValueError(f"{' and '.join(several)} each make the final model in their own way; choose one")
        if self.snapshots > 1 and (self.schedule != "cosine" or self.patience is not None):
            raise ValueError(f"snapshots={self.snapshots} needs schedule=cosine and patience=null: cycles end in order")
        if max(self.snapshots, self.members) > 1 and not self.task.ENSEMBLES:
            raise ValueError(f"task.kind={self.task.kind} has no ensembles; set snapshots=1 and members=1")
        if self.epochs % self.snapshots:
            raise ValueError(f"epochs={self.epochs} is no multiple of snapshots={self.snapshots}")
        if self.average == "swa" and self.schedule == "one_cycle":
            raise ValueError("average=swa needs a rate that does not end at nothing; set schedule=cosine or constant")
        if self.precision == "fp16" and self.device == "cpu":
            raise ValueError("precision=fp16 scales its loss on a GPU; on a CPU take bf16")
        return self

    @property
    def workers(self) -> tuple[int, int]:
        """(least, most) workers."""
        return (self.num_workers, self.num_workers) if isinstance(self.num_workers, int) else self.num_workers

    @property
    def ensemble_size(self) -> int:
        """Members of the finished model; 1 where it is a single one."""
        return max(self.snapshots, self.members)

    @property
    def swa_first_epoch(self) -> int:
        """The first epoch, counted from 0, whose weights are averaged."""
        return min(math.ceil(self.swa_start * self.epochs), self.epochs - 1)

    def member(self, number: int) -> TrainConfig:
        """The run of one of `members`."""
        return self.model_copy(update={"members": 1, "seed": self.seed + number})

    def with_overrides(self, pairs: Sequence[str]) -> TrainConfig:
        """This config with "key=value" strings applied; "model.dropout=0.2" sets a field of a field.

        Another `kind` begins with that kind's own defaults. Raises ConfigError naming the key and what is allowed.
        """
        changed = self.model_dump()
        for pair in pairs:
            key, equals, text = pair.partition("=")
            if not equals or key.partition(".")[0] not in type(self).model_fields:
                raise ConfigError(f"override {pair!r} is no field=value; fields: {', '.join(type(self).model_fields)}")
            try:
                value = yaml.safe_load(text)
            except yaml.YAMLError as error:
                raise ConfigError(f"override {pair!r} has no readable value; write it as in YAML: lr=0.01") from error
            _set(changed, key.split("."), value, pair)
        try:
            return TrainConfig.model_validate(changed)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            given = f"{field}={first['input']!r} is not allowed: " if field else ""
            raise ConfigError(f"{given}{first['msg']}; see --set") from error

    def require_same_run(self, started_with: dict[str, Any], *, where: str) -> None:
        """Raise ConfigError, naming the fields, unless a run that was `started_with` this can go on with this config.

        Only how it is computed may change (the number of workers, say): the batches are the same at any.
        """
        now, then = _flat(self.model_dump(mode="json")), _flat(started_with)
        keys = [key for key in {**now, **then} if key.partition(".")[0] not in _MAY_CHANGE]
        differing = [key for key in keys if now.get(key) != then.get(key)]
        if differing:
            before = ", ".join(f"{key}={then.get(key)!r}" for key in differing)
            after = ", ".join(f"{key}={now.get(key)!r}" for key in differing)
            raise ConfigError(
                f"{where} was started with {before}, now it is {after}; "
                "go on with the old values, give the run another name (--run), or delete the folder"
            )


def _set(values: dict[str, Any], keys: list[str], value: Any, pair: str) -> None:
    key, *rest = keys
    if not rest:
        if key == "kind" and values.get("kind") != value:
            values.clear()  # the fields of another kind mean nothing here
        values[key] = value
        return
    if values.get(key) is None:
        values[key] = {}
    if not isinstance(values[key], dict):
        raise ConfigError(f"override {pair!r}: {key} has no fields of its own; write {key}=...")
    _set(values[key], rest, value, pair)


def _flat(values: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{before}{key}.") if isinstance(value, Mapping) else {f"{before}{key}": value}
    return flat
