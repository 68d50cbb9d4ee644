"""A local cluster ends whole and alone: whatever ends its owner, nothing of it stays and nothing else goes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from cluster.errors import ClusterError, ConfigError
from cluster.local import LocalCluster, list_clusters, stop_cluster
from tests.conftest import Trained, deploy, listening, marked, plan_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

OWNER = """
import json, sys, time
from cluster.local import LocalCluster
cluster = LocalCluster("owned", ha_proxy=False)
cluster.start()
print(json.dumps([cluster.http_port, cluster.temp_dir]), flush=True)
time.sleep(600)
"""


def start_owner() -> subprocess.Popen[str]:
    """A process that starts a cluster, prints its port and folder, and sleeps."""
    return subprocess.Popen(
        [sys.executable, "-c", OWNER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = 40.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"after {timeout_s:g} s still not: {what}"
        time.sleep(0.1)


def own_mark(state_dir: Path) -> str:
    return json.loads(next(state_dir.glob("*.json")).read_text())["cluster_id"]


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5.0).status_code == 200
    except httpx.HTTPError:
        return False


def test_stop_ends_exactly_what_was_started(trained: Trained, state_dir: Path) -> None:
    """Two clusters with a HAProxy each, and a bystander: stopping one leaves the other and the bystander alone."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        with LocalCluster("stays", state_dir=state_dir) as stays:
            deploy(stays, plan_of(trained.store, trained.int8))
            with LocalCluster("goes", state_dir=state_dir) as goes:
                deploy(goes, plan_of(trained.store, trained.fp32))
                assert [c.name for c in list_clusters(state_dir)] == ["goes", "stays"]
                with pytest.raises(ConfigError, match="'stays' runs already"):
                    LocalCluster("stays", state_dir=state_dir).start()
                mark = next(c.cluster_id for c in list_clusters(state_dir) if c.name == "goes")
                # HAProxy takes over from itself when it reads a new configuration: look until the new one is there.
                wait_until(lambda: goes.http_port in listening({p.pid for p in marked(mark)}), "its port open")
                assert any("haproxy" in p.name() for p in marked(mark)), "a HAProxy of its own"
                ports = listening({p.pid for p in marked(mark)})
                assert answers(goes.http_port)
                assert goes.cpu_seconds() > 0
            assert not marked(mark)
            assert not Path(goes.temp_dir).exists()
            for port in ports:
                with socket.socket() as probe:
                    assert probe.connect_ex(("127.0.0.1", port)) != 0, f"port {port} still answers"
            assert answers(stays.http_port), "the other cluster serves on"
            assert [c.name for c in list_clusters(state_dir)] == ["stays"]
        assert not answers(stays.http_port)
        assert list_clusters(state_dir) == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_the_cluster_ends_with_its_owner(number: signal.Signals, state_dir: Path) -> None:
    owner = start_owner()
    try:
        assert owner.stdout is not None
        _, temp_dir = json.loads(owner.stdout.readline())
        mark = own_mark(state_dir)
        assert len(marked(mark)) > 3
        owner.send_signal(number)
        owner.wait(timeout=60)
        wait_until(lambda: not marked(mark), "all processes gone")
        wait_until(lambda: not Path(temp_dir).exists(), "the temporary folder gone")
        assert list_clusters(state_dir) == []
    finally:
        owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()


def test_stop_cleans_up_after_a_supervisor_that_was_killed(state_dir: Path) -> None:
    owner = start_owner()
    try:
        assert owner.stdout is not None
        owner.stdout.readline()
        mark = own_mark(state_dir)
        record = list_clusters(state_dir)[0]
        os.kill(record.supervisor_pid, signal.SIGKILL)
        wait_until(lambda: record.supervisor() is None, "the supervisor dead")
        assert [c.name for c in list_clusters(state_dir)] == ["owned"], "its leavings are still ours to stop"
        stop_cluster("owned", state_dir)
        assert not marked(mark)
        assert not Path(record.temp_dir).exists()
        assert list_clusters(state_dir) == []
    finally:
        owner.kill()
        owner.wait()
        assert owner.stdout is not None
        owner.stdout.close()


def test_a_taken_port_is_refused_before_anything_starts(state_dir: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=str(port)):
            LocalCluster("x", http_port=port, state_dir=state_dir).start()
    assert list_clusters(state_dir) == []


@pytest.mark.parametrize("name", ["", "a/b", "../up", "-x", "a b"])
def test_a_name_that_is_no_file_name_is_refused(name: str, state_dir: Path) -> None:
    with pytest.raises(ConfigError, match="name="):
        LocalCluster(name, state_dir=state_dir)


def test_what_is_not_there_is_not_stopped(state_dir: Path) -> None:
    with pytest.raises(ClusterError, match="no-such"):
        stop_cluster("no-such", state_dir)


def test_a_config_that_fails_says_why_and_leaves_a_clean_machine(trained: Trained, state_dir: Path) -> None:
    plan = plan_of(trained.store, trained.int8, variant_id="0" * 16)
    with LocalCluster("broken", ha_proxy=False, state_dir=state_dir) as cluster:
        mark = own_mark(state_dir)
        with pytest.raises(ClusterError, match="0000000000000000"):
            deploy(cluster, plan)
    assert not marked(mark)
