"""serving.json: what was measured, a cell at a time, so that an interrupted benchmark goes on where it was.

    cells["cnn/mosec/closed/64/0"]          work / server / closed loop / connections / round
    cells["cnn/mosec/paced/50ms/0"]         .../ highest fixed rate / bound / round
    cells["cnn/mosec/slo/50ms/1"]           .../ SLO rate / bound / seed
    cells["cnn/ours/deadline/bentoml/gamma/0.95/1"]
                                            .../ deadline attainment / in the pair with / arrivals / share / seed
    cells["cnn/kernel/openvino/0"]          the bare runtime / round
"""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks import files
from cluster.errors import ConfigError

Cell = dict[str, Any]
NOISY = 0.1
"""Of the servers' cores used by others, above which a figure is not the server's own."""
_NAME = "serving.json"


class Cells:
    """The file, and what is in it."""

    def __init__(self, folder: Path, facts: dict[str, Any], settings: dict[str, Any]) -> None:
        """Open it, or begin it with `facts`. Raises ConfigError if what it holds was measured with other settings."""
        self._path = folder / _NAME
        self.document: dict[str, Any] = (
            json.loads(self._path.read_text()) if self._path.exists() else {**facts, "settings": settings, "cells": {}}
        )
        kept = self.document["settings"]
        apart = [f"{name}={kept.get(name)!r}, not {value!r}" for name, value in settings.items()
                 if kept.get(name) != value]  # fmt: skip
        if apart:
            raise ConfigError(f"{self._path} was measured with {'; '.join(apart)}; give another --output")

    @property
    def cells(self) -> dict[str, Cell]:
        found: dict[str, Cell] = self.document["cells"]
        return found

    def __contains__(self, key: str) -> bool:
        return key in self.cells

    def put(self, key: str, cell: Cell) -> None:
        """Add it, and write the file."""
        self.cells[key] = cell
        self.write()

    def note(self, part: str, key: str, value: Any) -> None:
        """A fact beside the cells: how a server speaks, why one failed."""
        self.document.setdefault(part, {})[key] = value
        self.write()

    def fixed(self, key: str, make: Callable[[], Any]) -> Any:
        """A value that is found once and then kept, so that all is measured against the same one."""
        kept = self.document.setdefault("fixed", {})
        if key not in kept:
            kept[key] = make()
            self.write()
        return kept[key]

    def forget_noisy(self) -> int:
        """Drop the cells that say little of their server, "can't tell" too; how many they were."""
        noisy = [key for key, cell in self.cells.items() if is_noisy(cell) or not cell.get("rate_rps", 1.0)]
        for key in noisy:
            del self.cells[key]
        self.write()
        return len(noisy)

    def write(self) -> None:
        files.write(self._path, json.dumps(self.document, indent=1))

    def of(self, prefix: str) -> dict[str, Cell]:
        """Cells by what follows the prefix: "cnn/mosec/closed/64" -> {"0": ..., "1": ...}"""
        return {key[len(prefix) + 1 :]: cell for key, cell in self.cells.items() if key.startswith(f"{prefix}/")}

    def median(self, prefix: str, figure: str) -> float:
        """Over the rounds; NaN if there are none."""
        values = [cell[figure] for cell in self.of(prefix).values() if cell.get(figure) is not None]
        return statistics.median(values) if values else math.nan

    def best(self, prefix: str, figure: str) -> float:
        """Of what lies one below it, say numbers of connections, the largest median; 0 if there is none."""
        below = dict.fromkeys(key.partition("/")[0] for key in self.of(prefix))
        medians = [self.median(f"{prefix}/{each}", figure) for each in below]
        return max((median for median in medians if not math.isnan(median)), default=0.0)



def is_noisy(cell: Cell) -> bool:
    """Was somebody else on the servers' cores?"""
    return bool(cell.get("others_share", 0.0) > NOISY)


class Watch:
    """What else went on while a cell was measured: begin it, then `facts` with the servers' own CPU seconds."""

    def __init__(self, cores: list[int]) -> None:
        self._cores = cores or list(range(os.cpu_count() or 1))
        self._began, self._busy = time.monotonic(), self._busy_s()

    def _busy_s(self) -> float:
        """Of these cores, all but waiting for work; the time that a host took away counts."""
        each = psutil.cpu_times(percpu=True)
        idle = [each[core].idle + getattr(each[core], "iowait", 0.0) for core in self._cores if core < len(each)]
        return -sum(idle)

    def facts(self, own_cpu_s: float) -> Cell:
        """`others_share`: of the servers' cores, what somebody else used."""
        took_s = time.monotonic() - self._began
        busy_s = self._busy_s() - self._busy + took_s * len(self._cores)
        others = max(0.0, busy_s - own_cpu_s) / (took_s * len(self._cores))
        return {"cpu_s": own_cpu_s, "others_share": others, "load": os.getloadavg()[0], "at": time.strftime("%F %T")}
