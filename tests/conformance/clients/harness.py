"""What the scripts of all clients share: a job in, a row of the table after the other, a report out.

Each script runs in its client's own environment, so this imports the standard library and nothing else:

    checks = Checks()                       # argv[1] is the job
    with checks.row("live"):
        assert client.is_server_live()
    checks.report()

A row that raises has failed, and the next one goes on. Rows that a client has no call for are left out.
"""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Checks:
    """One run of one client against one model."""

    def __init__(self) -> None:
        job = json.loads(Path(sys.argv[1]).read_text())
        self.http: str = job["http"]
        """host:port"""
        self.grpc: str = job["grpc"]
        """host:port; empty where there is none."""
        self.model: str = job["model"]
        self.version: str = job["version"]
        self.serves: str = job["serves"]
        """Which of models.py: it decides which rows there are."""
        self.known: str = job["known"]
        """Path of an .npz: inputs as in/NAME, what must come back as out/NAME."""
        self.repository: bool = job["repository"]
        """Models may be loaded and unloaded."""
        self.files: dict[str, str] = job["files"]
        """Pictures and the specification's own .proto."""
        self.rows: dict[str, str] = {}

    @contextlib.contextmanager
    def row(self, name: str) -> Iterator[None]:
        """What goes wrong inside is the row's result."""
        try:
            yield
        except Exception as error:
            said = f"{type(error).__name__}: {error}" if str(error) else _where(error)
            self.rows[name] = " ".join(said.split())[:300]
        else:
            self.rows.setdefault(name, "")

    def report(self, **versions: str) -> None:
        """To stdout, as JSON."""
        print(json.dumps({"rows": self.rows, "versions": versions}))


def _where(error: BaseException) -> str:
    """A bare assertion's line."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return type(error).__name__
    lines = Path(trace.tb_frame.f_code.co_filename).read_text().splitlines()
    return f"{type(error).__name__}: {lines[trace.tb_lineno - 1].strip()}"


def is_error(value: Any) -> bool:
    """{"error": $string} and nothing else, and the string says something."""
    return isinstance(value, dict) and list(value) == ["error"] and isinstance(value["error"], str) and value["error"]
