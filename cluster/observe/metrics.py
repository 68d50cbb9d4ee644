"""Every metric that Sluice exports: name, unit in the name, labels, and what it answers. Dashboards import them.

Ray's agents export them to Prometheus, with `ray_` before the name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Metric:
    """A gauge."""

    name: str
    labels: tuple[str, ...]
    description: str


TRAIN_EPOCH = Metric("sluice_train_epoch", ("run",), "Epoch that the run is in, counted from 1")
TRAIN_LOSS = Metric("sluice_train_loss", ("run",), "Mean training loss of the epoch so far")
TRAIN_RATE = Metric("sluice_train_samples_per_second", ("run",), "Samples trained on per second, over all workers")
TRAIN_TIME_LEFT = Metric("sluice_train_time_left_seconds", ("run",), "Estimated time to the end of the run")
TRAIN_METRIC = Metric("sluice_train_validation", ("run", "metric"), "A figure of the validation part")

ALL = (TRAIN_EPOCH, TRAIN_LOSS, TRAIN_RATE, TRAIN_TIME_LEFT, TRAIN_METRIC)


class Gauges:
    """Sets gauges from within a Ray worker; does nothing where no Ray runs, so that callers need not ask."""

    def __init__(self) -> None:
        self._made: dict[str, Any] = {}

    def set(self, metric: Metric, value: float, labels: Mapping[str, str]) -> None:
        """Raises ValueError unless the labels are the declared ones."""
        if set(labels) != set(metric.labels):
            raise ValueError(f"{metric.name} has the labels {metric.labels}, not {tuple(labels)}")
        import ray

        if not ray.is_initialized():
            return
        if metric.name not in self._made:
            from ray.util.metrics import Gauge

            self._made[metric.name] = Gauge(metric.name, metric.description, metric.labels)
        self._made[metric.name].set(value, dict(labels))
