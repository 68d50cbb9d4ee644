"""What a long command shows while it works, and which core it gives to whom."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console


@dataclass(frozen=True)
class Cores:
    """The servers and all of Ray on all cores but the last, the load generator on the last."""

    server: list[int]
    client: list[int]

    @classmethod
    def split(cls, servers: int | None = None) -> Cores:
        """Of the cores that this process may use; `servers` of them, the first ones, for servers at most."""
        available = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        if len(available) < 2:
            return cls(server=available, client=available)
        return cls(server=available[:-1][:servers], client=available[-1:])

    @property
    def count(self) -> int:
        """Cores for servers."""
        return len(self.server) or os.cpu_count() or 1


class Stages:
    """Prints what is going on with the time it took, and remembers the times for the report."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.seconds: dict[str, float] = {}
        self.notices: list[str] = []
        self._status: Any = None

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        if not self.console.is_terminal:
            self.console.print(f"start {name}", highlight=False)
        with self.console.status(f"[bold]{name}[/bold]") as self._status:
            try:
                yield
            finally:
                self.seconds[name] = time.monotonic() - started
        self.console.print(f"[green]done[/green]  {name}  [dim]{self.seconds[name]:.1f} s[/dim]")

    def say(self, line: str) -> None:
        """One line of live detail: shown in the status on a terminal, printed where there is none."""
        if self.console.is_terminal and self._status is not None:
            self._status.update(f"[dim]{line}[/dim]")
        else:
            self.console.print(f"      {line}", highlight=False, markup=False)

    def tell(self, line: str) -> None:
        """One line that stays, on a terminal too: a result on the way."""
        self.console.print(f"      {line}", highlight=False, markup=False)

    def notice(self, line: str) -> None:
        """Something that the user must see, such as another data set than the one asked for."""
        self.notices.append(line)
        self.console.print(f"[yellow]notice[/yellow] {line}", highlight=False)
