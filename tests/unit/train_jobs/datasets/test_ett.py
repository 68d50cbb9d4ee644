"""Series to be forecast: what is read of a file, what is refused, and a stand-in that says that it is one."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ConfigError, DataUnavailable
from train_jobs.datasets import ett
from train_jobs.datasets.ett import SeriesDataset, seasonal

REAL = Path(os.environ.get("SLUICE_DATA_DIR", "none")) / "ett"


def write(folder: Path, rows: int = 14_410, *, header: str = "date,HUFL,OT", broken: str = "") -> Path:
    """A file in the layout of ETT, of two columns; whatever comes after row 14,400 is not numbers."""
    path = folder / "ett/ETTh1.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"2016-07-01 00:00:00,{i}.5,{-i}" for i in range(rows)]
    lines[14_400:] = ["not used"] * len(lines[14_400:])
    if broken:
        lines[77] = broken
    path.write_text("\n".join([header, *lines]) + "\n")
    return path


def test_the_file_is_what_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path)
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path))
    loaded = ett.load("etth1")
    assert (loaded.name, loaded.spec, loaded.source) == ("etth1", "etth1", str(path))
    assert (loaded.values.shape, loaded.values.dtype) == ((14_400, 2), np.float32)
    assert loaded.values[3].tolist() == [3.5, -3.0]
    assert loaded.columns == ("HUFL", "OT")
    assert loaded.borders == (8640, 11_520, 14_400), "12, 4 and 4 months of 30 days"


@pytest.mark.parametrize(
    ("broken", "rows", "message"),
    [
        ("2016-07-04 05:00:00,1.5,nonsense", 14_400, r"holds no rows date,value,... .*fetch it again"),
        ("2016-07-04 05:00:00,1.5,nan", 14_400, r"has 14,400 rows, 1 values of them not finite; .*fetch it again"),
        ("", 9_000, r"has 9,000 rows, 0 values .*needs 14,400 whole ones"),
    ],
)
def test_a_broken_file_is_refused(
    broken: str, rows: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, rows, broken=broken)
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path))
    with pytest.raises(DataUnavailable, match=message):
        ett.load("etth1", notify=print)


@pytest.mark.parametrize("spec", ["etth1", "etth2"])
def test_without_data_a_made_series_stands_in_after_a_notice(
    spec: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path))
    stand_in = ett.load(spec, notify=told.append)
    assert stand_in.name == stand_in.spec == "seasonal", "it does not pass for the real thing"
    assert not stand_in.published, "nobody published a figure for it"
    assert len(told) == 1
    for part in (spec, str(tmp_path), "made-up", "set SLUICE_DATA_DIR"):
        assert part in told[0]
    monkeypatch.delenv("SLUICE_DATA_DIR")
    with pytest.raises(DataUnavailable, match=f"{spec} is not to be had here: SLUICE_DATA_DIR is not set.*To go on"):
        ett.load(spec)


def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"dataset='fashion-mnist' is no series .* etth1, etth2, seasonal"):
        ett.load("fashion-mnist")


def test_the_made_series_is_the_same_every_time_and_has_a_day() -> None:
    one, again = ett.load("seasonal"), seasonal()
    assert np.array_equal(one.values, again.values)
    assert (one.values.shape, one.values.dtype) == ((3000, 3), np.float32)
    assert one.borders[-1] == len(one.values)
    x = one.values - one.values.mean(0)
    a_day_on = (x[24:] * x[:-24]).mean(0)
    half_a_day_on = (x[12:] * x[:-12]).mean(0)
    assert (a_day_on > half_a_day_on).all()


def real_or_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> SeriesDataset:
    """ETTh1 where SLUICE_DATA_DIR has it, else a file of its layout with seven columns of noise."""
    if not REAL.is_dir():
        rng = np.random.default_rng(0)
        path = write(folder, header="date,HUFL,HULL,MUFL,MULL,LUFL,LULL,OT")
        rows = ["d," + ",".join(map(str, row)) for row in rng.normal(size=(14_400, 7)).round(3)]
        path.write_text("\n".join([path.read_text().splitlines()[0], *rows]))
        monkeypatch.setenv("SLUICE_DATA_DIR", str(folder))
    return ett.load("etth1")


def test_etth1_is_the_one_that_is_published_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = real_or_written(tmp_path, monkeypatch)
    assert loaded.columns == ("HUFL", "HULL", "MUFL", "MULL", "LUFL", "LULL", "OT")
    assert loaded.values.shape == (14_400, 7)
    assert {h for figures in loaded.published[False].values() for h in figures} >= {24, 48, 168}
    informer = next(figures for name, figures in loaded.published[True].items() if name.startswith("Informer"))
    assert informer[168] == (0.183, 0.346)
    if REAL.is_dir():
        assert loaded.values[0].tolist() == pytest.approx([5.827, 2.009, 1.599, 0.462, 4.203, 1.340, 30.531], abs=1e-5)
