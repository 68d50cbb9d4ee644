"""What a load worker is told and what it hands back: a JSON line for the small part, .npz files for the arrays.

Runner -> stdin line JobSpec -> worker -> "ready" line -> runner -> stdin line start time -> worker -> results.npz
and one stdout line WorkerReport. Closing the worker's stdin stops it: no worker outlives its runner.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field


class JobSpec(BaseModel):
    """One worker's share of a run. Times are seconds."""

    mode: Literal["open", "closed"]
    host: str
    port: int
    inputs: Path
    results: Path
    connections: int = Field(ge=1)
    timeout_s: float = Field(gt=0)
    abort_backlog: int | None = None
    first: int = 0
    """Request k of this worker is request first + k * step of the whole run, which decides its payload."""
    step: int = 1
    duration_s: float = 0.0
    """Closed loop only: for how long."""
    cpu: int | None = None


class WorkerReport(BaseModel):
    cpu_s: float
    elapsed_s: float
    aborted: bool


def pack(parts: Sequence[bytes]) -> dict[str, NDArray[np.generic]]:
    """Byte strings as two arrays, so that no pickle travels."""
    return {
        "blob": np.frombuffer(b"".join(parts), dtype=np.uint8),
        "ends": np.cumsum([len(part) for part in parts], dtype=np.int64),
    }


def unpack(blob: NDArray[np.generic], ends: NDArray[np.generic]) -> list[bytes]:
    data = blob.tobytes()
    stops = [int(end) for end in ends.tolist()]
    return [data[start:stop] for start, stop in zip([0, *stops[:-1]], stops, strict=True)] if stops else []


def write_inputs(
    path: Path, arrivals: NDArray[np.float64], requests: Sequence[bytes], expect: Sequence[bytes] | None
) -> None:
    arrays: dict[str, NDArray[np.generic]] = {"arrivals": arrivals}
    for name, parts in (("requests", requests), ("expect", expect or [])):
        arrays |= {f"{name}_{key}": value for key, value in pack(parts).items()}
    np.savez(path, allow_pickle=False, **arrays)


def read_inputs(path: Path) -> tuple[list[float], list[bytes], list[bytes]]:
    """(arrival offsets in seconds, requests, expected bytes or an empty list)."""
    with np.load(path, allow_pickle=False) as arrays:
        return (
            arrays["arrivals"].tolist(),
            unpack(arrays["requests_blob"], arrays["requests_ends"]),
            unpack(arrays["expect_blob"], arrays["expect_ends"]),
        )
