"""Series to be forecast: electricity transformers, hour by hour, as the field splits and scales them.

    etth1 | etth2   $SLUICE_DATA_DIR/ett/ETTh1.csv and ETTh2.csv: six loads and the oil's temperature (OT), hourly
    seasonal        an embedded series with a day, a week and a drift, the stand-in for these

Zhou et al., "Informer: Beyond Efficient Transformer for Long Sequence Time-Series Forecasting", AAAI 2021, section 5.1:
12 months of 30 days to train on, 4 to validate, 4 to test; the rest of the file is not used.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError, DataUnavailable
from train_jobs.datasets.labelled import Notify
from train_jobs.datasets.standin import announce

NAMES = ("etth1", "etth2", "seasonal")
_FILES = {"etth1": "ETTh1.csv", "etth2": "ETTh2.csv"}
_MONTH = 30 * 24
_BORDERS = (12 * _MONTH, 16 * _MONTH, 20 * _MONTH)

Figures = dict[str, dict[int, tuple[float, float]]]
"""By model and hours ahead: mean squared and mean absolute error, on the standardised scale."""
_INFORMER = 'Zhou et al., "Informer", AAAI 2021'
_DLINEAR = 'Zeng et al., "Are Transformers Effective for Time Series Forecasting?", AAAI 2023, looking 336 h back'
_PUBLISHED: dict[bool, Figures] = {
    False: {
        f"LSTMa ({_INFORMER}, table 2)": {
            24: (0.650, 0.624), 48: (0.702, 0.675), 168: (1.212, 0.867), 336: (1.424, 0.994), 720: (1.960, 1.322),
        },
        f"Informer ({_INFORMER}, table 2)": {
            24: (0.577, 0.549), 48: (0.685, 0.625), 168: (0.931, 0.752), 336: (1.128, 0.873), 720: (1.215, 0.896),
        },
        f"DLinear ({_DLINEAR})": {
            96: (0.375, 0.399), 192: (0.405, 0.416), 336: (0.439, 0.443), 720: (0.472, 0.490),
        },
    },
    True: {
        f"LSTMa ({_INFORMER}, table 1)": {
            24: (0.114, 0.272), 48: (0.193, 0.358), 168: (0.236, 0.392), 336: (0.590, 0.698), 720: (0.683, 0.768),
        },
        f"Informer ({_INFORMER}, table 1)": {
            24: (0.098, 0.247), 48: (0.158, 0.319), 168: (0.183, 0.346), 336: (0.222, 0.387), 720: (0.269, 0.435),
        },
        f"DLinear ({_DLINEAR})": {
            96: (0.056, 0.180), 192: (0.071, 0.204), 336: (0.098, 0.244), 720: (0.189, 0.359),
        },
    },
}  # fmt: skip
"""Of ETTh1, by whether it is about the oil's temperature alone."""


@dataclass(frozen=True)
class SeriesDataset:
    """Values (T, C), a row for each hour, in their own units; the last column is the one that univariate forecasts are
    about. Rows before `borders[0]` are trained on, those up to `borders[1]` validate, up to `borders[2]` they test."""

    name: str
    source: str
    values: NDArray[np.float32]
    columns: tuple[str, ...]
    borders: tuple[int, int, int]
    period: int = 24
    """Rows after which the series is, more or less, itself again."""
    published: dict[bool, Figures] = field(default_factory=dict)
    """Figures of others, by whether they are univariate."""
    spec: str = ""


def load(spec: str, *, notify: Notify | None = None) -> SeriesDataset:
    """The series that `spec` names; where it is not to be had, `notify` is told and "seasonal" returned.

    Raises DataUnavailable without anybody to tell, or for a file that is broken; ConfigError for an unknown name.
    """
    if spec == "seasonal":
        return seasonal()
    if spec not in _FILES:
        raise ConfigError(f"dataset={spec!r} is no series to be forecast; Sluice knows {', '.join(NAMES)}")
    folder = os.environ.get("SLUICE_DATA_DIR")
    path = Path(folder or "") / "ett" / _FILES[spec]
    if folder and path.exists():
        return _from_file(spec, path)
    reason = f"{path} is missing" if folder else "SLUICE_DATA_DIR is not set"
    made = "an embedded made-up seasonal series"
    announce(spec, reason, files=f"ett/{_FILES[spec]}", stand_in=made, notify=notify)
    return seasonal()


def _from_file(name: str, path: Path) -> SeriesDataset:
    """A file of ETT: a date, then a number for each column."""
    rows = _BORDERS[2]
    try:
        with path.open() as lines:
            columns = tuple(lines.readline().strip().split(",")[1:])
            values = np.loadtxt(
                lines, delimiter=",", usecols=range(1, len(columns) + 1), dtype=np.float32, max_rows=rows, ndmin=2
            )
    except (OSError, ValueError, IndexError) as error:
        raise DataUnavailable(f"{path} holds no rows date,value,... ({error}); fetch it again") from error
    if len(values) < rows or not np.isfinite(values).all():
        raise DataUnavailable(
            f"{path} has {len(values):,} rows, {int((~np.isfinite(values)).sum())} values of them not finite; the "
            f"protocol needs {rows:,} whole ones; fetch it again"
        )
    return SeriesDataset(
        name=name, spec=name, source=str(path), values=values, columns=columns, borders=_BORDERS,
        published=_PUBLISHED if name == "etth1" else {},
    )  # fmt: skip


def seasonal(points: int = 3000, *, seed: int = 0) -> SeriesDataset:
    """Three channels with a day, a week and a level that drifts; the third lags behind the others. Made, not measured:
    it shows that all works, and says nothing of real data."""
    rng = np.random.default_rng(seed)
    hours = np.arange(points)
    day, week = 2 * np.pi * hours / 24, 2 * np.pi * hours / (7 * 24)
    drift = np.cumsum(rng.normal(0.0, 0.05, points))
    load = 10 + 3 * np.sin(day) + np.sin(2 * day + 1) + np.cos(week) + drift + rng.normal(0.0, 0.3, points)
    flow = 4 + 1.5 * np.cos(day) * (1 + 0.3 * np.sin(week)) + rng.normal(0.0, 0.2, points)
    warmth = 20 + np.convolve(load, np.full(6, 1 / 6))[:points] + 0.5 * np.roll(flow, 3) + rng.normal(0.0, 0.2, points)
    return SeriesDataset(
        name="seasonal", spec="seasonal", source="made here from a fixed seed",
        values=np.stack([load, flow, warmth], axis=1).astype(np.float32), columns=("load", "flow", "warmth"),
        borders=(points * 6 // 10, points * 8 // 10, points),
    )  # fmt: skip
