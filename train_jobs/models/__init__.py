"""Model families by name; one file each."""

from __future__ import annotations

from cluster.errors import ConfigError
from train_jobs.models.cnn import CNN

__all__ = ["CNN", "build_model"]


def build_model(family: str, *, dropout: float = 0.0) -> CNN:
    """A fresh model of `family`. Raises ConfigError for an unknown one."""
    if family != "cnn":
        raise ConfigError(f"family={family!r} is unknown; Sluice trains: cnn")
    return CNN(dropout=dropout)
