"""`sluice jobs`: training as a Ray job on a cluster that runs already, submitted, followed and stopped."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cluster import jobs
from cluster.errors import ClusterError, ConfigError
from cluster.local import LocalCluster, list_clusters
from cluster.observe import metrics
from train_jobs import checkpoint, runs

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    state = tmp_path_factory.mktemp("state")
    with pytest.MonkeyPatch.context() as patched:
        # A job's `python` is that of the environment in which the cluster was started: here, this one.
        patched.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
        with LocalCluster("jobs", ha_proxy=False, num_cpus=3, state_dir=state) as started:
            yield started


def temp_dir_of(cluster: LocalCluster) -> Path:
    (record,) = list_clusters(cluster.state_dir)
    return Path(record.temp_dir)


def sluice(*arguments: str, expect: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "tune_spaces", *arguments], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == expect, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_a_run_is_submitted_followed_and_listed(cluster: LocalCluster, tmp_path: Path) -> None:
    address = cluster.dashboard_address
    dry = sluice("jobs", "submit", "cnn_digits", "--address", address, "--dry-run")
    assert f"would submit to {address}: sluice train cnn_digits --address auto" in dry
    said = sluice(
        "jobs", "submit", "cnn_digits", "--set", "epochs=2", "--run", "job", "--runs-dir", str(tmp_path), "--address",
        address, "--follow",
    )  # fmt: skip
    found = re.search(r"submitted (\S+);", said)
    assert found, said
    assert "trained job: test accuracy" in said, "what the job itself said"
    assert f"{found[1]}: SUCCEEDED" in said
    assert len(runs.load("job", tmp_path).history) == 2
    listed = json.loads(sluice("jobs", "list", "--address", address, "--json"))
    assert [(each["job_id"], each["status"]) for each in listed] == [(found[1], "SUCCEEDED")]
    assert "trained job" in sluice("jobs", "logs", found[1], "--address", address)


def test_a_stopped_run_keeps_a_checkpoint_and_shows_its_gauges_meanwhile(cluster: LocalCluster, tmp_path: Path) -> None:
    address = cluster.dashboard_address
    arguments = ["train", "cnn_digits", "--address", "auto", "--run", "long", "--runs-dir", str(tmp_path)]
    sets = ["--set", "epochs=500", "--set", "batch_size=4"]
    job_id = jobs.submit([*arguments, *sets], address=address)
    folder, end = tmp_path / "long" / "checkpoints", time.monotonic() + 120
    while not list(folder.glob("step-*/.metadata")):
        assert time.monotonic() < end, jobs.logs(job_id, address=address)
        time.sleep(0.3)
    exported = gauges(cluster)
    for metric in metrics.ALL:
        assert f"ray_{metric.name}{{" in exported, f"{metric.name} is not exported"
    assert re.search(r'ray_sluice_train_validation\{[^}]*metric="accuracy"', exported)

    said = sluice("jobs", "stop", job_id, "--address", address)
    assert f"{job_id}: STOPPED" in said
    state = checkpoint.load(folder)
    assert state is not None
    assert state["epoch"] < 500
    assert not (tmp_path / "long" / "run.json").exists()


def gauges(cluster: LocalCluster) -> str:
    """What Prometheus would read from the node's agent, once our gauges are among it."""
    found = list(temp_dir_of(cluster).rglob("prom_metrics_service_discovery.json"))
    end, text = time.monotonic() + 60, ""
    while time.monotonic() < end:
        for target in {t for path in found for each in json.loads(path.read_text()) for t in each["targets"]}:
            # A target is listed before its agent listens.
            with suppress(OSError), urllib.request.urlopen(f"http://{target}/metrics", timeout=10) as answer:
                text += answer.read().decode()
        if "sluice_train_validation" in text:
            return text
        found = list(temp_dir_of(cluster).rglob("prom_metrics_service_discovery.json"))
        time.sleep(1.0)
    return text


def test_mistakes_are_one_clear_line(cluster: LocalCluster) -> None:
    assert "epoch=3" in sluice("jobs", "submit", "cnn_digits", "--set", "epoch=3", expect=2)
    nobody = "http://127.0.0.1:9"
    assert f"no Ray dashboard answers at {nobody}" in sluice("jobs", "list", "--address", nobody, expect=2)
    with pytest.raises(ConfigError, match=r"knows no job 'never'; `sluice jobs list`"):
        jobs.logs("never", address=cluster.dashboard_address)
    with pytest.raises(ClusterError, match="no Ray dashboard answers"):
        jobs.submit(["train", "cnn_digits"], address=nobody)
    assert os.environ.get("RAY_ADDRESS") is None
