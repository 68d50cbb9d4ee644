"""A rolling update and a scale-down under load: every request is answered, and rightly, whichever port it came by.

Old replicas go on for a while after they were told to stop (Serve's 30 s; 5 here), so that proxies and clients have
time to turn to others. The load goes on until all of them are gone.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import psutil
import pytest

from cluster.artifacts import ArtifactStore
from cluster.load import LoadResult, Target, build_request, poisson, run_open_loop
from cluster.local import LocalCluster, free_ports
from cluster.plans import Plan
from serve_apps.oip.codec import encode_request
from tests.conftest import deploy, marked, plan_of
from tests.poison import poisonous_variant

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

INFER = "/v2/models/classifier/infer"
RATE = 150.0
"""On each of the two ports."""
DRAINING_S = 5
LOAD_S = 45.0
"""Two starts of a replica, one after the other, and the draining of the last: half of it on two free cores."""


@pytest.fixture(scope="module")
def rolled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(
        "rolled", state_dir=tmp_path_factory.mktemp("state"),
        environment={"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": str(DRAINING_S)},
    ) as cluster:  # fmt: skip
        yield cluster


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    """Two replicas of a model whose answer tells the picture exactly, in whatever batch it was."""
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    return plan_of(
        store, poisonous_variant(store), num_replicas=2, num_cpus_per_replica=0.5, direct_port=free_ports(1)[0]
    )


class Load(threading.Thread):
    """64 different pictures over and over on one port, each with the one answer that is right."""

    def __init__(self, port: int, *, seed: int) -> None:
        super().__init__(daemon=True)
        self._port, self._seed = port, seed
        self._result: LoadResult | None = None

    def run(self) -> None:
        requests, expect = [], []
        for index in range(64):
            body, headers = encode_request(
                {"image": np.full((1, 1, 28, 28), index, np.uint8)}, binary=True, binary_output=True
            )
            requests.append(build_request("POST", INFER, "x", headers, body))
            expect.append(np.full((1, 10), index, np.float32).tobytes())
        target = Target("127.0.0.1", self._port, requests, expect)
        self._result = run_open_loop(
            target, poisson(RATE, LOAD_S, seed=self._seed), duration_s=LOAD_S, connections=32, timeout_s=15.0
        )

    def result(self) -> LoadResult:
        self.join()
        assert self._result is not None, "the load failed; its traceback is above"
        return self._result


def replicas(cluster: LocalCluster) -> set[psutil.Process]:
    return {p for p in marked(cluster.cluster_id) if "ServeReplica" in " ".join(p.cmdline())}


def changed_under_load(cluster: LocalCluster, plan: Plan, gone: int) -> tuple[set[psutil.Process], list[LoadResult]]:
    """Deploy this under load on both ports, until so many of the replicas have ended: what runs then, the figures."""
    before = replicas(cluster)
    assert plan.direct_port is not None
    loads = [Load(cluster.http_port, seed=1), Load(plan.direct_port, seed=2)]
    began = time.monotonic()
    for load in loads:
        load.start()
    time.sleep(4.0)  # it takes a second or two to start
    deploy(cluster, plan)
    while len(left := {process for process in before if process.is_running()}) > len(before) - gone:
        assert loads[0].is_alive(), f"{len(left)} of {len(before)} replicas run still after {LOAD_S:g} s of load"
        time.sleep(0.1)
    took_s = time.monotonic() - began
    assert took_s < LOAD_S, f"the last replica ended after {took_s:.1f} s: the load may have ended before"
    return replicas(cluster), [load.result() for load in loads]


def two_replicas(cluster: LocalCluster, plan: Plan) -> set[psutil.Process]:
    """Deploy this, and wait until what ran before has ended."""
    deploy(cluster, plan)
    while len(found := replicas(cluster)) != 2:
        time.sleep(0.1)
    return found


def assert_none_failed(results: list[LoadResult]) -> None:
    for where, result in zip(("Serve's port", "the direct port"), results, strict=True):
        failed = result.scheduled_s[~result.ok]
        assert failed.size == 0, f"{where}: {result.outcomes()}, at {np.round(failed[:20], 2)} s"
        assert result.count > 0.9 * RATE * LOAD_S


def test_a_rolling_update_fails_no_request(rolled: LocalCluster, plan: Plan) -> None:
    before = two_replicas(rolled, plan)
    after, results = changed_under_load(rolled, plan.model_copy(update={"executors": 2}), gone=2)
    assert len(after) == 2
    assert before.isdisjoint(after)
    assert_none_failed(results)


def test_a_scale_down_fails_no_request(rolled: LocalCluster, plan: Plan) -> None:
    plan = plan.model_copy(update={"executors": 2})  # as the test above leaves it
    before = two_replicas(rolled, plan)
    after, results = changed_under_load(rolled, plan.model_copy(update={"num_replicas": 1}), gone=1)
    assert len(after) == 1
    assert after < before
    assert_none_failed(results)
