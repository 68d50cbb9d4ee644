"""Clothing in colour, from a folder in its layout (synthetic pictures) and, where it is there, from the real one."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cluster.errors import DataUnavailable
from train_jobs import datasets, recipes
from train_jobs.datasets.clothing import departments

CLASSES = ("dress", "hat", "longsleeve", "outwear", "pants", "shirt", "shoes", "shorts", "skirt", "t-shirt")
SIZES = (9, 3, 8, 7, 6, 5, 4, 3, 3, 10)
"""Pictures of each class in the synthetic set: the five largest are dress, longsleeve, outwear, pants, t-shirt."""
REAL = Path(os.environ.get("SLUICE_DATA_DIR", "")) / "clothing-small"


def forbid(line: str) -> None:
    raise AssertionError(f"nothing was to be told, but: {line}")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Synthetic pictures in the real set's layout; the first of each class is for validation, the second for the test.
    A picture's red is its class, its green its split."""
    y = np.repeat(np.arange(10), SIZES)
    nth = np.concatenate([np.arange(size) for size in SIZES])
    split = np.where(nth == 0, 1, np.where(nth == 1, 2, 0)).astype(np.int8)
    x = np.zeros((len(y), 32, 32, 3), np.uint8)
    x[..., 0], x[..., 1] = y[:, None, None] * 20, split[:, None, None] * 100
    (tmp_path / "clothing-small").mkdir()
    np.savez(tmp_path / "clothing-small/clothing-small-32.npz", x=x, y=y.astype(np.int8), split=split,
             classes=np.array(CLASSES))  # fmt: skip
    with zipfile.ZipFile(tmp_path / "clothing-small/clothing-small-224.zip", "w") as archive:
        for row, picture in enumerate(x):
            held = io.BytesIO()
            Image.fromarray(picture).resize((224, 224)).save(held, "JPEG", quality=95)
            where = ("train", "validation", "test")[split[row]]
            archive.writestr(f"{where}/{CLASSES[y[row]]}/{row}.jpg", held.getvalue())
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path))
    return tmp_path / "clothing-small"


@pytest.mark.usefixtures("folder")
def test_train_and_validation_are_for_training_and_channels_come_first() -> None:
    loaded = datasets.load("clothing")
    assert (loaded.name, loaded.spec, loaded.labels) == ("clothing", "clothing", CLASSES)
    assert loaded.x_train.shape == (48, 3, 32, 32)
    assert loaded.x_test.shape == (10, 3, 32, 32)
    assert loaded.x_train.dtype == np.uint8
    for x, y, splits in (
        (loaded.x_train, loaded.y_train, {0, 100}),
        (loaded.x_test, loaded.y_test, {200}),
    ):
        assert np.array_equal(x[:, 0, 0, 0] // 20, y)
        assert set(x[:, 1, 5, 5].tolist()) == splits
    assert sorted(loaded.y_test.tolist()) == list(range(10))
    assert loaded.y_train.tolist() != sorted(loaded.y_train.tolist()), "mixed: the first ones calibrate quantization"


@pytest.mark.usefixtures("folder")
def test_the_large_and_the_other_classes_share_all_of_them() -> None:
    large, rest = datasets.load("clothing-large"), datasets.load("clothing-rest")
    assert large.labels == ("dress", "longsleeve", "outwear", "pants", "t-shirt")
    assert rest.labels == ("hat", "shirt", "shoes", "shorts", "skirt")
    for part in (large, rest):
        numbers = np.array([CLASSES.index(label) for label in part.labels])
        assert np.array_equal(part.x_train[:, 0, 0, 0] // 20, numbers[part.y_train])
        assert sorted(part.y_test.tolist()) == list(range(5))
    assert len(large.y_train) + len(rest.y_train) == 48


@pytest.mark.usefixtures("folder")
def test_grey_pictures_are_as_fashion_mnist_s() -> None:
    loaded = datasets.load("clothing-gray28")
    assert loaded.x_test.shape == (10, 1, 28, 28)
    first = loaded.x_test[0, 0]
    expected = 0.299 * 20 * loaded.y_test[0] + 0.587 * 200
    assert np.abs(first - expected).max() <= 1


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("size", [64, 224])
def test_larger_pictures_come_from_the_archive(size: int) -> None:
    loaded, small = datasets.load(f"clothing-{size}"), datasets.load("clothing")
    assert loaded.x_train.shape == (48, 3, size, size)
    assert loaded.labels == small.labels
    assert np.array_equal(np.sort(loaded.y_train), np.sort(small.y_train))
    assert np.abs(loaded.x_test[:, 0, 9, 9].astype(int) - 20 * loaded.y_test).max() <= 4, "JPEG is not exact"


def test_without_it_the_digits_stand_in_after_a_notice_or_nothing_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setenv("SLUICE_DATA_DIR", str(tmp_path))
    assert datasets.load("clothing", notify=told.append).name == "digits"
    assert len(told) == 1
    for part in ("clothing is not to be had", "clothing-small-32.npz is not there", "digits", "set SLUICE_DATA_DIR"):
        assert part in told[0]
    monkeypatch.delenv("SLUICE_DATA_DIR")
    with pytest.raises(DataUnavailable, match=r"clothing-large .* SLUICE_DATA_DIR is not set.*set SLUICE_DATA_DIR to"):
        datasets.load("clothing-large")


def test_a_broken_file_is_an_error_and_no_reason_to_switch(folder: Path) -> None:
    for name, file in (("clothing", "clothing-small-32.npz"), ("clothing-64", "clothing-small-224.zip")):
        (folder / file).write_bytes((folder / file).read_bytes()[:500])
        with pytest.raises(DataUnavailable, match=r"cannot be read .*fetch it again"):
            datasets.load(name, notify=forbid)


@pytest.mark.skipif(not REAL.is_dir(), reason="SLUICE_DATA_DIR with clothing-small is not set; synthetic above")
def test_the_real_set_has_its_known_sizes() -> None:
    loaded = datasets.load("clothing")
    assert (len(loaded.y_train), len(loaded.y_test)) == (3068 + 341, 372)
    counts = np.bincount(np.concatenate([loaded.y_train, loaded.y_test]))
    assert (counts.max(), counts.min()) == (928, 136)
    assert (loaded.labels[int(counts.argmax())], loaded.labels[int(counts.argmin())]) == ("t-shirt", "skirt")
    means = np.stack([loaded.x_train[loaded.y_train == k].mean(0) for k in range(10)]).reshape(10, -1)
    off = ((loaded.x_test.reshape(372, 1, -1) - means) ** 2).sum(2)
    assert 0.15 < (off.argmin(1) == loaded.y_test).mean() < 0.25, "the nearest class mean gets a fifth right"


def test_departments_hold_all_clothes_and_no_digits() -> None:
    names, where = departments(CLASSES) or ((), ())
    assert dict(zip(CLASSES, (names[k] for k in where), strict=True)) == {
        "dress": "dresses", "hat": "accessories", "longsleeve": "tops", "outwear": "tops", "pants": "bottoms",
        "shirt": "tops", "shoes": "shoes", "shorts": "bottoms", "skirt": "bottoms", "t-shirt": "tops",
    }  # fmt: skip
    some = departments(("Bag", "Ankle boot", "T-shirt/top"))
    assert some == (("tops", "shoes", "accessories"), (2, 1, 0)), "only those that occur, so that all are learned"
    assert departments(("0", "1")) is None


def test_recipes_for_clothes_train_on_the_digits_where_they_have_to() -> None:
    assert recipes.on_dataset(recipes.recipe("cnn_clothing"), "digits") == recipes.cnn_digits()
    for name in ("resnet18_clothing", "transfer_clothing", "swa_fashion_mnist", "multitask_fashion_mnist"):
        config, given = recipes.on_dataset(recipes.recipe(name), "digits"), recipes.recipe(name)
        assert (config.recipe, config.dataset) == (f"{name}_on_digits", "digits")
        assert (config.model, config.transfer, config.average) == (given.model, given.transfer, given.average)
    multitask = recipes.on_dataset(recipes.recipe("multitask_fashion_mnist"), "digits").task
    assert multitask.heads == ("class", "rotation")  # type: ignore[union-attr]
