from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace

import pytest
import uvloop

import cluster.load
from cluster.errors import ClientSaturated
from cluster.load import build_request, null_server, self_check
from cluster.load.timer import LoopTimer, Timer, TimerFd, make_timer


def test_a_modest_rate_is_answered_in_full() -> None:
    check = self_check(200.0, 0.5, lag_limit_s=1.0)
    assert check.ok
    assert check.require() is check
    assert check.achieved == pytest.approx(200.0, rel=0.5)
    assert check.client_cpu_s > 0


def test_a_lagging_client_fails_its_check() -> None:
    check = self_check(200.0, 0.3, lag_limit_s=0.0)
    assert not check.ok
    with pytest.raises(ClientSaturated, match="null server"):
        replace(check, rate=200.0).require()


def test_the_null_server_takes_requests_in_pieces_and_stops() -> None:
    request = build_request("POST", "/", "h", {}, b"x" * 784)
    with null_server() as address, socket.create_connection(address, timeout=10) as connection:
        connection.sendall(request[:100])
        time.sleep(0.01)
        connection.sendall(request[100:] + request)
        answers = b""
        while answers.count(b'{"outputs"') < 2:
            part = connection.recv(4096)
            assert part
            answers += part
    with pytest.raises(OSError):  # noqa: PT011 - refused or reset, as the system likes
        socket.create_connection(address, timeout=1)


@pytest.mark.parametrize("kind", [make_timer, LoopTimer])
def test_timers_call_once_and_never_early(kind: type[LoopTimer]) -> None:
    async def scenario() -> list[float]:
        calls: list[float] = []
        woken = asyncio.Event()
        timer: Timer

        def wake() -> None:
            calls.append(time.monotonic())
            if isinstance(timer, TimerFd):
                timer.arm(time.monotonic() + 3600)  # an unread descriptor stays ready until it is armed again
            woken.set()

        timer = kind(asyncio.get_running_loop(), wake)
        due = time.monotonic() + 0.03
        timer.arm(due)
        await asyncio.wait_for(woken.wait(), 10)
        assert calls[0] >= due - 0.002
        woken.clear()
        timer.arm(time.monotonic() - 1)  # already due
        await asyncio.wait_for(woken.wait(), 10)
        timer.arm(time.monotonic() + 0.01)
        timer.close()
        await asyncio.sleep(0.05)
        return calls

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert len(runner.run(scenario())) == 2


def test_the_public_names_are_there_and_sorted() -> None:
    names = cluster.load.__all__
    assert all(hasattr(cluster.load, name) for name in names)
    assert len(set(names)) == len(names)
    assert {"run_open_loop", "find_slo_rate", "self_check", "LoadResult", "build_request"} <= set(names)
