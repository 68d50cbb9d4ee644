"""Ray's own processes of a local cluster -> a lower priority than the replicas', whose cores they share.

On a small machine Serve's controller, the dashboard and the agents take turns with the replica that answers: few
milliseconds a second, and each turn is somebody's latency (docs/decisions/0005). On Kubernetes most of them are on the
head, a pod of its own. Nothing is taken from HAProxy, nor from the raylet, whose children the replicas are.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

NICENESS = 10
_BEHIND = re.compile(
    r"ray::(ServeController|ProxyActor|DashboardAgent|RuntimeEnvAgent)|/gcs_server |ray-dashboard|"
    r"/dashboard/dashboard\.py|/log_monitor\.py|/autoscaler/_private/monitor\.py|ray\.util\.client\.server"
)


def stand_behind(pids: Iterable[int], proc: Path = Path("/proc")) -> list[int]:
    """Lower the priority of those that are Ray's housekeeping, all their threads; returns them. Where that is not
    possible (another system, a process that ended) nothing happens."""
    lowered = []
    for pid in pids:
        with contextlib.suppress(OSError):
            command = (proc / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if not _BEHIND.search(command):
                continue
            for thread in (proc / str(pid) / "task").iterdir():
                with contextlib.suppress(OSError):  # a thread that ended meanwhile
                    if os.getpriority(os.PRIO_PROCESS, int(thread.name)) < NICENESS:
                        os.setpriority(os.PRIO_PROCESS, int(thread.name), NICENESS)
            lowered.append(pid)
    return lowered
