"""A folder of pictures: its classes, its splits, one size and one kind of pixels, and what is said of the odd one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.errors import ConfigError, DataUnavailable
from train_jobs import datasets
from train_jobs.datasets import LabelledDataset


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(pixels)
    (picture.convert(mode) if mode else picture).save(path)


@pytest.fixture
def root(tmp_path: Path, digits: LabelledDataset) -> Path:
    """CLASS/*.png: ten real digits of each of three classes, named out of order."""
    folder = tmp_path / "written"
    for label, name in ((0, "nought"), (1, "one"), (2, "couple")):
        for number, picture in enumerate(digits.x_train[digits.y_train == label][:10]):
            save(folder / name / f"{number:02}.png", picture[0])
    return folder


@pytest.fixture
def in_splits(tmp_path: Path, root: Path) -> Path:
    folder = tmp_path / "in_splits"
    for name in ("nought", "one", "couple"):
        for number, path in enumerate(sorted((root / name).iterdir())):
            split = "test" if number >= 7 else "val" if number >= 5 else "train"
            (folder / split / name).mkdir(parents=True, exist_ok=True)
            path.rename(folder / split / name / path.name)
    return folder


def test_classes_are_the_folders_in_order_and_the_split_is_told(root: Path, digits: LabelledDataset) -> None:
    told: list[str] = []
    loaded = datasets.load(str(root), notify=told.append)
    assert loaded.labels == ("couple", "nought", "one")
    assert (loaded.x_train.shape, loaded.x_test.shape) == ((24, 1, 28, 28), (6, 1, 28, 28))
    assert loaded.x_train.dtype == np.uint8
    assert "24 samples are for training and 6" in told[0]
    numbers = {p.tobytes(): int(y) for p, y in zip(digits.x_train, digits.y_train, strict=True)}
    for picture, label in zip(loaded.x_test, loaded.y_test, strict=True):
        assert numbers[picture.tobytes()] == {"couple": 2, "nought": 0, "one": 1}[loaded.labels[label]]
    assert datasets.load(str(root)).test_sha256 == loaded.test_sha256


def test_splits_are_taken_as_they_are_and_val_trains(in_splits: Path) -> None:
    told: list[str] = []
    loaded = datasets.load(str(in_splits), notify=told.append)
    assert (len(loaded.y_train), len(loaded.y_test)) == (21, 9)
    assert not any("one part" in line for line in told)


def test_the_spec_has_it_again_from_another_folder(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(root.parent)
    loaded = datasets.load("written?size=16x14&mode=RGB")
    assert loaded.x_test.shape == (6, 3, 14, 16), "width x height in the spec, height before width in the array"
    assert loaded.spec == f"{root.resolve()}?size=16x14&mode=RGB"
    assert loaded.name == "written"
    monkeypatch.chdir("/")
    assert datasets.load(loaded.spec).test_sha256 == loaded.test_sha256


def test_colour_pictures_have_three_channels_and_gray_ones_among_them_too(root: Path) -> None:
    red = np.zeros((28, 28, 3), np.uint8)
    red[..., 0] = 200
    save(root / "couple" / "00.png", red)
    loaded = datasets.load(str(root))
    assert loaded.x_train.shape[1:] == (3, 28, 28)
    pictures = [*loaded.x_train, *loaded.x_test]
    assert sum(np.array_equal(p, red.transpose(2, 0, 1)) for p in pictures) == 1
    assert sum(np.array_equal(p[0], p[1]) for p in pictures) == 29


def test_a_colour_picture_among_gray_ones_is_named(root: Path) -> None:
    save(root / "one" / "05.png", np.zeros((28, 28, 3), np.uint8))
    with pytest.raises(ConfigError, match=r"one/05\.png has colours and .*couple/00\.png has none; .*\?mode=RGB"):
        datasets.load(str(root))
    assert datasets.load(f"{root}?mode=L").x_test.shape[1] == 1


def test_the_picture_of_another_size_is_named_with_the_way_out(root: Path) -> None:
    save(root / "one" / "05.png", np.zeros((20, 30), np.uint8))
    with pytest.raises(ConfigError, match=r"one/05\.png has 30x20 pixels and .*00\.png 28x28; .*\?size=28x28"):
        datasets.load(str(root))
    assert datasets.load(f"{root}?size=28x28").x_test.shape == (6, 1, 28, 28)


def test_what_is_no_picture_is_left_out_by_its_name_and_refused_by_its_content(root: Path) -> None:
    (root / "one" / "notes.txt").write_text("not a picture")
    (root / "one" / ".hidden.png").write_text("not a picture")
    assert len(datasets.load(str(root)).y_train) == 24
    (root / "one" / "06.png").write_bytes(b"not a picture")
    with pytest.raises(DataUnavailable, match=r"one/06\.png is no picture that can be read"):
        datasets.load(str(root))


def test_sixteen_bits_are_not_cut_to_eight(root: Path) -> None:
    save(root / "one" / "05.png", np.full((28, 28), 40_000, np.uint16))
    with pytest.raises(ConfigError, match=r"one/05\.png has pixels of kind I;16"):
        datasets.load(str(root))


@pytest.mark.parametrize("query", ["", "size=28", "size=0x5", "size=big", "mode=CMYK", "colour=1", "size=28x28&x=1"])
def test_a_query_that_is_not_understood_is_refused(root: Path, query: str) -> None:
    with pytest.raises(ConfigError, match=r"is not understood; write \?size=64x64"):
        datasets.load(f"{root}?{query}")


def test_folders_of_another_layout_are_refused(root: Path, in_splits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="written/couple holds no pictures"):
        datasets.load(str(root))  # all of its own went into the splits
    (tmp_path / "bare").mkdir()
    with pytest.raises(ConfigError, match="bare has no folder for each class"):
        datasets.load(str(tmp_path / "bare"))
    (in_splits / "extra").mkdir()
    with pytest.raises(ConfigError, match="has extra beside train and test"):
        datasets.load(str(in_splits))
    (in_splits / "extra").rmdir()
    (in_splits / "test").rename(tmp_path / "test")
    with pytest.raises(ConfigError, match="has a folder train, val and no test"):
        datasets.load(str(in_splits))
    with pytest.raises(DataUnavailable, match="there is no folder"):
        datasets.load(str(tmp_path / "absent"))


def test_a_picture_that_lies_on_its_side_is_turned_as_its_exif_says(root: Path) -> None:
    pixels = np.arange(14 * 28, dtype=np.uint16).reshape(14, 28).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in root.rglob("*.png"):
        Image.fromarray(pixels).save(path, exif=exif)
    loaded = datasets.load(str(root))
    np.testing.assert_array_equal(loaded.x_train[0, 0], np.rot90(pixels, -1))
