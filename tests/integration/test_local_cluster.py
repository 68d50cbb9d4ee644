"""A local cluster ends whole and alone: whatever ends its owner, nothing of it stays and nothing else goes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from cluster.errors import ClusterError, ConfigError
from cluster.local import ClusterRecord, LocalCluster, list_clusters, stop_cluster
from tests.conftest import Trained, deploy, listening, marked, plan_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

OWNER = """
import time
from cluster.local import LocalCluster
cluster = LocalCluster("owned", ha_proxy=False)
cluster.start()
print("up", flush=True)
time.sleep(600)
"""


@contextmanager
def owner_of(state_dir: Path) -> Iterator[tuple[subprocess.Popen[str], ClusterRecord]]:
    """A process that has started a cluster and sleeps, and what the state file says of that cluster."""
    command = [sys.executable, "-c", OWNER]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == "up\n"
            yield owner, list_clusters(state_dir)[0]
        finally:
            owner.kill()


def wait_until(true: Callable[[], bool], what: str, timeout_s: float = 40.0) -> None:
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, f"after {timeout_s:g} s still not: {what}"
        time.sleep(0.1)


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
                mark = goes.cluster_id
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
    with owner_of(state_dir) as (owner, record):
        assert len(marked(record.cluster_id)) > 3
        owner.send_signal(number)
        owner.wait(timeout=60)
        wait_until(lambda: not marked(record.cluster_id), "all processes gone")
        wait_until(lambda: not Path(record.temp_dir).exists(), "the temporary folder gone")
        assert list_clusters(state_dir) == []


def test_stop_cleans_up_after_a_supervisor_that_was_killed(state_dir: Path) -> None:
    with owner_of(state_dir) as (_, record):
        os.kill(record.supervisor_pid, signal.SIGKILL)
        wait_until(lambda: record.supervisor() is None, "the supervisor dead")
        assert [c.name for c in list_clusters(state_dir)] == ["owned"], "its leavings are still ours to stop"
        stop_cluster("owned", state_dir)
        assert not marked(record.cluster_id)
        assert not Path(record.temp_dir).exists()
        assert list_clusters(state_dir) == []


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
    with (
        LocalCluster("broken", ha_proxy=False, state_dir=state_dir) as cluster,
        pytest.raises(ClusterError, match="0000000000000000"),
    ):
        deploy(cluster, plan)
    assert not marked(cluster.cluster_id)
