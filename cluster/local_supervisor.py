"""One process per local cluster: starts Ray, inherits every orphan, and ends them all when it is told or left alone.

`ray stop` would end every Ray on the host and leave HAProxy behind. This process is a child subreaper, so whatever
Ray or Serve start and abandon becomes its child; ending "all my descendants" is then exact. It holds a pipe to whoever
asked for the cluster: end of file there (also after kill -9) means clean up. Run by cluster/local.py, not by hand.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_GRACE_S = 4.0


def _prctl(option: int, value: int) -> None:
    with contextlib.suppress(OSError, AttributeError):  # Linux only
        ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)


def become_subreaper() -> None:
    """Linux: orphans below this process are handed to it and not to init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def die_with_parent() -> None:
    """Linux: this process ends when the one that started it does, also by kill -9."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def reap() -> None:
    """Collect the exit codes of dead children, adopted ones included."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def lives(process: psutil.Process) -> bool:
    """False also for one that goes while we look."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def end_processes(find: Callable[[], list[psutil.Process]], *, grace_s: float = _GRACE_S) -> None:
    """SIGTERM, then SIGKILL, everything that `find()` returns, until nothing of it lives."""
    deadline = time.monotonic() + grace_s
    told: set[int] = set()
    while True:
        alive = [process for process in find() if lives(process)]
        if not alive:
            return
        late = time.monotonic() > deadline
        for process in alive:
            with contextlib.suppress(psutil.NoSuchProcess):
                if late:
                    process.kill()
                elif process.pid not in told:
                    told.add(process.pid)
                    process.terminate()
        time.sleep(0.05)


def descendants() -> list[psutil.Process]:
    """Everything below this process; the dead are collected on the way."""
    reap()
    return psutil.Process().children(recursive=True)


def main(spec: dict[str, Any]) -> int:
    """Start the command of `spec`, watch the pipe on stdin and the command, clean up, remove the traces."""
    become_subreaper()
    told: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda n, frame: told.append(n))
    state, folder = Path(spec["state_file"]), Path(spec["temp_dir"])
    if spec["cpus"] and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, spec["cpus"])
    folder.mkdir(parents=True, exist_ok=True)
    state.parent.mkdir(parents=True, exist_ok=True)
    record = spec["record"] | {
        "supervisor_pid": os.getpid(),
        "created": psutil.Process().create_time(),
    }
    temporary = state.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(record))
    try:
        os.link(temporary, state)  # of two that start under one name at once, one wins
    except FileExistsError:
        name = record["name"]
        print(f"a local cluster {name!r} runs already; stop it first: sluice stop {name}", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        return 1
    finally:
        temporary.unlink()
    code = 0
    try:
        with (folder / "ray-start.log").open("w") as log:
            ray = subprocess.Popen(spec["command"], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        while not told:
            readable, _, _ = select.select([0], [], [], 0.2)
            if readable and not os.read(0, 1):
                break  # whoever asked for this cluster is gone
            if ray.poll() is not None:
                words = (folder / "ray-start.log").read_text()[-600:]
                print(f"Ray ended by itself with code {ray.returncode}; its last words: {words}", flush=True)
                code = 1
                break
            reap_orphans(ray.pid)
    finally:
        end_processes(descendants)
        shutil.rmtree(folder, ignore_errors=True)
        state.unlink(missing_ok=True)
    return code


def reap_orphans(keep: int) -> None:
    """Collect adopted zombies one by one, leaving the Popen of `keep` to its own poll()."""
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess, ChildProcessError):
            if child.pid != keep and child.status() == psutil.STATUS_ZOMBIE:
                os.waitpid(child.pid, os.WNOHANG)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
