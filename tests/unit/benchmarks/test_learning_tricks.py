"""The benchmark of the learning tricks, on next to nothing: every trick is there, and nothing is trained twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import learning_tricks
from benchmarks.learning_tricks import QUICK, Budget, arms, gains, main
from cluster.errors import ConfigError
from train_jobs.config import TrainConfig


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learning")
    main(["--quick", "--output", str(folder), "--runs-dir", str(folder / "runs")])
    return folder


def test_it_writes_a_row_for_every_run_and_a_line_for_every_trick(output: Path) -> None:
    rows = json.loads((output / "learning.json").read_text())["rows"]
    assert set(rows) == {f"{arm.name}-{seed}" for arm in arms(QUICK) for seed in QUICK.seeds}
    text = (output / "learning.md").read_text()
    for trick in ("ensemble of 3 seeds", "3 snapshots", "SWA", "multi-task: rotation", "distillation: logits |",
                  "logits and features", "from the ensemble", "frozen", "fine-tuned", "thawed"):  # fmt: skip
        assert trick in text, trick


def test_gains_are_paired_by_seed(output: Path) -> None:
    rows = json.loads((output / "learning.json").read_text())["rows"]
    for gain in gains(QUICK, rows):
        for seed, points in zip(QUICK.seeds, gain["points"], strict=True):
            before = rows[f"{gain['against']}-{seed}"]["metrics"]["accuracy"]
            after = rows[f"{gain['arm']}-{seed}"]["metrics"]["accuracy"]
            assert points == pytest.approx(100 * (after - before))


def test_what_is_there_is_not_trained_again(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = output / "learning.json"
    there = json.loads(path.read_text())
    del there["rows"]["student-10"]
    path.write_text(json.dumps(there))
    trained: list[str] = []
    true_train = learning_tricks.train_one

    def noted(config: TrainConfig, name: str, runs_dir: Path) -> learning_tricks.Row:
        trained.append(name)
        return true_train(config, name, runs_dir)

    monkeypatch.setattr(learning_tricks, "train_one", noted)
    main(["--quick", "--output", str(output), "--runs-dir", str(output / "runs")])
    assert trained == ["student-10"]


def test_rows_of_another_budget_are_refused(output: Path) -> None:
    with pytest.raises(ConfigError, match=r"learning\.json has rows of another budget; give another --output"):
        learning_tricks.measure(Budget(data="digits", other="digits"), output, output / "runs")


def test_a_trick_has_as_many_steps_as_what_it_is_held_against() -> None:
    by_name = {arm.name: arm for arm in arms(QUICK)}
    for arm in by_name.values():
        if arm.against is not None:
            config, plain = arm.config(0), by_name[arm.against].config(0)
            assert config.epochs * config.members == plain.epochs
            same = ("dataset", "batch_size", "labels_per_class", "validation", "optimizer", "lr", "schedule", "seed")
            assert all(getattr(config, field) == getattr(plain, field) for field in same)
            assert config.model == plain.model
