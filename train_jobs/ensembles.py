"""Finished runs that differ by their seed -> one run whose model is their ensemble."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from train_jobs import runs
from train_jobs.config import TrainConfig
from train_jobs.loop import TrainResult
from train_jobs.models.ensemble import Ensemble
from train_jobs.runs import Run


def finish_ensemble(folder: Path, config: TrainConfig, members: list[Run]) -> None:
    """Average the members, judge the result on the test part, and write it as the run in `folder`."""
    dataset: Any = config.task.load(config.dataset)
    task = config.task.build(config, dataset, runs_dir=folder.parent)
    result = TrainResult(Ensemble([run.model for run in members]).eval(), task, members[0].history)
    with torch.inference_mode():
        result.findings = task.findings(result.model)
    runs.finish(folder, config, dataset.source, result)
