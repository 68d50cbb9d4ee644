"""Rate -> arrival times: when each request is due, decided before the run and independent of the server.

Every generator returns sorted float64 offsets in seconds in [0, duration). The same seed gives the same times.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError

Offsets = NDArray[np.float64]


@dataclass(frozen=True)
class RateTrace:
    """A recorded load: `rates_rps[k]` requests per second during the k-th bin of `bin_s` seconds."""

    rates_rps: NDArray[np.float64]
    bin_s: float

    @property
    def duration_s(self) -> float:
        return len(self.rates_rps) * self.bin_s


def _check_positive(**values: float) -> None:
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ConfigError(f"{name}={value} is not a positive number; pass {name} > 0.")


def constant(rate: float, duration_s: float) -> Offsets:
    """Evenly spaced arrivals, `rate` per second: the kindest load there is, so use it to calibrate, not to judge."""
    _check_positive(rate=rate, duration_s=duration_s)
    times = np.arange(math.ceil(rate * duration_s), dtype=np.float64) / rate
    return times[times < duration_s]


def poisson(rate: float, duration_s: float, seed: int) -> Offsets:
    """Independent users: a Poisson count of arrivals, each uniform over the window (exact, no edge effect)."""
    _check_positive(rate=rate, duration_s=duration_s)
    rng = np.random.default_rng(seed)
    return _uniform_sorted(rng, int(rng.poisson(rate * duration_s)), 0.0, duration_s)


def gamma(rate: float, duration_s: float, cv: float, seed: int) -> Offsets:
    """Gamma gaps with coefficient of variation `cv`: 1 is Poisson, above 1 bursty, below 1 smoother than Poisson."""
    _check_positive(rate=rate, duration_s=duration_s, cv=cv)
    rng = np.random.default_rng(seed)
    shape, scale = 1.0 / cv**2, cv**2 / rate
    expected = rate * duration_s
    chunk = int(expected + 4.0 * cv * math.sqrt(expected)) + 16
    parts: list[Offsets] = []
    last = 0.0
    while last < duration_s:
        part = last + np.cumsum(rng.gamma(shape, scale, chunk))
        parts.append(part)
        last = float(part[-1])
    times = np.concatenate(parts)
    return times[times < duration_s]


def replay(rates_per_bin: Sequence[float] | NDArray[np.float64], bin_s: float, scale: float, seed: int) -> Offsets:
    """Replay a rate trace (req/s per bin of `bin_s` seconds), times `scale`, as an inhomogeneous Poisson process."""
    _check_positive(bin_s=bin_s, scale=scale)
    rates = np.asarray(rates_per_bin, dtype=np.float64)
    if rates.ndim != 1 or rates.size == 0 or not np.all(np.isfinite(rates)) or np.any(rates < 0):
        raise ConfigError(f"rates_per_bin={rates!r} must be a non-empty list of finite rates >= 0 in req/s.")
    rng = np.random.default_rng(seed)
    counts = rng.poisson(rates * scale * bin_s)
    parts = [
        _uniform_sorted(rng, int(count), index * bin_s, (index + 1) * bin_s)
        for index, count in enumerate(counts)
        if count
    ]
    return np.concatenate(parts) if parts else np.empty(0, dtype=np.float64)


_TIME_UNITS_S = {"time_s": 1.0, "second": 1.0, "seconds": 1.0, "offset_seconds": 1.0, "minute": 60.0, "minutes": 60.0}
_COUNTS = ("requests", "count")


def read_trace_csv(path: str | Path) -> RateTrace:
    """Read a rate trace: one line per bin, `rate_rps` alone (bins of 1 s) or `time_s,rate_rps` (evenly spaced).

    A header may name other units: the first column `second`, `minute` or `offset_seconds`, the second one `requests`
    or `count` (per bin); further columns are ignored then. Lines that start with # are comments.
    Raises ConfigError, naming the line, for anything else.
    """
    header: list[str] = []
    rows: list[list[float]] = []
    with open(path, newline="", encoding="utf-8") as file:
        for number, row in enumerate(csv.reader(file), start=1):
            if not row or row[0].startswith("#"):
                continue
            cells = row[:2] if header else row
            try:
                rows.append([float(cell) for cell in cells])
            except ValueError:
                if rows or header:
                    raise ConfigError(f"{path}:{number}: {row!r} is not numeric; write time_s,rate_rps.") from None
                header = [cell.strip().lower() for cell in row]
                continue
            if len(cells) > 2 or len(cells) != len(rows[0]):
                raise ConfigError(f"{path}:{number}: {len(cells)} columns; write rate_rps or time_s,rate_rps.")
    if not rows:
        raise ConfigError(f"{path} holds no rates; write one line per bin: rate_rps or time_s,rate_rps.")
    table = np.array(rows, dtype=np.float64)
    rates = table[:, -1]
    if not np.all(np.isfinite(rates)) or np.any(rates < 0):
        raise ConfigError(f"{path} holds a negative or infinite rate; rates are req/s and at least 0.")
    bin_s = _bin_s(path, table, header)
    counted = len(header) > 1 and header[1] in _COUNTS
    return RateTrace(rates / bin_s if counted else rates, bin_s)


def _bin_s(path: str | Path, table: NDArray[np.float64], header: list[str]) -> float:
    if table.shape[1] == 1:
        return 1.0
    if header and header[0] not in _TIME_UNITS_S:
        raise ConfigError(f"{path}: the first column is {header[0]!r}; name it one of {', '.join(_TIME_UNITS_S)}.")
    unit_s = _TIME_UNITS_S[header[0]] if header else 1.0
    if len(table) == 1:
        return unit_s
    gaps = np.diff(table[:, 0])
    if gaps[0] <= 0 or not np.allclose(gaps, gaps[0], rtol=1e-3):
        raise ConfigError(f"{path}: time is not evenly increasing (first gap {gaps[0]:g}); resample the trace.")
    return float(gaps[0]) * unit_s


def _uniform_sorted(rng: np.random.Generator, count: int, start: float, stop: float) -> Offsets:
    times = np.sort(rng.uniform(start, stop, count))
    # Rounding may land exactly on `stop`; the window is half-open so that bins never overlap.
    return np.minimum(times, np.nextafter(stop, start))
