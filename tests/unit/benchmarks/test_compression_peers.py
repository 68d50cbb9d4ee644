"""The contest against peers, where nothing is run: who is best, what is told, and that copies are still copies."""

from __future__ import annotations

import inspect
import json
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.compression_peers import judged
from benchmarks.peers import contest, environments, measure
from benchmarks.peers.contest import Row
from cluster.variants import Accuracy, Difference
from train_jobs.models.cnn import CNN
from tune_spaces import profiler


def row(tool: str, name: str, rates: list[float], *, size: int = 100, verdict: str = "holds", **more: Any) -> Row:
    rounds = {str(n): {"throughput_rps": rate, "latency_s": 1e-4, "best_batch": 64} for n, rate in enumerate(rates)}
    return {
        "tool": tool, "name": name, "does": "", "runtime": "onnxruntime", "seconds": 3.0, "at_s": 5.0, "value": 0.9,
        "size_bytes": size * 1024, "verdict": verdict, "to_root": {"value": -0.001, "interval": [-0.003, 0.001]},
        "rounds": rounds, **more,
    }  # fmt: skip


ROWS = [
    row("sluice", "int8", [100.0, 110.0, 90.0], size=105),
    row("sluice", "pruned", [200.0], size=45, verdict="fails"),
    row("sluice", "qat", [50.0], size=45),
    row("nncf", "quick", [80.0, 100.0, 60.0], size=140),
    row("nncf", "slow", [20.0], size=140),
    row("nncf", "slower", [10.0], size=130),
    row("olive", "untimed", [], size=1),
]


def test_best_is_the_fastest_and_the_smallest_whose_floor_holds() -> None:
    assert [contest.fastest(ROWS, tool)["name"] for tool in ("sluice", "nncf")] == ["int8", "quick"]  # type: ignore[index]
    assert [contest.smallest(ROWS, tool)["name"] for tool in ("sluice", "nncf")] == ["qat", "slower"]  # type: ignore[index]
    assert contest.fastest(ROWS, "olive") is None
    assert contest.smallest(ROWS, "torchao") is None


def test_of_equal_sizes_the_faster_is_the_smallest() -> None:
    rows = [row("nncf", "slow", [10.0]), row("nncf", "quick", [20.0])]
    small = contest.smallest(rows, "nncf")
    assert small is not None
    assert small["name"] == "quick"


def test_who_may_be_best_is_measured_again() -> None:
    names = [r["name"] for r in contest.contenders(ROWS, ["sluice", "nncf", "olive"])]
    assert names == ["int8", "qat", "quick", "slow", "slower"]


def test_a_ratio_pairs_the_rounds_that_both_were_in() -> None:
    assert contest.ratio(ROWS[0], ROWS[3], "throughput_rps") == pytest.approx(1.25)  # of 1.25, 1.1 and 1.5
    assert contest.ratio(ROWS[0], ROWS[4], "throughput_rps") == pytest.approx(5.0)
    assert contest.ratio(ROWS[0], ROWS[6], "throughput_rps") is None


def test_the_summary_has_a_line_for_each_tool() -> None:
    lines = contest.summary(ROWS, {"sluice": {}, "nncf": {}, "olive": {}})
    assert lines[2].startswith("| sluice | int8 | onnxruntime | 100 (100, 110, 90) |  | 0.100 | 105 | -0.10 [-0.30, ")
    assert "| 80 (80, 100, 60) | 1.25x |" in lines[3]
    assert lines[3].endswith("| slower | 130 | 2.89x |")
    assert lines[4].startswith("| olive | none |")
    assert len({line.count("|") for line in lines if line}) == 1


def test_everything_has_a_line_for_each_row() -> None:
    lines = contest.everything(ROWS)
    assert len(lines) == len(ROWS) + 3
    assert len({line.count("|") for line in lines if line}) == 1


def test_what_did_not_work_is_told_in_its_own_words() -> None:
    tools = {
        "olive": {"error": "does not install: no wheel", "ways": []},
        "nncf": {"ways": [{"name": "qat", "does": "trains", "error": "RuntimeError: no"}, {"name": "fine"}]},
    }
    assert contest.failures(tools) == ["- olive: does not install: no wheel", "- nncf, qat (trains): RuntimeError: no"]
    assert contest.failures({}) == ["- nothing"]


def test_a_variants_runtimes_keep_their_speeds_apart(tmp_path: Path) -> None:
    apart = Difference(other_id="root", value=0.0, interval=(0.0, 0.0), bounds=(0.0, 0.0))
    accuracies = [
        Accuracy(value=0.9, total=10, interval=(0.8, 1.0), dataset="d", runtime=name, to_root=apart)
        for name in ("onnxruntime", "openvino")
    ]
    stored = SimpleNamespace(id="v", size_bytes=1, accuracies=accuracies)
    model: Any = SimpleNamespace(store=SimpleNamespace(get=lambda _: stored))
    way = {"name": "int8", "does": "", "seconds": 1.0, "at_s": 1.0, "variant": "v"}
    first, second = judged("sluice", way, tmp_path, model, Namespace())
    first["rounds"]["0"] = {"throughput_rps": 1.0}
    assert second["rounds"] == {}


def test_peers_are_pinned() -> None:
    for peer in ("olive", "nncf", "torchao"):
        assert all("==" in line for line in environments.requirements(peer))


def test_peers_are_timed_by_the_profilers_own_protocol() -> None:
    for name in ("time_batches", "median_interval"):
        assert inspect.getsource(getattr(measure, name)) == inspect.getsource(getattr(profiler, name))
    for name in ("_SECONDS_PER_BATCH_SIZE", "_NARROW"):
        assert getattr(measure, name) == getattr(profiler, name)


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """given.py as a peer imports it."""
    monkeypatch.syspath_prepend(str(environments.HERE))
    import given

    yield given
    for name in ("given", "cnn"):
        sys.modules.pop(name, None)


def test_the_peers_cnn_is_the_trained_one(given: Any, tmp_path: Path) -> None:
    import cnn  # type: ignore[import-not-found]

    model = CNN().eval()
    model.preprocess.normalise(0.3, 0.35)
    weights: dict[str, Any] = {name: value.numpy() for name, value in model.state_dict().items()}
    np.savez(tmp_path / "weights.npz", **weights)
    x = torch.randint(0, 256, (4, 1, 28, 28), dtype=torch.uint8)
    with torch.no_grad():
        assert torch.equal(cnn.trained(tmp_path / "weights.npz")(x), model(x))


def test_a_way_that_fails_leaves_its_words_and_the_others(
    given: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.savez(tmp_path / "data.npz", x_train=np.zeros(1), y_train=np.zeros(1), x_validation=np.zeros(1),
             y_validation=np.zeros(1))  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["peer", str(tmp_path), str(tmp_path / "out"), "0", "1e12"])

    def broken(_: Any, folder: Path) -> Path:
        """breaks"""
        raise RuntimeError(f"no such thing in {sys.prefix}\nat all")

    def fine(_: Any, folder: Path) -> Path:
        """works"""
        return folder / "model.onnx"

    given.try_all({"broken": broken, "fine": fine})
    first, second = json.loads((tmp_path / "out" / "made.json").read_text())
    assert first["error"] == "RuntimeError: no such thing in VENV at all"
    assert (second["file"], second["does"]) == ("fine/model.onnx", "works")
