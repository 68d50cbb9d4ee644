"""One run of MLPerf LoadGen against one address -> what its own summary says, and the accuracy of what it logged.

The run is a process in LoadGen's environment (client.py), pinned to the client's cores.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.peers import environments
from cluster.errors import ClusterError

PEER = "loadgen"
SEEDS = (3066443479025735752, 10688027786191513374, 14962580496156340209)
"""Of LoadGen's query sample library, sample index and schedule: any will do, these are given so that a run can be
repeated."""
_CONNECTIONS = 128
_SCRIPT = Path(__file__).parent / "client.py"


@dataclass(frozen=True)
class Setting:
    """What all runs share."""

    venvs: Path
    pictures: Path
    """An .npz of them."""
    labels: NDArray[np.int64]
    cores: list[int]
    bound_s: float
    path: str


@dataclass(frozen=True)
class Ran:
    """What came of one run."""

    scenario: str
    mode: str
    qps: float
    """The target."""
    seconds: float
    summary: str
    """LoadGen's own, as it wrote it."""
    statuses: dict[int, int]
    client_share: float
    """Of one core."""
    accuracy: float | None
    answered: int
    """Samples in the accuracy log."""
    figures: dict[str, str] = field(default_factory=dict)

    @property
    def valid(self) -> bool:
        return self.figures.get("Result is") == "VALID"

    def ms(self, name: str) -> float | None:
        """A latency of the summary."""
        said = self.figures.get(name)
        return None if said is None else int(said) / 1e6

    @property
    def refused(self) -> int:
        return sum(count for status, count in self.statuses.items() if status != 200)


def figures_of(summary: str) -> dict[str, str]:
    """Every "name : value" line of a summary."""
    return {m[1].strip(): m[2].strip() for m in re.finditer(r"^\s*([^:\n]+?)\s*:\s*(.+)$", summary, re.MULTILINE)}


def run(
    setting: Setting, address: str, *, scenario: str = "Server", mode: str = "PerformanceOnly", qps: float,
    seconds: float, min_queries: int = 100,
) -> Ran:  # fmt: skip
    """Raises ClusterError with LoadGen's last words if it does not end well."""
    with tempfile.TemporaryDirectory() as folder:
        job = Path(folder) / "job.json"
        job.write_text(json.dumps({
            "scenario": scenario, "mode": mode, "qps": qps, "seconds": seconds, "min_queries": min_queries,
            "bound_s": setting.bound_s, "address": address, "path": setting.path, "pictures": str(setting.pictures),
            "folder": folder, "connections": _CONNECTIONS, "seeds": SEEDS,
        }))  # fmt: skip
        command = [str(environments.python(setting.venvs, PEER)), str(_SCRIPT), str(job)]
        cores = setting.cores
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, timeout=seconds * 4 + 240,
            env=environments.variables(setting.venvs, PEER),
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )  # fmt: skip
        if done.returncode != 0:
            raise ClusterError(f"LoadGen ended with {done.returncode}: {done.stderr.strip()[-400:]}")
        report: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        summary = (Path(folder) / "mlperf_log_summary.txt").read_text()
        accuracy, answered = _accuracy(Path(folder) / "mlperf_log_accuracy.json", setting.labels, mode)
    return Ran(
        scenario=scenario, mode=mode, qps=qps, seconds=seconds, summary=summary, accuracy=accuracy, answered=answered,
        statuses={int(status): count for status, count in report["statuses"].items()},
        client_share=report["cpu_s"] / report["wall_s"], figures=figures_of(summary),
    )  # fmt: skip


def _accuracy(path: Path, labels: NDArray[np.int64], mode: str) -> tuple[float | None, int]:
    """Of the log's answers, each the class as one byte."""
    if mode != "AccuracyOnly":
        return None, 0
    entries = json.loads(path.read_text())
    right = sum(int(entry["data"], 16) == labels[entry["qsl_idx"]] for entry in entries)
    return right / len(entries), len(entries)
