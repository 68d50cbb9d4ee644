"""`sluice tune` as a user runs it: killed in the middle it goes on, and what it writes holds together."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from cluster.plans import Plan
from tests.conftest import Trained, marked

pytestmark = [pytest.mark.ray, pytest.mark.timeout(700)]

STUDY = "study-under-test"


@contextmanager
def tune(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`sluice tune` at smoke length, with a state folder of its own."""
    environment = os.environ | {
        "SLUICE_STATE": str(folder / "clusters"), "SLUICE_STORE": str(folder / "store"), "PYTHONUNBUFFERED": "1",
        "COLUMNS": "250",
    }  # fmt: skip
    slo = folder / "slo.yaml"
    slo.write_text("latency_p99_ms: 500\n")  # what a busy machine keeps too
    command = [
        sys.executable, "-m", "cluster.cli", "tune", "--slo", str(slo), "--protocol", "smoke", "--finalists", "1",
        "--output", str(folder / "runs"), *arguments,
    ]  # fmt: skip
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


def trials_in(folder: Path) -> dict[str, dict[str, Any]]:
    return {p.name: json.loads(p.read_text()) for p in (folder / "runs" / STUDY / "study/trials").glob("[0-9]*.json")}


def wait_for_nothing_left(folder: Path) -> None:
    end = time.monotonic() + 40
    while left := marked(state_dir=folder / "clusters"):
        assert time.monotonic() < end, f"still there: {[(p.pid, p.cmdline()[:4]) for p in left]}"
        time.sleep(0.2)
    assert not list((folder / "clusters").glob("*.json"))


@pytest.fixture(scope="module")
def folder(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the trained variants are the store's."""
    made = tmp_path_factory.mktemp("tune")
    (made / "store").symlink_to(trained.store.root)
    return made


def test_a_killed_study_goes_on_and_measures_nothing_twice(folder: Path) -> None:
    arguments = ["cnn_digits", "--study", STUDY, "--trials", "5"]
    with tune(folder, *arguments) as process:
        end = time.monotonic() + 300
        while len(trials_in(folder)) < 3:
            assert process.poll() is None, process.stdout.read() if process.stdout else ""
            assert time.monotonic() < end
            time.sleep(0.1)
        time.sleep(0.5)  # well inside the next trial
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=30)
    wait_for_nothing_left(folder)
    before = trials_in(folder)
    assert 3 <= len(before) < 5

    with tune(folder, *arguments) as process:
        output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    wait_for_nothing_left(folder)
    after = trials_in(folder)
    assert {name: after[name] for name in before} == before
    searched = [trial["configuration"] for trial in after.values() if trial["origin"] != "confirm"]
    assert len(searched) == 5
    assert len({json.dumps(c, sort_keys=True) for c in searched}) == 5
    assert {trial["origin"] for trial in after.values()} >= {"baseline", "profiles", "optuna"}
    assert "best so far" in output
    assert "min left" in output


def test_what_a_study_writes_holds_together(folder: Path) -> None:
    out = folder / "runs" / STUDY
    plan = Plan.model_validate_json((out / "plan.json").read_text())
    config = yaml.safe_load((out / "serve-config.yaml").read_text())["applications"][0]
    assert config["args"]["variant"] == plan.variant_id
    assert config["args"]["runtime"] == plan.runtime.model_dump(mode="json")
    service = yaml.safe_load((out / "ray-service.yaml").read_text())
    assert yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"] == config["args"] | {
        "store": yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]["args"]["store"]
    }
    measured = {json.dumps(t["configuration"], sort_keys=True) for t in trials_in(folder).values() if t["figures"]}
    chosen = {name: value for name, value in plan.model_dump(mode="json").items() if name in (
        "variant_id", "variant_name", "runtime", "max_batch_size", "max_queued_requests", "num_replicas")}  # fmt: skip
    assert json.dumps(chosen, sort_keys=True) in measured
    report = json.loads((out / "report.json").read_text())
    assert report["plan"]["variant_id"] == plan.variant_id
    assert f"--study {STUDY}" in (out / "report.html").read_text()
    assert plan.variant_name in (out / "report.md").read_text()


def test_another_question_under_the_same_name_is_refused(folder: Path, tmp_path: Path) -> None:
    slo = tmp_path / "slo.yaml"
    slo.write_text("latency_p99_ms: 20\n")
    with tune(folder, "cnn_digits", "--study", STUDY, "--slo", str(slo)) as process:
        output, _ = process.communicate(timeout=200)
    assert process.returncode == 2
    assert "another question" in output
    assert "latency_p99_ms" in output


def test_a_study_is_reported_again_without_measuring(folder: Path) -> None:
    out = folder / "runs" / STUDY
    before = (out / "plan.json").read_text()
    (out / "report.html").unlink()
    (out / "plan.json").unlink()
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", "report", str(out), "--store", str(folder / "store")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").exists()
    assert json.loads((out / "plan.json").read_text()) == json.loads(before)


def test_the_plan_is_served_as_it_says(folder: Path, trained: Trained) -> None:
    plan = Plan.model_validate_json((folder / "runs" / STUDY / "plan.json").read_text())
    environment = os.environ | {"SLUICE_STATE": str(folder / "clusters"), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster.cli", "serve", "--plan", str(folder / "runs" / STUDY / "plan.json"),
         "--port", "18431"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        said = process.stdout.readline()
        assert "serving" in said, said + process.stdout.read()
        picture = trained.pictures[:1]
        body = {"inputs": [
            {"name": "image", "datatype": "UINT8", "shape": list(picture.shape), "data": picture.ravel().tolist()}
        ]}  # fmt: skip
        answer = httpx.post(f"http://127.0.0.1:18431/v2/models/{plan.model_name}/infer", json=body, timeout=10.0).json()
        assert answer["model_version"] == plan.variant_id
        assert np.argmax(answer["outputs"][0]["data"]) in range(10)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        process.stdout.close()
    wait_for_nothing_left(folder)
