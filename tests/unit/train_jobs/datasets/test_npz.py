"""A .npz file of the user's own, read without pickle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cluster.errors import ConfigError, DataUnavailable
from train_jobs import datasets
from train_jobs.datasets import LabelledDataset


@pytest.fixture
def path(tmp_path: Path, few_digits: LabelledDataset) -> Path:
    np.savez(
        tmp_path / "mine.npz", x_train=few_digits.x_train, y_train=few_digits.y_train, x_test=few_digits.x_test,
        y_test=few_digits.y_test, labels=np.array([f"digit {k}" for k in range(10)]), noted_by="me",
    )  # fmt: skip
    return tmp_path / "mine.npz"


def test_its_arrays_are_the_data_set(path: Path, few_digits: LabelledDataset) -> None:
    loaded = datasets.load(str(path))
    assert loaded.test_sha256 == few_digits.test_sha256
    assert sorted(loaded.y_train.tolist()) == sorted(few_digits.y_train.tolist())
    assert (loaded.name, loaded.labels[3]) == ("mine", "digit 3")


def test_its_spec_loads_the_same_from_another_folder(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded = datasets.load("mine.npz")
    assert loaded.spec == str(path.resolve())
    monkeypatch.chdir("/")
    assert datasets.load(loaded.spec).test_sha256 == loaded.test_sha256


def test_one_part_is_split_after_a_notice(tmp_path: Path, few_digits: LabelledDataset) -> None:
    np.savez(tmp_path / "one.npz", x=few_digits.x_train, y=few_digits.y_train)
    told: list[str] = []
    loaded = datasets.load(str(tmp_path / "one.npz"), notify=told.append)
    assert len(loaded.y_test) + len(loaded.y_train) == 160
    assert "one.npz comes in one part" in told[0]


def test_objects_which_only_a_pickle_could_carry_are_refused(tmp_path: Path, few_digits: LabelledDataset) -> None:
    labels: Any = np.array(["a", None], dtype=object)
    np.savez(tmp_path / "o.npz", x=few_digits.x_train, y=few_digits.y_train, labels=labels)
    with pytest.raises(ConfigError, match=r"o\.npz: labels holds Python objects"):
        datasets.load(str(tmp_path / "o.npz"))


def test_what_is_no_npz_is_refused(path: Path, tmp_path: Path) -> None:
    for content in (b"", b"no zip", path.read_bytes()[:5000]):
        (tmp_path / "broken.npz").write_bytes(content)
        with pytest.raises(DataUnavailable, match=r"broken\.npz cannot be read as \.npz"):
            datasets.load(str(tmp_path / "broken.npz"))
    with (tmp_path / "array.npz").open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataUnavailable, match=r"array\.npz cannot be read as \.npz"):
        datasets.load(str(tmp_path / "array.npz"))
    with pytest.raises(DataUnavailable, match=r"absent\.npz cannot be read"):
        datasets.load(str(tmp_path / "absent.npz"))
