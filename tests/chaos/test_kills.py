"""kill -9 of every kind of process under load: how many requests fail, and how long until it serves again.

Outside the ordinary tests: `make chaos` runs it and writes docs/results/DATE-chaos.md.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from cluster.load import Target, build_request, poisson, run_open_loop
from cluster.local import LocalCluster
from serve_apps.oip.codec import encode_request
from tests.conftest import Trained, deploy, marked, plan_of

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(300)]

RATE = 100.0
DURATION_S = 60.0
KILL_AT_S = 10.0


def is_replica(process: psutil.Process) -> bool:
    return "ServeReplica" in " ".join(process.cmdline())


def is_haproxy(process: psutil.Process) -> bool:
    return process.name() == "haproxy"


def is_controller(process: psutil.Process) -> bool:
    return "ServeController" in " ".join(process.cmdline())


def is_proxy_manager(process: psutil.Process) -> bool:
    return "ProxyActor" in " ".join(process.cmdline()) or "HAProxyManager" in " ".join(process.cmdline())


@pytest.mark.parametrize(
    ("what", "find", "num_replicas"),
    [
        ("the only replica", is_replica, 1),
        ("one of two replicas", is_replica, 2),
        ("HAProxy", is_haproxy, 1),
        ("HAProxy's manager", is_proxy_manager, 1),
        ("the Serve controller", is_controller, 1),
    ],
)
def test_kill_9_under_load(
    what: str,
    find: Callable[[psutil.Process], bool],
    num_replicas: int,
    trained: Trained,
    tmp_path: Path,
    record: Callable[..., Any],
) -> None:
    with LocalCluster("chaos", state_dir=tmp_path) as cluster:
        deploy(cluster, plan_of(trained.store, trained.int8, num_replicas=num_replicas, num_cpus_per_replica=0.5))
        killed: list[psutil.Process] = []

        def kill() -> None:  # looked up now: a HAProxy that reloaded its configuration is another process
            killed.extend([p for p in marked(cluster.cluster_id) if find(p)][-1:])
            killed[0].kill()

        body, headers = encode_request({"image": trained.pictures[:1]}, binary=True, binary_output=True)
        request = build_request("POST", "/v2/models/classifier/infer", "x", headers, body)
        target = Target("127.0.0.1", cluster.http_port, [request], [b'"outputs"'])
        threading.Timer(KILL_AT_S, kill).start()  # about a second earlier in the schedule: the load starts up meanwhile
        result = run_open_loop(target, poisson(RATE, DURATION_S, seed=1), duration_s=DURATION_S, timeout_s=10.0)
        assert killed, f"no process was {what}"
    failed = result.scheduled_s[~result.ok]
    answered_at = np.sort((result.scheduled_s + result.latency_s)[result.ok])
    late = result.scheduled_s > DURATION_S - 10.0
    record(
        "chaos",
        killed=what,
        replicas=num_replicas,
        rate_rps=RATE,
        requests=result.count,
        failed=int(failed.size),
        failed_share=f"{failed.size / result.count:.2%}",
        longest_time_without_an_answer_s=round(float(np.diff(answered_at).max()), 2),
        latency_p99_ok_ms=round(result.latency_ok_quantile_s(0.99) * 1e3, 1),
        outcomes=result.outcomes(),
        serves_again=bool(np.all(result.ok[late])),
    )
    assert np.all(result.ok[late]), f"{what}: it does not serve again: {result.outcomes()}"
