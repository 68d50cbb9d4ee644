"""TrainConfig -> trained model, on a local Ray cluster that lives as long as the run does."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from cluster.local import LocalCluster
from tune_spaces.connection import connected

if TYPE_CHECKING:
    from train_jobs.config import TrainConfig
    from train_jobs.loop import Progress, TrainResult

Say = Callable[[str], None]


def default_runs_dir() -> Path:
    """$SLUICE_RUNS or ~/.local/share/sluice/runs."""
    return Path(os.environ.get("SLUICE_RUNS", Path.home() / ".local/share/sluice/runs"))


def progress_line(progress: Progress) -> str:
    """epoch 2/7, loss 0.431, 4,420 samples/s, 31 s left"""
    return (
        f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.3f}, {progress.samples_per_s:,.0f} samples/s, "
        f"{progress.time_left_s:.0f} s left"
    )


def fit_on_local_cluster(
    config: TrainConfig, *, run_name: str, storage_path: Path, say: Say, notice: Say
) -> TrainResult:
    """`train_jobs.job.fit` on a cluster of its own; `say` hears of progress, `notice` of a run that is done already.

    Raises as `job.fit` and `LocalCluster` do.
    """
    from train_jobs import job

    if (storage_path / run_name / "run.json").exists():  # nothing to start for what is finished
        return job.fit(config, run_name=run_name, storage_path=storage_path, notify=notice)
    with (
        LocalCluster(f"{run_name}-train", ha_proxy=False, num_cpus=config.num_workers + 1) as cluster,
        connected(cluster.address),
    ):
        return job.fit(
            config, run_name=run_name, storage_path=storage_path, on_progress=lambda p: say(progress_line(p)),
            notify=notice,
        )  # fmt: skip


def terminated(signum: int, frame: object) -> None:
    """A signal handler: `kill` ends a long command as Ctrl-C does, with its clean-up."""
    raise KeyboardInterrupt
