"""The table of variables is one that Ray Serve reads: asked of Ray itself, in a process started with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from cluster.control.serve_env import LATENCY_BUCKETS_MS, RAY_ENVIRONMENT, throughput_environment
from cluster.local import serve_environment

ASK = """
import json
from ray.serve._private import constants as c
print(json.dumps({
    "ha_proxy": c.RAY_SERVE_ENABLE_HA_PROXY, "optimized": c.RAY_SERVE_THROUGHPUT_OPTIMIZED,
    "direct": c.RAY_SERVE_ENABLE_DIRECT_INGRESS, "threads": c.RAY_SERVE_HAPROXY_NBTHREAD,
    "buckets": c.REQUEST_LATENCY_BUCKETS_MS,
}))
"""


def what_serve_reads(environment: dict[str, str]) -> dict[str, Any]:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", ASK], env=clean | environment, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def test_serve_takes_the_fast_path() -> None:
    assert what_serve_reads(throughput_environment(haproxy_threads=3)) == {
        "ha_proxy": True,
        "optimized": True,
        "direct": True,
        "threads": 3,
        "buckets": list(LATENCY_BUCKETS_MS),
    }


def test_without_it_serve_does_not() -> None:
    found = what_serve_reads(RAY_ENVIRONMENT)
    assert (found["ha_proxy"], found["optimized"]) == (False, False)
    assert found["buckets"] != list(LATENCY_BUCKETS_MS)


@pytest.mark.parametrize("bound_ms", [20, 25, 35, 50, 75])
def test_there_is_a_bucket_edge_near_every_bound_that_people_set(bound_ms: float) -> None:
    assert sorted(set(LATENCY_BUCKETS_MS)) == list(LATENCY_BUCKETS_MS)
    assert min(abs(edge - bound_ms) / bound_ms for edge in LATENCY_BUCKETS_MS) <= 0.2


def test_a_local_cluster_runs_with_the_same_values_as_kubernetes() -> None:
    local = serve_environment(ha_proxy=True, temp_dir="/tmp/x", ports=list(range(20001, 20021)))
    assert throughput_environment().items() <= local.items()
    assert serve_environment(ha_proxy=False, temp_dir="/tmp/x", ports=[]) == RAY_ENVIRONMENT
