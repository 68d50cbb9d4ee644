"""`sluice demo` as a user runs it: a report that holds together, and nothing left however it ends."""

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

import psutil
import pytest
import yaml

from tests.conftest import marked

pytestmark = [pytest.mark.ray, pytest.mark.timeout(700)]

RUN = "demo-under-test"


@contextmanager
def demo(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """`sluice demo` on the embedded digits, with a state folder and a store of its own."""
    environment = os.environ | {
        "SLUICE_STATE": str(folder / "clusters"),
        "SLUICE_STORE": str(folder / "store"),
        "SLUICE_RUNS": str(folder / "training"),
        "PYTHONUNBUFFERED": "1",
        "COLUMNS": "200",
    }
    command = [
        sys.executable, "-m", "cluster.cli", "demo", "--recipe", "cnn_digits", "--protocol", "smoke", "--run", RUN,
        "--trials", "2", "--bound-ms", "500", "--output", str(folder / "runs"), *arguments,
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


def read_until(process: subprocess.Popen[str], words: str) -> list[str]:
    """The lines up to the first one with `words`."""
    lines: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(line)
        if words in line:
            return lines
    pytest.fail(f"{words!r} never came:\n{''.join(lines)}")


def temporary_folders(folder: Path) -> list[Path]:
    """Of the clusters that run now."""
    return [Path(json.loads(path.read_text())["temp_dir"]) for path in (folder / "clusters").glob("*.json")]


def assert_nothing_left(folder: Path, session: int, temporary: list[Path]) -> None:
    """No process of ours, none of the demo's session, no folder of a cluster, no state."""
    end = time.monotonic() + 40
    while left := [*marked(state_dir=folder / "clusters"), *in_session(session)]:
        assert time.monotonic() < end, f"still there: {[(p.pid, p.cmdline()[:4]) for p in left]}"
        time.sleep(0.2)
    while there := [path for path in temporary if path.exists()]:
        assert time.monotonic() < end, f"still there: {there}"
        time.sleep(0.2)
    assert list((folder / "clusters").glob("*.json")) == []


def in_session(session: int) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shared by the tests of this module: what one has trained the next one resumes."""
    return tmp_path_factory.mktemp("demo")


def test_an_interrupt_in_training_leaves_nothing(folder: Path) -> None:
    with demo(folder) as process:
        read_until(process, "epoch ")
        temporary = temporary_folders(folder)
        assert temporary
        os.killpg(process.pid, signal.SIGINT)  # as a terminal's Ctrl-C: to the whole foreground group
        assert process.wait(timeout=60) == 130
        assert process.stdout is not None
        assert "interrupted" in process.stdout.read()
    assert_nothing_left(folder, process.pid, temporary)


def test_the_demo_resumes_and_its_report_holds_together(folder: Path) -> None:
    with demo(folder) as process:
        lines = read_until(process, "Serve config")
        assert process.wait(timeout=60) == 0
    text = "".join(lines)
    for stage in ("train", "compress", "profile", "tune", "deploy", "check", "load"):
        assert f"start {stage}" in text
    out = folder / "runs" / RUN
    report = json.loads((out / "report.json").read_text())
    names = {v["name"].removeprefix("cnn_digits/") for v in report["variants"]}
    assert names == {"fp32-torch", "fp32", "int8", "bf16", "pruned", "pruned-int8"}
    assert all(a["total"] == 450 for v in report["variants"] for a in v["accuracies"])
    assert report["plan"]["variant_id"] in {v["id"] for v in report["variants"]}
    for side in ("before", "after"):
        figures = report["comparison"][side]
        assert figures["max_rate"] > 0
        assert figures["core_s_per_million"] > 0
        assert figures["latency_p99_s"] is None or figures["latency_p99_s"] >= figures["latency_p50_s"]
    markdown = (out / "report.md").read_text()
    assert "SLO rate" in markdown
    assert "CPU per million answers" in markdown
    assert "Content-Security-Policy" in (out / "report.html").read_text()
    config = yaml.safe_load((out / "serve-config.yaml").read_text())
    assert config["applications"][0]["args"]["variant"] == report["plan"]["variant_id"]
    service = yaml.safe_load((out / "ray-service.yaml").read_text())
    carried = yaml.safe_load(service["spec"]["serveConfigV2"])["applications"][0]
    assert carried["args"]["variant"] == report["plan"]["variant_id"]
    assert_nothing_left(folder, process.pid, [])


@pytest.mark.parametrize(
    ("stage", "number"),
    [
        ("start compress", signal.SIGKILL),
        ("start tune", signal.SIGKILL),
        ("before: at most", signal.SIGINT),
        # The other places take minutes more: `make chaos`.
        pytest.param("client alone", signal.SIGTERM, marks=pytest.mark.chaos),
        pytest.param("start deploy: the stock", signal.SIGINT, marks=pytest.mark.chaos),
        pytest.param("start deploy: the plan", signal.SIGKILL, marks=pytest.mark.chaos),
    ],
)
def test_whatever_ends_it_wherever_nothing_is_left(folder: Path, stage: str, number: signal.Signals) -> None:
    with demo(folder) as process:
        read_until(process, stage)
        time.sleep(0.3)  # well inside the stage
        temporary = temporary_folders(folder)
        process.send_signal(number)
        assert process.wait(timeout=60) != 0
    assert_nothing_left(folder, process.pid, temporary)
