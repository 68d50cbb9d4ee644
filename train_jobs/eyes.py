"""What others see of a run while it goes on: progress.json, curves, TensorBoard, Prometheus. Rank 0 alone shows it."""

from __future__ import annotations

import contextlib
import json
import platform
import subprocess
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster import hardware
from cluster.observe import metrics
from train_jobs.config import TrainConfig
from train_jobs.loop import Progress, TrainResult
from train_jobs.runs import CURVES, PROGRESS, write_json


class Eyes:
    """Hears of progress and shows it everywhere."""

    def __init__(self, folder: Path, *, leader: bool) -> None:
        self._folder, self._leader = folder, leader
        self._board: Any = None
        self._gauges = metrics.Gauges()

    def __enter__(self) -> Eyes:
        if self._leader:
            from tensorboardX import SummaryWriter

            self._board = SummaryWriter(str(self._folder / "tensorboard"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._board is not None:
            self._board.close()

    def progress(self, progress: Progress) -> None:
        """Called within epochs and at their ends."""
        if not self._leader:
            return
        row = asdict(progress)
        write_json(self._folder / PROGRESS, row)
        run = {"run": self._folder.name}
        for metric, value in (
            (metrics.TRAIN_EPOCH, progress.epoch), (metrics.TRAIN_LOSS, progress.loss),
            (metrics.TRAIN_RATE, progress.samples_per_s), (metrics.TRAIN_TIME_LEFT, progress.time_left_s),
        ):  # fmt: skip
            self._gauges.set(metric, value, run)
        for name, value in progress.metrics.items():
            self._gauges.set(metrics.TRAIN_METRIC, value, {**run, "metric": name})
        if not progress.metrics:
            return
        with (self._folder / CURVES).open("a") as curves:
            curves.write(json.dumps(row) + "\n")
        for name, value in {"loss": progress.loss, "samples_per_s": progress.samples_per_s, **progress.metrics}.items():
            self._board.add_scalar(name, value, progress.epoch)

    def findings(self, result: TrainResult) -> None:
        """The end: figures of the test part, and pictures."""
        found = result.findings
        if self._board is None or found is None:
            return
        epoch = len(result.history)
        for name, value in found.metrics.items():
            self._board.add_scalar(f"test/{name}", value, epoch)
        for name, pictures in found.pictures.items():
            self._board.add_images(name, pictures.cpu().numpy(), epoch)


def environment(config: TrainConfig) -> dict[str, Any]:
    """Where and with what a run was made."""
    import torch

    revision, changed = "", False
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        revision, changed = _git("rev-parse", "HEAD"), bool(_git("status", "--porcelain"))
    return {
        "git_revision": revision or None, "git_changed": changed, "python": platform.python_version(),
        "torch": torch.__version__, "machine": hardware.fingerprint(), "recipe": config.recipe,
        "repeat": f"sluice train {config.recipe} --run NAME with the values of config.json",
    }  # fmt: skip


def _git(*arguments: str) -> str:
    asked = ["git", "-C", str(Path(__file__).parent), *arguments]
    return subprocess.run(asked, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
