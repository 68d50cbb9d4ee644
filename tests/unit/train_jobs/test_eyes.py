"""What others see of a run: the last progress, a curve, TensorBoard's files, and where and with what it was made."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import torch

from train_jobs import runs
from train_jobs.eyes import Eyes, environment
from train_jobs.loop import Progress, TrainResult
from train_jobs.recipes import cnn_digits
from train_jobs.tasks import Findings

WITHIN = Progress(epoch=1, epochs=2, samples_per_s=50.0, loss=1.5, metrics={}, time_left_s=9.0)
END = Progress(epoch=1, epochs=2, samples_per_s=60.0, loss=1.25, metrics={"accuracy": 0.5}, time_left_s=8.0)


def event_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (folder / "tensorboard").glob("events.*"))


def test_the_leader_shows_progress_and_findings(tmp_path: Path, trained: TrainResult) -> None:
    pictures = {"samples": torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)}
    result = TrainResult(trained.model, trained.task, findings=Findings({"accuracy": 0.75}, pictures=pictures))
    with Eyes(tmp_path, leader=True) as eyes:
        eyes.progress(WITHIN)
        assert json.loads((tmp_path / "progress.json").read_text())["loss"] == 1.5
        assert not (tmp_path / "curves.jsonl").exists(), "an epoch is not over"
        eyes.progress(END)
        eyes.findings(result)
    assert [json.loads(line)["metrics"] for line in (tmp_path / "curves.jsonl").read_text().splitlines()] == [
        {"accuracy": 0.5}
    ]
    events = event_bytes(tmp_path)
    for tag in (b"accuracy", b"loss", b"samples_per_s", b"test/accuracy", b"samples"):
        assert tag in events


def test_the_other_workers_show_nothing(tmp_path: Path) -> None:
    with Eyes(tmp_path, leader=False) as eyes:
        eyes.progress(END)
    assert not list(tmp_path.iterdir())


def test_the_environment_says_what_it_takes_to_repeat_a_run() -> None:
    told = environment(cnn_digits())
    assert told["torch"] == torch.__version__
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True,
                          check=False).stdout.strip()  # fmt: skip
    assert told["git_revision"] == (head or None)
    assert "sluice train cnn_digits" in told["repeat"]
    json.dumps(told)


def test_pictures_are_drawn_in_rows(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "deep" / "grid.png"
    runs.draw(torch.full((12, 1, 8, 8), 255, dtype=torch.uint8), path, columns=6)
    with Image.open(path) as picture:
        assert picture.size == (6 * 9 + 1, 2 * 9 + 1)
        assert picture.getpixel((4, 4)) == (255, 255, 255)
