"""TrainConfig: everything that a run depends on, validated once, where it enters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from cluster.errors import ConfigError


class TrainConfig(BaseModel):
    """A named run. The same config and seed give the same curve; without dropout, at any number of workers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    recipe: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$")
    """Names the variants: "<recipe>/int8"."""
    family: Literal["cnn"] = "cnn"
    dataset: Literal["fashion-mnist", "mnist", "digits"] = "fashion-mnist"
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Pictures in one optimizer step, over all workers."""
    lr: float = Field(default=1e-3, gt=0)
    """The learning rate; with `one_cycle` its highest."""
    weight_decay: float = Field(default=0.0, ge=0)
    optimizer: Literal["adam", "adamw", "sgd"] = "adam"
    schedule: Literal["constant", "one_cycle"] = "constant"
    dropout: float = Field(default=0.0, ge=0, lt=1)
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    flip: bool = False
    """Mirror half of the pictures left to right: right for clothes, wrong for digits."""
    patience: int | None = Field(default=None, ge=1)
    """Stop after this many epochs without a better validation accuracy; None: never early."""
    validation: float = Field(default=0.05, gt=0, lt=0.5)
    """Share of the training pictures kept for validation; the test set is never seen in training."""
    seed: int = Field(default=0, ge=0)
    num_workers: int = Field(default=2, ge=1)

    @model_validator(mode="after")
    def _one_picture_each(self) -> TrainConfig:
        if self.batch_size < self.num_workers:
            raise ValueError(f"batch_size={self.batch_size} leaves some of num_workers={self.num_workers} without work")
        return self

    def with_overrides(self, pairs: Sequence[str]) -> TrainConfig:
        """This config with "key=value" strings applied. Raises ConfigError naming the key and what is allowed."""
        changes: dict[str, Any] = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals or key not in type(self).model_fields:
                raise ConfigError(f"override {pair!r} is no field=value; fields: {', '.join(type(self).model_fields)}")
            try:
                changes[key] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ConfigError(f"override {pair!r} has no readable value; write it as in YAML: lr=0.01") from error
        try:
            return TrainConfig.model_validate(self.model_dump() | changes)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            given = f"{field}={first['input']!r} is not allowed: " if field else ""
            raise ConfigError(f"{given}{first['msg']}; see --set") from error

    def require_same_run(self, started_with: dict[str, Any], *, where: str) -> None:
        """Raise ConfigError, naming the fields, unless a run that was `started_with` this can go on with this config.

        Only the number of workers may change: the batches are the same at any.
        """
        now = self.model_dump(mode="json")
        differing = [key for key in now if key != "num_workers" and now[key] != started_with.get(key)]
        if differing:
            then = ", ".join(f"{key}={started_with.get(key)!r}" for key in differing)
            new = ", ".join(f"{key}={now[key]!r}" for key in differing)
            raise ConfigError(
                f"{where} was started with {then}, now it is {new}; "
                "go on with the old values, give the run another name (--run), or delete the folder"
            )
