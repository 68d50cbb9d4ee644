"""A run as the tests of distributed training compare it; apart, so that each process imports little."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from train_jobs import loop
from train_jobs.config import TrainConfig


def curve(
    config: TrainConfig, dataset: Any, *, resume: dict[str, Any] | None = None, runs_dir: Path | None = None
) -> dict[str, Any]:
    """The losses, the metrics, the weights, and the state after each epoch and within them."""
    states: list[dict[str, Any]] = []
    result = loop.train(
        config, dataset, resume=resume, runs_dir=runs_dir, on_state=lambda _, state: states.append(frozen(state))
    )
    return {
        "loss": [row.loss for row in result.history],
        "metrics": [row.metrics for row in result.history],
        "time_left_s": result.history[-1].time_left_s,
        "traffic": (result.traffic.sent_bytes, result.traffic.uncompressed_bytes),
        "weights": result.model.state_dict(),
        "states": states,
    }


def apart(one: dict[str, Any], others: list[dict[str, Any]]) -> str:
    """The largest differences of losses and weights, for the record: `pytest --junitxml` keeps them."""
    losses = max(abs(a - b) for other in others for a, b in zip(one["loss"], other["loss"], strict=True))
    weights = max(float((other["weights"][k] - w).abs().max()) for other in others for k, w in one["weights"].items())
    return f"loss {losses:.1e}, weights {weights:.1e}"


def frozen(value: Any) -> Any:
    """A copy of a state, whose tensors are the living ones."""
    if isinstance(value, torch.Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {key: frozen(item) for key, item in value.items()}
    return [frozen(item) for item in value] if isinstance(value, list) else value
