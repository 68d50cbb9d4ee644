"""Hours in minutes: steady load with clients that leave, malformed requests and timeouts; memory and descriptors flat.

Outside the ordinary tests: `make soak` runs it (SOAK_S seconds, 600 unless told) and writes docs/results/DATE-soak.md.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from cluster.load import Target, build_request, poisson, run_open_loop
from cluster.local import LocalCluster
from serve_apps.oip.codec import encode_request
from tests.conftest import Trained, deploy, marked, plan_of

SOAK_S = float(os.environ.get("SOAK_S", "600"))
pytestmark = [pytest.mark.soak, pytest.mark.timeout(SOAK_S + 300)]

RATE = 300.0
INFER = "/v2/models/classifier/infer"


class Nuisance(threading.Thread):
    """About twenty times a second: a client that leaves, a request that is malformed, one that has no time."""

    def __init__(self, port: int, request: bytes, hurried: bytes) -> None:
        super().__init__(daemon=True)
        self._port, self._kinds = port, [request, b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\n{", hurried]
        self.done = threading.Event()
        self.sent = 0

    def run(self) -> None:
        while not self.done.wait(0.05):
            with socket.create_connection(("127.0.0.1", self._port), timeout=10) as connection:
                kind = self._kinds[self.sent % len(self._kinds)]
                connection.sendall(kind)
                if kind is self._kinds[-1]:
                    connection.recv(65536)  # this one stays to hear that its time ran out
            self.sent += 1


def sizes(processes: list[psutil.Process]) -> tuple[float, int]:
    """(resident MiB, open descriptors) of all of them."""
    return sum(p.memory_info().rss for p in processes) / 2**20, sum(p.num_fds() for p in processes)


def test_soak(trained: Trained, tmp_path: Path, record: Callable[..., Any]) -> None:
    body, headers = encode_request({"image": trained.pictures[:1]}, binary=True, binary_output=True)
    request = build_request("POST", INFER, "x", headers, body)
    body, headers = encode_request({"image": trained.pictures[:1]}, binary=True, parameters={"timeout": 50})
    hurried = build_request("POST", INFER, "x", headers, body)
    with LocalCluster("soak", state_dir=tmp_path) as cluster:
        deploy(cluster, plan_of(trained.store, trained.int8))
        target = Target("127.0.0.1", cluster.http_port, [request], [b'"outputs"'])
        everyone = marked(cluster.cluster_id)
        mine = [p for p in everyone if p.name() == "haproxy" or "ServeReplica" in " ".join(p.cmdline())]
        run_open_loop(target, poisson(RATE, 30.0, seed=0), duration_s=30.0)  # pools and caches fill
        nuisance = Nuisance(cluster.http_port, request, hurried)
        nuisance.start()
        before_mib, before_fds = sizes(mine)
        result = run_open_loop(target, poisson(RATE, SOAK_S, seed=1), duration_s=SOAK_S)
        nuisance.done.set()
        nuisance.join()
        time.sleep(1.0)
        after_mib, after_fds = sizes(mine)
    record(
        "soak",
        seconds=SOAK_S,
        rate_rps=RATE,
        requests=result.count,
        outcomes=result.outcomes(),
        latency_p50_ms=round(result.latency_quantile_s(0.5) * 1e3, 2),
        latency_p99_ms=round(result.latency_quantile_s(0.99) * 1e3, 2),
        nuisances=nuisance.sent,
        memory_mib=f"{before_mib:.1f} -> {after_mib:.1f}",
        descriptors=f"{before_fds} -> {after_fds}",
    )
    assert set(result.outcomes()) <= {"200", "503"}
    assert result.ok.mean() > 0.999
    assert nuisance.sent > SOAK_S
    assert after_fds <= before_fds + 20
    assert after_mib <= before_mib + 64
