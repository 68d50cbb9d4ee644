"""Twice as many requests as can be served, of three classes: the high one keeps its deadlines, the low one is served
less accurately before it is refused and never starves, and nothing grows.

Open loop, from a core of its own; all servers share the other. A request is of 64 pictures, so that the model is the
work and the generator can hold twice the rate. Outside the ordinary tests: `make soak` runs it (SOAK_S seconds, 600
unless told) and writes docs/results/DATE-overload.md.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from cluster.load import LoadResult, Target, build_request, poisson, run_closed_loop, run_open_loop
from cluster.local import LocalCluster
from serve_apps.oip.codec import encode_request
from tests.chaos.conftest import Pair
from tests.conftest import deploy, marked, plan_of

SOAK_S = float(os.environ.get("SOAK_S", "600"))
pytestmark = [
    pytest.mark.soak, pytest.mark.timeout(SOAK_S + 400),
    pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="the client needs a core of its own"),
]  # fmt: skip

PICTURES = 64
DEADLINE_S = 0.05
"""As the client sees it."""
TIMEOUT_S = 0.045
"""What it tells the server: the answer needs time for its way."""
SHARES = {"high": 5, "normal": 7, "low": 8}
"""Of 20 arrivals; `priority` is the place, from 1."""
CONNECTIONS = 256
CLIENT_CORE = (os.cpu_count() or 2) - 1
WARM_UP_S = 20.0
KINDS = ("fast", "fast", "fast", "refusal")
"""What is looked for in a request's answer, in turn: who answered it, or when a refused one may come again."""


def mixed(pair: Pair, port: int, *, patient: bool = False) -> tuple[Target, list[tuple[str, str]]]:
    """Requests in the order of arrival, over and over, and of each its class and its kind. Patient ones: without a
    deadline."""
    order = [name for name, share in SHARES.items() for _ in range(share)]
    order = [order[7 * k % len(order)] for k in range(len(order))]  # spread evenly: 7 and 20 have no common divisor
    what = [(name, kind) for kind in KINDS for name in order]
    requests = []
    for index, (name, _) in enumerate(what):
        pictures = np.take(pair.pictures, range(index, index + PICTURES), axis=0)
        wishes = {"priority": list(SHARES).index(name) + 1} | ({} if patient else {"timeout": int(TIMEOUT_S * 1e6)})
        body, headers = encode_request({"image": pictures}, binary=True, binary_output=True, parameters=wishes)
        requests.append(build_request("POST", "/v2/models/classifier/infer", "x", headers, body))
    signs = {"fast": f"sluice-variant: {pair.fast.name}\r\n".encode(), "refusal": b"retry-after: "}
    return Target("127.0.0.1", port, requests, [signs[kind] for _, kind in what]), what


class Sizes(threading.Thread):
    """(resident MiB, open descriptors) of some processes, every so often."""

    def __init__(self, processes: list[psutil.Process], every_s: float) -> None:
        super().__init__(daemon=True)
        self._processes, self._every_s = processes, every_s
        self._done = threading.Event()
        self.seen: list[tuple[float, int]] = []

    def run(self) -> None:
        while not self._done.wait(self._every_s):
            self.seen.append(
                (sum(p.memory_info().rss for p in self._processes) / 2**20, sum(p.num_fds() for p in self._processes))
            )

    def stop(self) -> None:
        self._done.set()
        self.join()


def per_second(scheduled_s: NDArray[np.float64], seconds: int) -> NDArray[np.intp]:
    return np.bincount(scheduled_s.astype(int), minlength=seconds)[:seconds]


def figures(result: LoadResult, what: list[tuple[str, str]], name: str) -> dict[str, Any]:
    """Of one class."""
    index = np.arange(result.count) % len(what)
    mine = np.array([each == name for each, _ in what])[index]
    fast = np.array([kind == "fast" for _, kind in what])[index] & mine
    answered = result.outcome == 200
    refused = mine & ~answered
    in_time = mine & answered & (result.latency_s <= DEADLINE_S)
    told = mine & ~fast & (result.outcome == 503)  # 408: its time ran out while it waited
    seconds = int(result.duration_s)
    degraded = fast & answered & result.correct
    answered_at = np.sort((result.scheduled_s + result.latency_s)[mine & answered])
    return {
        "arrived": int(mine.sum()),
        "answered": round(float(answered[mine].mean()), 4),
        "in_time": round(float(in_time.sum() / mine.sum()), 5),
        "late_of_answered": round(float(1 - in_time.sum() / max(1, (mine & answered).sum())), 5),
        "by_the_fast": round(float(degraded.sum() / max(1, (fast & answered).sum())), 4),
        "503_with_retry_after": round(float(result.correct[told].mean()), 4) if told.any() else None,
        "seconds_below_99": int((per_second(result.scheduled_s[in_time], seconds)
                                 < 0.99 * per_second(result.scheduled_s[mine], seconds)).sum()),
        "fewest_answers_in_a_second": int(per_second(result.scheduled_s[mine & answered], seconds).min()),
        "longest_pause_s": round(float(np.diff(answered_at, prepend=0.0, append=result.duration_s).max()), 2),
        "answer_p50_ms": quantile_ms(result.latency_s[mine & answered], 0.5),
        "answer_p99_ms": quantile_ms(result.latency_s[mine & answered], 0.99),
        "refusal_p99_ms": quantile_ms(result.latency_s[refused], 0.99),
        "outcomes": outcomes(result.outcome[mine]),
    }  # fmt: skip


def quantile_ms(seconds: NDArray[np.float64], q: float) -> float | None:
    return round(float(np.quantile(seconds, q)) * 1e3, 1) if seconds.size else None


def outcomes(codes: NDArray[np.int16]) -> dict[str, int]:
    values, counts = np.unique(codes, return_counts=True)
    return {str(value): int(count) for value, count in zip(values, counts, strict=True)}


def test_overload(pair: Pair, tmp_path: Path, record: Callable[..., Any]) -> None:
    servers = [core for core in range(os.cpu_count() or 2) if core != CLIENT_CORE][:1]
    with LocalCluster("overload", state_dir=tmp_path, cpus=servers) as cluster:
        deploy(cluster, plan_of(pair.store, pair.accurate, also=(pair.fast.id,), max_batch_size=PICTURES))
        target, what = mixed(pair, cluster.http_port)

        def loaded(rate: float, seconds: float, seed: int) -> LoadResult:
            return run_open_loop(
                target, poisson(rate, seconds, seed=seed), duration_s=seconds, connections=CONNECTIONS,
                cpus=[CLIENT_CORE],
            )  # fmt: skip

        patient, _ = mixed(pair, cluster.http_port, patient=True)
        run_closed_loop(patient, duration_s=5.0, connections=32, cpus=[CLIENT_CORE])  # steps down, learns
        closed = run_closed_loop(patient, duration_s=10.0, connections=32, cpus=[CLIENT_CORE])
        capacity = float((closed.outcome == 200).sum() / closed.duration_s)
        loaded(0.8 * capacity, 5.0, seed=4)
        between = loaded(0.8 * capacity, 15.0, seed=1)  # more than the accurate one can do
        loaded(2 * capacity, WARM_UP_S, seed=2)
        everyone = marked(cluster.cluster_id)
        mine = [p for p in everyone if p.name() == "haproxy" or "ServeReplica" in " ".join(p.cmdline())]
        sizes = Sizes(mine, every_s=max(1.0, SOAK_S / 120))
        sizes.start()
        result = loaded(2 * capacity, SOAK_S, seed=3)
        sizes.stop()
    memory = [mib for mib, _ in sizes.seen]
    third = max(1, len(memory) // 10)
    before_mib, after_mib = float(np.median(memory[:third])), float(np.median(memory[-third:]))
    descriptors = [count for _, count in sizes.seen]
    tables = {}
    for load, run in (("0.8x", between), ("2x", result)):
        for name in SHARES:
            row = tables[load, name] = figures(run, what, name)
            facts = {"load": load, "rate_rps": round(run.offered_rps), "seconds": run.duration_s, "class": name}
            record("overload", **facts, **row)
    record(
        "overload",
        load="2x",
        rate_rps=round(result.offered_rps),
        seconds=SOAK_S,
        **{"class": "all"},
        arrived=result.count,
        capacity_rps=round(capacity, 1),
        client_lag_p99_ms=round(result.send_lag_p99_s * 1e3, 2),
        client_cpu=round(result.client_cpu_share, 2),
        memory_mib=f"{before_mib:.1f} -> {after_mib:.1f} (most {max(memory):.1f})",
        descriptors=f"{descriptors[0]} -> {descriptors[-1]} (most {max(descriptors)})",
        outcomes=outcomes(result.outcome),
    )
    assert result.send_lag_p99_s < 0.01, "the generator did not keep its times: its figures say nothing"
    assert set(outcomes(result.outcome)) <= {"200", "503", "408"}, "a request had no end"
    assert tables["2x", "high"]["in_time"] >= 0.99
    low = tables["2x", "low"]
    assert low["longest_pause_s"] < 2.0, "the floor is one a second"
    assert low["by_the_fast"] > 0.99
    assert low["503_with_retry_after"] == 1.0
    between_low = tables["0.8x", "low"]
    assert between_low["by_the_fast"] > 0.3
    assert between_low["answered"] > 0.9
    assert after_mib <= 1.03 * before_mib
    assert max(descriptors) - min(descriptors) <= CONNECTIONS
    assert descriptors[-1] <= descriptors[0] + 20
