"""TrainConfig: everything that a run depends on, validated once, where it enters."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import ConfigError


class TrainConfig(BaseModel):
    """A named run. The same config and seed give the same curve at the same number of workers."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: str
    family: Literal["cnn"] = "cnn"
    dataset: Literal["fashion-mnist", "mnist", "digits"] = "fashion-mnist"
    epochs: int = Field(default=10, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Pictures in one optimizer step, over all workers."""
    lr: float = Field(default=1e-3, gt=0)
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
    seed: int = 0
    num_workers: int = Field(default=2, ge=1)

    def with_overrides(self, pairs: Sequence[str]) -> TrainConfig:
        """This config with "key=value" strings applied. Raises ConfigError naming the key and what is allowed."""
        changes = {}
        for pair in pairs:
            key, equals, value = pair.partition("=")
            if not equals or key not in type(self).model_fields:
                raise ConfigError(f"override {pair!r} is no field=value; fields: {', '.join(type(self).model_fields)}")
            changes[key] = yaml.safe_load(value) if value else None
        try:
            return TrainConfig.model_validate(self.model_dump() | changes)
        except ValidationError as error:
            first = error.errors()[0]
            field = ".".join(map(str, first["loc"]))
            raise ConfigError(f"{field}={first['input']!r} is not allowed: {first['msg']}") from error
