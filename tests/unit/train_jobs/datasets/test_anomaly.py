"""Data with anomalies: which is which, what is trained on, and a stand-in that says that it is one."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ConfigError, DataUnavailable
from train_jobs.datasets import LabelledDataset, anomaly
from train_jobs.datasets.anomaly import AnomalySeries, one_class, period, pulses

ECG = Path(os.environ.get("SLUICE_DATA_DIR", "none")) / "anomaly/tsb-uad-ecg"


def test_one_class_trains_on_it_alone_and_calls_the_others_anomalous(digits: LabelledDataset) -> None:
    data = anomaly.load("digits-one-class-3")
    assert isinstance(data, LabelledDataset)
    assert data.name == data.spec == "digits-one-class-3"
    assert data.labels == ("normal", "anomalous")
    assert np.array_equal(data.x_train, digits.x_train[digits.y_train == 3])
    assert not data.y_train.any()
    assert np.array_equal(data.x_test, digits.x_test)
    assert np.array_equal(data.y_test == 0, digits.y_test == 3)


def test_a_class_that_is_none_is_refused_with_those_there_are(digits: LabelledDataset) -> None:
    with pytest.raises(ConfigError, match=r"digits-one-class-10: digits has classes 0 to 9 .*choose one"):
        one_class(digits, 10)


@pytest.mark.parametrize("spec", ["ecg805", "nab-machine-temperature"])
def test_without_data_the_pulses_stand_in_after_a_notice(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path))
    stand_in = anomaly.load(spec, notify=told.append)
    assert stand_in.name == stand_in.spec == "pulses", "it does not pass for the real thing"
    assert len(told) == 1
    for part in (spec, str(tmp_path), "embedded series", "planted", "set SLUICE_DATA_DIR"):
        assert part in told[0]
    monkeypatch.delenv("SLUICE_DATA_DIR")
    with pytest.raises(DataUnavailable, match=f"{spec} is not to be had here: SLUICE_DATA_DIR is not set.*To go on"):
        anomaly.load(spec)


def test_the_pulses_are_the_same_every_time_and_odd_only_where_nobody_trains() -> None:
    one, again = pulses(), pulses()
    assert np.array_equal(one.values, again.values)
    assert one.values.dtype == np.float32
    assert not one.anomalous[: one.train_end].any()
    assert 0.005 < one.anomalous.mean() < 0.05
    assert period(one.values) == pytest.approx(one.window, abs=1)


def test_the_period_is_found_and_noise_has_none() -> None:
    t = np.arange(5000)
    assert period(np.sin(2 * np.pi * t / 64).astype(np.float32)) == 64
    assert period(np.zeros(5000, np.float32)) == 125
    assert period(np.arange(5000, dtype=np.float32)) == 125


def write_ecg(folder: Path) -> AnomalySeries:
    """The pulses in the layout of TSB-UAD's files."""
    made = pulses(4000)
    folder.mkdir(parents=True)
    rows = [f"{value},{label}" for value, label in zip(made.values, made.anomalous, strict=True)]
    (folder / "MBA_ECG805_data.out").write_text("\n".join(rows))
    return made


def test_the_files_are_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = write_ecg(tmp_path / "anomaly/tsb-uad-ecg")
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path))
    loaded = anomaly.load("ecg805")
    assert isinstance(loaded, AnomalySeries)
    assert np.array_equal(loaded.values, made.values)
    assert np.array_equal(loaded.anomalous, made.anomalous)
    assert loaded.train_end == 400, "a tenth, as TSB-UAD has it"
    assert loaded.published["autoencoder"] == 0.857
    (tmp_path / "anomaly/tsb-uad-ecg/MBA_ECG805_data.out").write_text("1.0,0\nnonsense,1\n")
    with pytest.raises(DataUnavailable, match=r"holds no rows value,label .*fetch it again"):
        anomaly.load("ecg805")


def test_a_labelled_window_of_nab_holds_both_its_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In NAB's own layout, five minutes a point."""
    times = [f"2014-01-01 {h:02d}:{m:02d}:00" for h in range(24) for m in range(0, 60, 5)]
    data = tmp_path / "anomaly/nab/data/realKnownCause/machine_temperature_system_failure.csv"
    data.parent.mkdir(parents=True)
    data.write_text("timestamp,value\n" + "".join(f"{time},{i}.5\n" for i, time in enumerate(times)))
    labels = tmp_path / "anomaly/nab/labels/combined_windows.json"
    labels.parent.mkdir(parents=True)
    window = [["2014-01-01 01:00:00.000000", "2014-01-01 01:10:00.000000"]]
    labels.write_text(json.dumps({"realKnownCause/machine_temperature_system_failure.csv": window}))
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path))
    loaded = anomaly.load("nab-machine-temperature")
    assert isinstance(loaded, AnomalySeries)
    assert np.flatnonzero(loaded.anomalous).tolist() == [12, 13, 14]
    assert loaded.values[:3].tolist() == [0.5, 1.5, 2.5]
    labels.write_text("{}")
    with pytest.raises(DataUnavailable, match=r"broken.*fetch them again"):
        anomaly.load("nab-machine-temperature")


@pytest.mark.skipif(not ECG.is_dir(), reason="SLUICE_DATA_DIR with anomaly/tsb-uad-ecg is not set")
@pytest.mark.parametrize(
    ("spec", "window", "share"),
    [("ecg805", 99, 0.087673611), ("ecg806", 77, 0.022630208), ("ecg820", 100, 0.062439236)],
)
def test_the_records_have_the_windows_and_shares_that_tsb_uad_publishes(spec: str, window: int, share: float) -> None:
    loaded = anomaly.load(spec)
    assert isinstance(loaded, AnomalySeries)
    assert loaded.window == window
    assert loaded.anomalous.mean() == pytest.approx(share, abs=1e-9)
    assert (len(loaded.values), loaded.train_end) == (230_400, 23_040)


@pytest.mark.skipif(not ECG.is_dir(), reason="SLUICE_DATA_DIR with anomaly/nab is not set")
def test_the_machine_trains_before_its_first_failure() -> None:
    loaded = anomaly.load("nab-machine-temperature")
    assert isinstance(loaded, AnomalySeries)
    assert len(loaded.values) == 22_695
    assert not loaded.anomalous[: loaded.train_end].any()
    assert (np.diff(loaded.anomalous) == 1).sum() == 4
