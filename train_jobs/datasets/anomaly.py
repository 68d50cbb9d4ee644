"""Data with anomalies to be found: one class of a picture set against the others, and series labelled point by point.

    fashion-mnist-one-class-5   train on class 5 of the training set alone; the whole test set, 0 where it is class 5
                                (normal), 1 where it is not (anomalous); mnist- and digits-one-class-K likewise
    ecg805 | ecg806 | ecg820    three electrocardiograms as TSB-UAD has them
    nab-machine-temperature     a machine's temperature before and through four failures (Numenta Anomaly Benchmark)
    pulses                      an embedded series with planted anomalies, the stand-in for these

No anomaly's label is seen in training. TSB-UAD: Paparrizos et al., "TSB-UAD: An End-to-End Benchmark Suite for
Univariate Time-Series Anomaly Detection", PVLDB 15(8), 2022. NAB: Lavin and Ahmad, "Evaluating Real-Time Anomaly
Detection Algorithms", ICMLA 2015.
"""

from __future__ import annotations

import csv
import json
import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError, DataUnavailable
from train_jobs import datasets
from train_jobs.datasets.labelled import LabelledDataset, Notify
from train_jobs.datasets.standin import announce

SERIES = ("ecg805", "ecg806", "ecg820", "nab-machine-temperature", "pulses")
NORMAL_OR_NOT = ("normal", "anomalous")
"""The labels of a LabelledDataset whose test part is about anomalies."""
_ONE_CLASS = re.compile(r"(?P<base>.+)-one-class-(?P<label>\d+)")

_TSB_SHARE = 0.1
"""TSB-UAD trains its autoencoder on the first tenth of a series, unlabelled, and scores all of it."""
_TSB_UAD = {
    "ecg805": ("MBA_ECG805_data.out", {"autoencoder": 0.857, "PCA": 0.936, "isolation forest": 0.930}),
    "ecg806": ("MBA_ECG806_data.out", {"autoencoder": 0.859, "PCA": 0.457, "isolation forest": 0.536}),
    "ecg820": ("MBA_ECG820_data.out", {"autoencoder": 0.792, "PCA": 0.382, "isolation forest": 0.393}),
}
"""File, and TSB-UAD's published areas under the ROC curve, by point (the tables of its repository)."""
_NAB_FILE = "realKnownCause/machine_temperature_system_failure.csv"
_NAB_TRAIN, _NAB_WINDOW = 7 * 288, 48
"""The first week, at 288 points a day, ends before the first failure's window; samples of four hours."""


@dataclass(frozen=True)
class AnomalySeries:
    """One series, point by point; training sees windows of its beginning, without labels."""

    name: str
    source: str
    values: NDArray[np.float32]
    """(T,)."""
    anomalous: NDArray[np.int64]
    """(T,): 1 within an anomaly."""
    train_end: int
    """Points before this one are trained on."""
    window: int
    """Points of a sample."""
    published: dict[str, float] = field(default_factory=dict)
    """Areas under the ROC curve of others, by model; comparable with the score at a window's centre alone."""
    spec: str = ""


def is_anomalies(spec: str) -> bool:
    """Is it one of this file's names?"""
    return spec in SERIES or _ONE_CLASS.fullmatch(spec) is not None


def load(spec: str, *, notify: Notify | None = None) -> LabelledDataset | AnomalySeries:
    """The data that `spec` names; where it is not to be had, `notify` is told and a stand-in of another name returned.

    Raises DataUnavailable without anybody to tell, or for files that are broken; ConfigError for a class that is none.
    """
    if (match := _ONE_CLASS.fullmatch(spec)) is not None:
        return one_class(datasets.load(match["base"], notify=notify), int(match["label"]))
    if spec == "pulses":
        return pulses()
    folder = Path(os.environ.get("SLUICE_DATA_DIR", "")) / "anomaly"
    try:
        if not os.environ.get("SLUICE_DATA_DIR"):
            raise FileNotFoundError("SLUICE_DATA_DIR is not set")
        return _machine_temperature(folder) if spec == "nab-machine-temperature" else _tsb_uad(spec, folder)
    except FileNotFoundError as error:
        lacking = f"{error.filename} is missing" if error.filename else str(error)
        announce(
            spec, lacking, files="anomaly/tsb-uad-ecg/*.out and anomaly/nab/", notify=notify,
            stand_in="an embedded series of pulses with planted anomalies",
        )  # fmt: skip
        return pulses()


def one_class(base: LabelledDataset, label: int) -> LabelledDataset:
    """Train on one class, test on all: 0 is that class (normal), 1 any other. Raises ConfigError for no such class."""
    if label >= len(base.labels):
        raise ConfigError(
            f"dataset={base.name}-one-class-{label}: {base.name} has classes 0 to {len(base.labels) - 1} "
            f"({', '.join(base.labels)}); choose one of them"
        )
    own = base.y_train == label
    name = f"{base.name}-one-class-{label}"
    return replace(
        base, name=name, spec=name, source=f"{base.source}, {base.labels[label]} against the others",
        x_train=base.x_train[own], y_train=np.zeros(int(own.sum()), np.int64),
        y_test=(base.y_test != label).astype(np.int64), labels=NORMAL_OR_NOT,
    )  # fmt: skip


def period(values: NDArray[np.float32], *, lags: int = 400, otherwise: int = 125) -> int:
    """Points of one period: where the autocorrelation of the first 20,000 points has its highest peak, as TSB-UAD
    chooses its window; `otherwise` if there is no peak between 6 and 303 points."""
    x = values[:20_000].astype(np.float64)
    x = x - x.mean()
    size = 1 << (2 * len(x) - 1).bit_length()
    spectrum = np.fft.rfft(x, size)
    correlation = np.fft.irfft(spectrum * spectrum.conj(), size)[: lags + 1]
    first = 3  # nearer ones are not peaks of a period but the point itself
    beyond = correlation[first:]
    peaks = np.flatnonzero((beyond[1:-1] > beyond[:-2]) & (beyond[1:-1] > beyond[2:])) + 1
    if len(peaks) == 0:
        return otherwise
    highest = int(peaks[np.argmax(beyond[peaks])])
    return highest + first if first <= highest <= 300 else otherwise


def _tsb_uad(spec: str, folder: Path) -> AnomalySeries:
    file, published = _TSB_UAD[spec]
    path = folder / "tsb-uad-ecg" / file
    try:
        rows = np.loadtxt(path, delimiter=",", dtype=np.float64, ndmin=2)
        values, anomalous = rows[:, 0].astype(np.float32), rows[:, 1].astype(np.int64)
    except (ValueError, IndexError) as error:
        raise DataUnavailable(f"{path} holds no rows value,label ({error}); fetch it again") from error
    return AnomalySeries(
        name=spec, spec=spec, source=str(path), values=values, anomalous=anomalous,
        train_end=int(_TSB_SHARE * len(values)), window=period(values), published=published,
    )  # fmt: skip


def _machine_temperature(folder: Path) -> AnomalySeries:
    path, labels = folder / "nab/data" / _NAB_FILE, folder / "nab/labels/combined_windows.json"
    try:
        with path.open(newline="") as opened:
            rows = list(csv.DictReader(opened))
        values = np.array([float(row["value"]) for row in rows], np.float32)
        times = np.array([row["timestamp"] for row in rows])
        anomalous = np.zeros(len(rows), np.int64)
        for begin, end in json.loads(labels.read_text())[_NAB_FILE]:
            # ISO times sort as text; the labels' fractions of a second are always nought
            anomalous[(times >= begin[:19]) & (times <= end[:19])] = 1
    except (ValueError, KeyError, TypeError) as error:
        raise DataUnavailable(f"{path} or {labels} is broken ({error}); fetch them again") from error
    return AnomalySeries(
        name="nab-machine-temperature", spec="nab-machine-temperature", source=str(path), values=values,
        anomalous=anomalous, train_end=_NAB_TRAIN, window=_NAB_WINDOW,
    )  # fmt: skip


def pulses(points: int = 24_000, *, seed: int = 0) -> AnomalySeries:
    """Beats of a steady shape, a little early or late and strong or weak; 3% of them, after the training part, are wide
    and upside down. Made, not measured: it shows that all works, and says nothing of real data."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0.0, 0.03, points)
    anomalous = np.zeros(points, np.int64)
    train_end, spacing = points // 5, 80
    for beat in range(spacing // 2, points - spacing // 2, spacing):
        odd = beat - spacing // 2 >= train_end and rng.random() < 0.03
        at, strength = beat + rng.normal(0.0, 1.5), rng.normal(1.0, 0.05)
        t = np.arange(max(0, beat - spacing), min(points, beat + spacing)) - at
        shape = np.exp(-0.5 * (t / 2.5) ** 2) - 0.3 * np.exp(-0.5 * ((t - 7) / 3.0) ** 2)
        shape += 0.25 * np.exp(-0.5 * ((t - 28) / 6.0) ** 2)
        if odd:
            shape = -0.6 * np.exp(-0.5 * (t / 8.0) ** 2) + 0.25 * np.exp(-0.5 * ((t - 28) / 6.0) ** 2)
            anomalous[beat - 20 : beat + 20] = 1
        values[max(0, beat - spacing) : min(points, beat + spacing)] += strength * shape
    return AnomalySeries(
        name="pulses", spec="pulses", source="made here from a fixed seed", values=values.astype(np.float32),
        anomalous=anomalous, train_end=train_end, window=spacing,
    )  # fmt: skip
