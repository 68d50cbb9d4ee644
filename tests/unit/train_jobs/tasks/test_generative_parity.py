"""GAN and autoencoders: the same curve at any number of workers, and after an end in the midst of an epoch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.unit.train_jobs import gloo
from tests.unit.train_jobs.curves import apart
from tests.unit.train_jobs.tasks import generative_scenarios as scenarios
from train_jobs.datasets import LabelledDataset


@pytest.fixture(scope="module")
def alone(few_digits: LabelledDataset) -> dict[str, dict[str, Any]]:
    return scenarios.all_curves(few_digits)


@pytest.fixture(scope="module")
def groups(few_digits: LabelledDataset) -> dict[int, list[dict[str, dict[str, Any]]]]:
    return gloo.run(scenarios.all_curves, few_digits, world_sizes=(2, 4), timeout_s=240.0)


def assert_same(one: dict[str, Any], other: dict[str, Any], tolerance: float = 1e-5) -> None:
    assert other["loss"] == pytest.approx(one["loss"], abs=tolerance)
    for mine, its in zip(one["metrics"], other["metrics"], strict=True):
        assert its == pytest.approx(mine, abs=tolerance)
    assert one["weights"].keys() == other["weights"].keys()
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
        assert_same(alone[name], rank[name])


@pytest.mark.parametrize("name", ["denoising", "tied", "vae"])
def test_it_learns_something_so_that_the_curves_are_no_flat_lines(alone: dict[str, Any], name: str) -> None:
    first, last = alone[name]["loss"]
    assert last < 0.97 * first


def test_the_distance_falls(alone: dict[str, Any]) -> None:
    first, last = (row["frechet"] for row in alone["gan"]["metrics"])
    assert last < first
    assert set(alone["gan"]["metrics"][0]) == {"frechet", "discriminator_loss", "generator_loss"}


@pytest.mark.parametrize("name", ["gan", "denoising", "vae"])
def test_a_run_goes_on_in_the_midst_of_an_epoch(
    alone: dict[str, Any], few_digits: LabelledDataset, name: str
) -> None:
    config = scenarios.CONFIGS[name].model_copy(update={"checkpoint_steps": 5})
    states = scenarios.curve(config, few_digits)["states"]
    state = states[1]
    assert (state["epoch"], state["step"]) == (0, 10)
    config = config.model_copy(update={"checkpoint_steps": None})
    state["config"]["checkpoint_steps"] = None
    resumed = scenarios.curve(config, few_digits, resume=state)
    assert_same(alone[name], resumed, 1e-9)


def test_nothing_is_checkpointed_twice(alone: dict[str, Any]) -> None:
    for name in ("gan", "tied", "vae"):
        for phase in alone[name]["states"][0]["phases"].values():
            assert not phase["extra"], "the task's model holds all of it"
