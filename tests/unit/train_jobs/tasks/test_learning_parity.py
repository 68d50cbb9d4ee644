"""Multi-task, distillation and a network with groups: one curve at any number of workers, and across a restart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.unit.train_jobs import gloo
from tests.unit.train_jobs.curves import apart
from tests.unit.train_jobs.tasks import learning_scenarios as scenarios
from train_jobs import runs
from train_jobs.datasets import LabelledDataset
from train_jobs.loop import train


@pytest.fixture(scope="module")
def runs_dir(few_digits: LabelledDataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a teacher in it."""
    folder = tmp_path_factory.mktemp("runs")
    (folder / "teacher").mkdir()
    runs.finish(folder / "teacher", scenarios.TEACHER, "digits", train(scenarios.TEACHER, few_digits))
    return folder


@pytest.fixture(scope="module")
def alone(few_digits: LabelledDataset, runs_dir: Path) -> dict[str, dict[str, Any]]:
    return scenarios.all_curves(few_digits, runs_dir)


@pytest.fixture(scope="module")
def groups(few_digits: LabelledDataset, runs_dir: Path) -> dict[int, list[dict[str, dict[str, Any]]]]:
    return gloo.run(scenarios.all_curves, few_digits, runs_dir, world_sizes=(2, 4), timeout_s=240.0)


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float) -> None:
    assert other["loss"] == pytest.approx(one["loss"], abs=tolerance)
    assert other["metrics"] == one["metrics"]
    for name, tensor in one["weights"].items():
        torch.testing.assert_close(other["weights"][name], tensor, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", list(scenarios.CONFIGS))
def test_several_workers_follow_the_curve_of_one(
    alone: dict[str, Any], groups: dict[int, list[dict[str, Any]]], name: str, size: int,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    record_property("apart", apart(alone[name], [rank[name] for rank in groups[size]]))
    for rank in groups[size]:
        assert_same(alone[name], rank[name], 1e-5)


@pytest.mark.parametrize(("name", "own"), [("multitask", {"log_variances"}),
                                           ("distill", {"projection.weight", "projection.bias"})])  # fmt: skip
def test_a_run_goes_on_with_what_its_loss_had_learned(
    alone: dict[str, Any], few_digits: LabelledDataset, runs_dir: Path, name: str, own: set[str]
) -> None:
    state = alone[name]["states"][0]
    assert set(state["phases"]["train"]["extra"]) == own
    resumed = scenarios.curve(scenarios.CONFIGS[name], few_digits, runs_dir, resume=state)
    assert_same(alone[name], resumed, 1e-9)
    forgotten = {**state, "phases": {"train": {**state["phases"]["train"], "extra": {}}}}
    other = scenarios.curve(scenarios.CONFIGS[name], few_digits, runs_dir, resume=forgotten)
    assert other["loss"][-1] != pytest.approx(alone[name]["loss"][-1], abs=1e-9)
