"""What a model is trained for: data, losses and figures of each kind of work, one file each."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from train_jobs.tasks.adversarial import AdversarialConfig
from train_jobs.tasks.classify import ClassifyConfig
from train_jobs.tasks.distill import DistillConfig
from train_jobs.tasks.forecast import ForecastConfig
from train_jobs.tasks.multitask import MultiTaskConfig
from train_jobs.tasks.reconstruct import ReconstructConfig
from train_jobs.tasks.task import Batch, Findings, Metric, Part, Parts, Phase, Task

__all__ = [
    "CLASSIFIERS", "AdversarialConfig", "Batch", "ClassifyConfig", "DistillConfig", "Findings", "ForecastConfig",
    "Metric", "MultiTaskConfig", "Part", "Parts", "Phase", "ReconstructConfig", "Task", "TaskConfig",
]  # fmt: skip

CLASSIFIERS = frozenset({"classify", "distill"})
"""Kinds whose model is a score for each class, and is compressed as such."""
TaskConfig = Annotated[
    ClassifyConfig | AdversarialConfig | ReconstructConfig | MultiTaskConfig | DistillConfig | ForecastConfig,
    Field(discriminator="kind"),
]
"""Chosen by `kind`; a field of it is set with --set task.FIELD=..."""
