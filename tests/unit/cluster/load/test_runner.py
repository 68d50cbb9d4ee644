from __future__ import annotations

import math
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import psutil
import pytest

from cluster.errors import ConfigError, SluiceError
from cluster.load import (
    LoadResult,
    Target,
    build_request,
    constant,
    null_server,
    poisson,
    run_closed_loop,
    run_open_loop,
)
from cluster.load import runner as runner_module
from tests.unit.cluster.load.conftest import TargetOf


def short_run(
    target: Target,
    *,
    timeout_s: float = 2.0,
    processes: int = 1,
    connections: int = 64,
    cpus: Sequence[int] | None = None,
) -> LoadResult:
    """20 requests over 0.4 s."""
    return run_open_loop(
        target,
        constant(50.0, 0.4),
        duration_s=0.4,
        timeout_s=timeout_s,
        processes=processes,
        connections=connections,
        cpus=cpus,
    )


def test_every_arrival_is_sent_once_and_answered(target_of: TargetOf) -> None:
    arrivals = poisson(200.0, 0.5, seed=1)
    result = run_open_loop(target_of("/ok"), arrivals, duration_s=0.5)
    assert result.outcomes() == {"200": len(arrivals)}
    assert np.array_equal(result.scheduled_s, arrivals)
    assert np.all(result.wake_lag_s >= 0)
    assert np.all(result.send_lag_s >= result.wake_lag_s)
    assert np.all(result.latency_s > result.send_lag_s)
    assert result.offered_rps == len(arrivals) / 0.5
    assert result.client_cpu_s > 0


@pytest.mark.parametrize("path", ["/pieces", "/chunked", "/close", "/until-close"])
def test_odd_but_correct_answers_count(target_of: TargetOf, path: str) -> None:
    result = short_run(target_of(path, expect=[b"hello"]))
    assert result.outcomes() == {"200": 20}


@pytest.mark.parametrize(
    ("path", "outcome"), [("/503", "503"), ("/missing", "404"), ("/cut", "reset"), ("/garbage", "bad response")]
)
def test_failures_are_named_and_infinitely_late(target_of: TargetOf, path: str, outcome: str) -> None:
    result = short_run(target_of(path))
    assert result.outcomes() == {outcome: 20}
    assert result.latency_quantile_s(0.5) == math.inf
    assert result.goodput_rps() == 0
    assert result.slo_attainment(10.0) == 0


def test_one_failing_path_leaves_the_others_alone(target_of: TargetOf) -> None:
    result = short_run(target_of("/ok", "/cut", "/503", "/ok"))
    assert result.outcomes() == {"503": 5, "200": 10, "reset": 5}
    assert result.outcome[:4].tolist() == [200, -2, 503, 200]


def test_a_hanging_server_times_out(target_of: TargetOf) -> None:
    result = short_run(target_of("/hang"), timeout_s=0.3, connections=4)
    assert result.outcomes() == {"timeout": 20}
    assert np.all(result.latency_s >= 0.3)
    assert np.nanmax(result.send_lag_s) > 0.1  # only 4 could be sent at a time


def test_nothing_listening_is_a_connect_failure() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        target = Target("127.0.0.1", unused.getsockname()[1], [build_request("GET", "/", "127.0.0.1")])
        assert short_run(target).outcomes() == {"connect failed": 20}


def test_a_wrong_answer_is_a_failure(target_of: TargetOf) -> None:
    result = short_run(target_of("/ok", "/ok", expect=[b"hello", b"goodbye"]))
    assert result.outcomes() == {"200": 10, "wrong answer": 10}
    assert result.ok.tolist() == [True, False] * 10


def test_latency_counts_from_the_schedule_when_connections_run_out(target_of: TargetOf) -> None:
    """Ten requests at once, one connection, 0.1 s each: a closed-loop client would report 0.1 s for all of them."""
    result = run_open_loop(target_of("/slow"), np.zeros(10), duration_s=0.1, connections=1)
    assert result.outcomes() == {"200": 10}
    assert np.all(np.sort(result.latency_s) >= 0.1 * np.arange(1, 11) - 0.01)
    assert result.queued_share >= 0.9
    # and the wait is not mistaken for the client's own lag
    assert np.max(result.wake_lag_s) < np.max(result.send_lag_s)


def test_a_backlog_aborts_the_run(target_of: TargetOf) -> None:
    result = run_open_loop(
        target_of("/slow"), constant(200.0, 5.0), duration_s=5.0, connections=2, timeout_s=1.0, abort_backlog=20
    )
    assert result.aborted
    assert result.outcomes()["unsent"] > 800
    assert result.count == 1000


@pytest.mark.parametrize("processes", [2, 3])
def test_splitting_over_processes_keeps_each_request_its_payload(target_of: TargetOf, processes: int) -> None:
    arrivals = poisson(100.0, 0.5, seed=2)
    result = run_open_loop(target_of("/ok", "/503"), arrivals, duration_s=0.5, processes=processes)
    assert np.array_equal(result.scheduled_s, arrivals)
    assert result.outcome.tolist() == [200 if k % 2 == 0 else 503 for k in range(len(arrivals))]


def test_pinned_workers_run(target_of: TargetOf) -> None:
    assert short_run(target_of("/ok"), cpus=[0]).outcomes() == {"200": 20}


def test_the_closed_loop_keeps_asking() -> None:
    with null_server() as (host, port):
        target = Target(host, port, [build_request("POST", "/", host, {}, b"x" * 784)], [b"data"])
        result = run_closed_loop(target, duration_s=0.4, connections=8, processes=2)
    assert set(result.outcomes()) == {"200"}
    assert result.count > 80
    assert np.all(result.latency_s > 0)


def test_the_closed_loop_survives_a_dead_server(target_of: TargetOf) -> None:
    result = run_closed_loop(target_of("/cut"), duration_s=0.2, connections=2)
    assert set(result.outcomes()) == {"reset"}


def test_workers_die_with_an_interrupt(target_of: TargetOf, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[int] = []
    popen = subprocess.Popen

    class Spy(popen):  # type: ignore[valid-type,misc]
        def __init__(self, *args: object, **options: object) -> None:
            super().__init__(*args, **options)
            started.append(self.pid)

    def interrupt(self: object, deadline: float) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Spy)
    monkeypatch.setattr(runner_module._Worker, "read_line", interrupt)
    with pytest.raises(KeyboardInterrupt):
        short_run(target_of("/ok"), processes=2)
    assert len(started) == 2
    assert not any(psutil.pid_exists(pid) for pid in started)


def test_a_dying_worker_says_why(target_of: TargetOf, monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(path: Path, *_: object) -> None:
        path.write_bytes(b"not a zip file")

    monkeypatch.setattr(runner_module, "write_inputs", forget)
    with pytest.raises(SluiceError, match=r"(?s)worker died.*Error"):
        short_run(target_of("/ok"))


@pytest.mark.parametrize("arrivals", [[], [1.0, 0.5], [-1.0], [math.nan]])
def test_bad_arrivals_are_refused(target_of: TargetOf, arrivals: list[float]) -> None:
    with pytest.raises(ConfigError, match="arrivals"):
        run_open_loop(target_of("/ok"), np.array(arrivals))


def test_bad_targets_and_counts_are_refused(target_of: TargetOf) -> None:
    with pytest.raises(ConfigError, match="expect has 1"):
        target_of("/ok", "/ok", expect=[b"x"])
    with pytest.raises(ConfigError, match="nothing to send"):
        target_of()
    with pytest.raises(ConfigError, match="connection"):
        run_open_loop(target_of("/ok"), np.zeros(1), processes=2, connections=1)
