"""A command -> a server that runs on given cores, with all that it starts, and ends with all of it.

Local clusters and peers alike stand below a supervisor (cluster/local_supervisor.py), which inherits whatever its
command abandons and ends it all when we stop, or are gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from cluster.errors import ClusterError, ConfigError
from cluster.local import cpu_seconds_below, end_supervisor

_WORDS = "its last words: "


class Started:
    """The processes of one server."""

    def __init__(self, supervisor: subprocess.Popen[bytes]) -> None:
        self._supervisor = supervisor

    def check(self) -> None:
        """Raises ClusterError with its last words if the command has ended."""
        if self._supervisor.poll() is not None:
            assert self._supervisor.stdout is not None
            words = self._supervisor.stdout.read().decode(errors="replace").strip()
            raise ClusterError(f"it ended by itself: {words.partition(_WORDS)[2] or words or 'no message'}"[:600])

    def cpu_seconds(self) -> float:
        """CPU seconds used so far by all of its processes that live."""
        return cpu_seconds_below(self._supervisor.pid)


@contextlib.contextmanager
def started(command: Sequence[str], environment: Mapping[str, str], cores: Sequence[int]) -> Iterator[Started]:
    """Run `command` on `cores` (none: on any) until the end of the block."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-peer-"))
    spec = {
        "command": list(command), "cpus": list(cores), "temp_dir": str(folder / "run"),
        "state_file": str(folder / "state.json"), "record": {"name": "peer"},
    }  # fmt: skip
    # The supervisor is ours and imports from here; its command finds the environment that it is meant to have.
    bare = [sys.executable, "-m", "cluster.local_supervisor"]
    spec["command"] = ["env", "-i", *(f"{name}={value}" for name, value in environment.items()), *command]
    supervisor = subprocess.Popen(
        [*bare, json.dumps(spec)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=dict(os.environ),
        start_new_session=True,  # Ctrl-C is for us; the supervisor hears of our end through the pipe
    )  # fmt: skip
    try:
        yield Started(supervisor)
    finally:
        end_supervisor(supervisor)
        shutil.rmtree(folder, ignore_errors=True)


def installed(program: str, package: str, what: str) -> str:
    """Where a program is that `what`; as root on Debian and the like it is installed where it is missing. Raises
    ConfigError."""
    found = shutil.which(program)
    if found is None and os.geteuid() == 0 and shutil.which("apt-get"):
        for command in (["apt-get", "update", "-qq"], ["apt-get", "install", "-y", "-qq", package]):
            subprocess.run(command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True,
                           check=False)  # fmt: skip
        found = shutil.which(program)
    if found is None:
        raise ConfigError(f"there is no {program} here, which {what}; install it: apt-get install {package}")
    return found
