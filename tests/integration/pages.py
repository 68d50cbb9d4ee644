"""A page of commands as its reader follows it: blocks in order, what serves in the background, the rest to its end."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cluster.local import free_ports
from tests.conftest import marked

ROOT = Path(__file__).resolve().parents[2]


def blocks(page: Path, *kinds: str) -> list[tuple[str, str]]:
    """(kind, text) of the page's blocks of these kinds, from top to bottom."""
    found = re.findall(r"```(\w+)\n(.*?)```", page.read_text(), flags=re.DOTALL)
    return [(kind, text) for kind, text in found if kind in kinds]


def lines_of(kind: str, text: str) -> list[str]:
    """What is typed: each line of a console without its remark; a block of Python is one."""
    if kind == "python":
        return [f"python -c {shlex.quote(text)}"]
    lines = [line.split("  #")[0].strip() for line in text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line]


class Terminal:
    """Two of them, rather: one for what is served, one for the rest. The port is a free one."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._port = folder, str(free_ports(1)[0])
        self._server: subprocess.Popen[str] | None = None
        self._environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "SLUICE_STORE": str(folder / "store"),
            "SLUICE_RUNS": str(folder / "runs"),
            "SLUICE_STATE": str(folder / "state"),
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, line: str) -> str:
        """What it printed. What serves is started instead, and what served before it is stopped."""
        line = line.replace("8000", self._port)
        if line.startswith("sluice serve") and "--dry-run" not in line:
            self.interrupt()
            self._serve(line)
            return ""
        done = subprocess.run(
            line, shell=True, capture_output=True, text=True, env=self._environment, cwd=self._folder, check=False
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        assert done.stdout or ">" in line, f"{line} says nothing"
        return done.stdout

    def _serve(self, line: str) -> None:
        self._server = subprocess.Popen(
            [*shlex.split(line), "--port", self._port], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env=self._environment, cwd=self._folder,
        )  # fmt: skip
        assert self._server.stdout is not None
        assert any("Ctrl-C stops it" in heard for heard in self._server.stdout), f"{line}: ended {self._server.wait()}"

    def interrupt(self) -> None:
        """As a user's Ctrl-C, and wait until its port is free again."""
        if self._server is not None and self._server.poll() is None:
            self._server.send_signal(signal.SIGINT)
            assert self._server.wait(timeout=60) == 130
        self.close()

    def close(self) -> None:
        if self._server is not None:
            self._server.kill()
            self._server.wait()
            assert self._server.stdout is not None
            self._server.stdout.close()
            self._server = None


@contextmanager
def terminal(folder: Path) -> Iterator[Terminal]:
    """What serves at the end is interrupted, and nothing may be left of it."""
    made = Terminal(folder)
    try:
        yield made
        made.interrupt()
    finally:
        made.close()
    assert not marked(state_dir=folder / "state")
