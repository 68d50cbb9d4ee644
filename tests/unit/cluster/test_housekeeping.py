"""Who is made to stand behind, and who never."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from cluster.housekeeping import NICENESS, stand_behind


@contextmanager
def process(name: str) -> Iterator[int]:
    """A process of two threads whose command line begins with `name`."""
    code = (
        "import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start(); "
        "print('up', flush=True); time.sleep(60)"
    )
    started = subprocess.Popen([name, "-c", code], executable=sys.executable, stdout=subprocess.PIPE)
    assert started.stdout is not None
    assert started.stdout.readline() == b"up\n"
    try:
        yield started.pid
    finally:
        started.kill()
        started.wait()
        started.stdout.close()


def niceness(pid: int) -> set[int]:
    return {os.getpriority(os.PRIO_PROCESS, int(thread)) for thread in os.listdir(f"/proc/{pid}/task")}


@pytest.mark.parametrize("name", ["ray::ServeController", "ray-dashboard-ServeHead-0", "/x/ray/gcs/gcs_server"])
def test_housekeeping_is_lowered_with_all_its_threads_once(name: str) -> None:
    with process(name) as pid:
        assert stand_behind([pid]) == [pid]
        assert len(os.listdir(f"/proc/{pid}/task")) == 2
        assert niceness(pid) == {NICENESS}
        assert stand_behind([pid]) == [pid]
        assert niceness(pid) == {NICENESS}


@pytest.mark.parametrize("name", ["ray::ServeReplica:m:ModelDeployment", "haproxy", "/x/raylet/raylet", "python"])
def test_what_answers_keeps_its_priority(name: str) -> None:
    with process(name) as pid:
        before = niceness(pid)
        assert stand_behind([pid]) == []
        assert niceness(pid) == before


def test_who_is_gone_is_passed_over() -> None:
    with process("ray::ServeController") as pid:
        pass
    assert stand_behind([pid]) == []
