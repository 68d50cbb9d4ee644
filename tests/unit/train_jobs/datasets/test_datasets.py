"""Where pictures come from: $SLUICE_DATA_DIR, a download, or the digits after a notice; never a silent switch."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from cluster.errors import ConfigError, DataUnavailable
from tests.unit.train_jobs.datasets.test_idx import write_idx
from train_jobs import datasets
from train_jobs.datasets import LabelledDataset
from train_jobs.models.layers import mean_and_std

DATA_DIR = os.environ.get("SLUICE_DATA_DIR", "")
has_mnist_and_fashion = all((Path(DATA_DIR) / name).is_dir() for name in ("mnist", "fashion-mnist")) and bool(DATA_DIR)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_OFFLINE", "1")
    monkeypatch.delenv("SLUICE_DATA_DIR", raising=False)


@pytest.fixture
def data_dir(tmp_path: Path, offline: None, monkeypatch: pytest.MonkeyPatch, few_digits: LabelledDataset) -> Path:
    """A folder in the layout of the original files, as `mnist`: real digits, few of them."""
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path))
    write_idx(tmp_path / "mnist/train-images-idx3-ubyte.gz", few_digits.x_train[:, 0])
    write_idx(tmp_path / "mnist/train-labels-idx1-ubyte.gz", few_digits.y_train.astype(np.uint8))
    write_idx(tmp_path / "mnist/t10k-images-idx3-ubyte.gz", few_digits.x_test[:, 0])
    write_idx(tmp_path / "mnist/t10k-labels-idx1-ubyte.gz", few_digits.y_test.astype(np.uint8))
    return tmp_path


def forbid(line: str) -> None:
    raise AssertionError(f"nothing was to be told, but: {line}")


def test_the_files_in_the_data_folder_are_what_is_loaded(data_dir: Path, few_digits: LabelledDataset) -> None:
    loaded = datasets.load("mnist", notify=forbid)
    assert loaded.name == "mnist"
    assert str(data_dir) in loaded.source
    for part in ("x_train", "y_train", "x_test", "y_test"):
        assert np.array_equal(getattr(loaded, part), getattr(few_digits, part))
        assert getattr(loaded, part).dtype == getattr(few_digits, part).dtype
    assert loaded.test_sha256 == few_digits.test_sha256


@pytest.mark.usefixtures("offline")
def test_without_data_the_digits_stand_in_after_a_notice_naming_what_and_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path))
    told: list[str] = []
    loaded = datasets.load("fashion-mnist", notify=told.append)
    assert loaded.name == "digits"
    assert len(told) == 1
    for part in ("fashion-mnist is not to be had", str(tmp_path), "train-images-idx3-ubyte.gz", "SLUICE_OFFLINE is set",
                 "digits", "set SLUICE_DATA_DIR"):  # fmt: skip
        assert part in told[0]


@pytest.mark.usefixtures("offline")
def test_with_nobody_to_tell_nothing_stands_in() -> None:
    with pytest.raises(DataUnavailable, match=r"mnist is not to be had .* SLUICE_OFFLINE .*set SLUICE_DATA_DIR"):
        datasets.load("mnist")


def test_one_missing_file_is_named(data_dir: Path) -> None:
    (data_dir / "mnist/t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(DataUnavailable, match=r"mnist lacks t10k-labels-idx1-ubyte\.gz; "):
        datasets.load("mnist")


def test_a_broken_file_is_an_error_and_no_reason_to_switch(data_dir: Path) -> None:
    path = data_dir / "mnist/t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(DataUnavailable, match=r"t10k-images-idx3-ubyte\.gz cannot be read"):
        datasets.load("mnist", notify=forbid)


def test_pictures_and_labels_that_do_not_belong_together_are_refused(data_dir: Path) -> None:
    write_idx(data_dir / "mnist/t10k-labels-idx1-ubyte.gz", np.zeros(3, dtype=np.uint8))
    with pytest.raises(DataUnavailable, match=r"test pictures .* and labels \(3,\) do not belong together"):
        datasets.load("mnist")


def test_a_label_beyond_the_ten_classes_is_refused(data_dir: Path, few_digits: LabelledDataset) -> None:
    write_idx(data_dir / "mnist/t10k-labels-idx1-ubyte.gz", np.full(len(few_digits.y_test), 10, dtype=np.uint8))
    with pytest.raises(DataUnavailable, match="label 10; there are 10 classes"):
        datasets.load("mnist")


def test_a_failed_download_is_a_reason_and_not_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLUICE_OFFLINE", raising=False)
    monkeypatch.delenv("SLUICE_DATA_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nothing listens on the discard port: no network, at once
    monkeypatch.setenv("no_proxy", "")
    told: list[str] = []
    assert datasets.load("mnist", notify=told.append).name == "digits"
    assert "the download failed" in told[0]


def test_an_unknown_name_is_refused_with_the_names_there_are() -> None:
    with pytest.raises(ConfigError, match="dataset='cifar' is unknown; Sluice knows fashion-mnist, mnist, digits"):
        datasets.load("cifar")


def test_the_digits_are_real_pictures_and_the_same_every_time(digits: LabelledDataset) -> None:
    assert digits.x_train.shape == (1347, 1, 28, 28)
    assert digits.x_test.shape == (450, 1, 28, 28)
    assert digits.x_train.dtype == np.uint8
    assert digits.x_train.max() == 255
    assert digits.y_train.dtype == np.int64
    assert set(digits.y_test.tolist()) == set(range(10))
    again = datasets.load("digits", notify=forbid)
    assert np.array_equal(digits.x_train, again.x_train)
    assert digits.test_sha256 == again.test_sha256
    train, test = ({picture.tobytes() for picture in part} for part in (digits.x_train, digits.x_test))
    assert not train & test, "no test picture is trained on"


def test_a_stand_in_does_not_pass_for_the_data_set_of_a_config(digits: LabelledDataset) -> None:
    datasets.require(digits, "digits")
    with pytest.raises(ConfigError, match="dataset='mnist', these samples are 'digits'"):
        datasets.require(digits, "mnist")


@pytest.mark.skipif(not has_mnist_and_fashion, reason="SLUICE_DATA_DIR with mnist and fashion-mnist is not set")
@pytest.mark.parametrize(("name", "mean", "std"), [("mnist", 0.1307, 0.3081), ("fashion-mnist", 0.2860, 0.3530)])
def test_the_real_sets_have_their_known_sizes_and_statistics(name: str, mean: float, std: float) -> None:
    loaded = datasets.load(name, notify=forbid)
    assert loaded.x_train.shape == (60_000, 1, 28, 28)
    assert loaded.x_test.shape == (10_000, 1, 28, 28)
    assert np.bincount(loaded.y_test, minlength=10).min() > 800
    assert mean_and_std(torch.from_numpy(loaded.x_train)) == pytest.approx((mean, std), abs=5e-5)
