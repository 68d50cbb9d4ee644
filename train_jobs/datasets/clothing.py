"""Clothing in colour: 3,781 photographs of products in 10 classes, in several sizes and cuts.

    clothing          uint8 (3, 32, 32): $SLUICE_DATA_DIR/clothing-small/clothing-small-32.npz
    clothing-64, clothing-224    the same, larger: clothing-small-224.zip beside it
    clothing-gray28   grey (1, 28, 28): what a model of Fashion-MNIST takes
    clothing-large, clothing-rest    the five classes with most photographs, and the five others

The data set is Grigorev's clothing-dataset-small (CC0 1.0); its train and validation parts are for training here, and a
run keeps samples of its own for validation. The departments below are ours.
"""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import DataUnavailable
from train_jobs.datasets.labelled import LabelledDataset, Notify, of_arrays

NAMES = ("clothing", "clothing-64", "clothing-224", "clothing-gray28", "clothing-large", "clothing-rest")
_FOLDER = "clothing-small"
_ARRAYS, _PICTURES = "clothing-small-32.npz", "clothing-small-224.zip"
_TEST = 2
_SIZES = {"clothing-64": 64, "clothing-224": 224}
_LARGE = 5
"""Classes in clothing-large."""

_DEPARTMENTS: Mapping[str, tuple[str, ...]] = {
    "tops": ("t-shirt/top", "pullover", "coat", "shirt", "longsleeve", "outwear", "t-shirt"),
    "bottoms": ("trouser", "pants", "shorts", "skirt"),
    "dresses": ("dress",),
    "shoes": ("sandal", "sneaker", "ankle boot", "shoes"),
    "accessories": ("bag", "hat"),
}
"""Where a shop keeps the classes of Fashion-MNIST and of this set."""


def departments(labels: Sequence[str]) -> tuple[tuple[str, ...], tuple[int, ...]] | None:
    """The departments that these classes lie in, and the number of each class's; None if they are no clothes."""
    where = {label: name for name, members in _DEPARTMENTS.items() for label in members}
    found = [where.get(label.lower()) for label in labels]
    if None in found:
        return None
    names = tuple(name for name in _DEPARTMENTS if name in found)
    return names, tuple(names.index(str(name)) for name in found)


def file_of(name: str) -> Path | None:
    """The file that one of NAMES is read from, there or not; None where SLUICE_DATA_DIR is not set."""
    if not (base := os.environ.get("SLUICE_DATA_DIR")):
        return None
    return Path(base) / _FOLDER / (_PICTURES if name in _SIZES else _ARRAYS)


def from_clothing(name: str, path: Path, *, notify: Notify | None) -> LabelledDataset:
    """One of NAMES, from its file. Raises DataUnavailable if that is not what it was."""
    size = _SIZES.get(name)
    try:
        x, y, split, labels = _of_zip(path, size) if size else _of_arrays(path)
    except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise DataUnavailable(f"{path} cannot be read ({error}); fetch it again") from error
    if name == "clothing-gray28":
        x = _gray(x)
    if name in ("clothing-large", "clothing-rest"):
        x, y, split, labels = _some(x, y, split, labels, large=name == "clothing-large")
    x_NCHW, test = x.transpose(0, 3, 1, 2), split == _TEST
    arrays = {
        "x_train": x_NCHW[~test], "y_train": y[~test], "x_test": x_NCHW[test], "y_test": y[test], "labels": labels,
    }  # fmt: skip
    return of_arrays(arrays, name=name, source=str(path), spec=name, notify=notify)


_Raw = tuple[NDArray[np.uint8], NDArray[np.int64], NDArray[np.uint8], list[str]]
"""x (N, H, W, C), y, split (0 train, 1 validation, 2 test), names of the classes."""


def _of_arrays(path: Path) -> _Raw:
    with np.load(path, allow_pickle=False) as kept:
        labels = [str(name) for name in kept["classes"]]
        return kept["x"], kept["y"].astype(np.int64), kept["split"].astype(np.uint8), labels


def _of_zip(path: Path, size: int) -> _Raw:
    from PIL import Image

    splits = ("train", "validation", "test")
    with zipfile.ZipFile(path) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        placed = [name.split("/")[-3:-1] for name in names]
        labels = sorted({label for _, label in placed})
        pictures = np.empty((len(names), size, size, 3), np.uint8)
        for row, name in enumerate(names):
            picture = Image.open(io.BytesIO(archive.read(name)))
            picture.draft("RGB", (size, size))  # decode no more pixels than are needed
            fitting = picture.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            pictures[row] = np.asarray(fitting)
    y = np.array([labels.index(label) for _, label in placed], np.int64)
    return pictures, y, np.array([splits.index(split) for split, _ in placed], np.uint8), labels


def _gray(x_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey (N, 28, 28, 1), as bright as PIL has it (ITU-R 601-2)."""
    from PIL import Image

    def one(picture: NDArray[np.uint8]) -> Any:
        return Image.fromarray(picture).convert("L").resize((28, 28), Image.Resampling.BILINEAR)

    return np.stack([np.asarray(one(picture)) for picture in x_NHWC])[..., None]


def _some(
    x: NDArray[np.uint8], y: NDArray[np.int64], split: NDArray[np.uint8], labels: list[str], *, large: bool
) -> _Raw:
    """Half of the classes, by how many photographs there are to train on; counted anew, in alphabetical order."""
    counts = np.bincount(y[split != _TEST], minlength=len(labels))
    by_size = np.argsort(-counts, kind="stable")
    chosen = sorted((by_size[:_LARGE] if large else by_size[_LARGE:]).tolist(), key=lambda label: labels[label])
    new = np.full(len(labels), -1)
    new[chosen] = np.arange(len(chosen))
    rows = new[y] >= 0
    return x[rows], new[y[rows]], split[rows], [labels[label] for label in chosen]
