"""Name -> pictures in memory. $SLUICE_DATA_DIR, else torchvision's download, else the embedded digits with a notice."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError, DataUnavailable
from train_jobs.datasets.idx import read_idx

__all__ = ["NAMES", "PictureDataset", "load"]

NAMES = ("fashion-mnist", "mnist", "digits")
_FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_DIGITS = tuple(str(d) for d in range(10))
_FILES = {
    "x_train": "train-images-idx3-ubyte.gz",
    "y_train": "train-labels-idx1-ubyte.gz",
    "x_test": "t10k-images-idx3-ubyte.gz",
    "y_test": "t10k-labels-idx1-ubyte.gz",
}


@dataclass(frozen=True)
class PictureDataset:
    """Pictures uint8 (N, 1, 28, 28) and labels int64 (N,); `source` says where they came from."""

    name: str
    source: str
    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    labels: tuple[str, ...]


def load(name: str, *, notify: Callable[[str], None] = print) -> PictureDataset:
    """The data set, or the embedded digits after saying so through `notify`; `.name` tells which it is.

    Raises ConfigError for an unknown name, DataUnavailable for files that are there and broken.
    """
    if name not in NAMES:
        raise ConfigError(f"dataset={name!r} is unknown; Sluice knows {', '.join(NAMES)}")
    if name == "digits":
        return _digits()
    reasons = []
    if folder := os.environ.get("SLUICE_DATA_DIR"):
        missing = [f for f in _FILES.values() if not (Path(folder) / name / f).exists()]
        if not missing:
            return _from_files(name, Path(folder) / name)
        reasons.append(f"{Path(folder) / name} lacks {', '.join(missing)}")
    if os.environ.get("SLUICE_OFFLINE"):
        reasons.append("SLUICE_OFFLINE is set, so nothing is downloaded")
    else:
        try:
            return _from_torchvision(name)
        except (OSError, RuntimeError) as error:
            reasons.append(f"the download failed ({str(error).splitlines()[0] if str(error) else type(error).__name__})")
    notify(
        f"{name} is not to be had here: {'; '.join(reasons)}. Using scikit-learn's embedded digits (1,797 pictures) "
        f"instead; set SLUICE_DATA_DIR to a folder with {name}/*.gz for the real thing."
    )
    return _digits()


def _from_files(name: str, folder: Path) -> PictureDataset:
    arrays = {key: read_idx(folder / file) for key, file in _FILES.items()}
    for part in ("train", "test"):
        pictures, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if pictures.shape[1:] != (28, 28) or labels.shape != (len(pictures),):
            raise DataUnavailable(
                f"{folder}: {part} pictures {pictures.shape} and labels {labels.shape} do not belong together"
            )
    return PictureDataset(
        name=name,
        source=str(folder),
        x_train=arrays["x_train"][:, None],
        y_train=arrays["y_train"].astype(np.int64),
        x_test=arrays["x_test"][:, None],
        y_test=arrays["y_test"].astype(np.int64),
        labels=_FASHION if name == "fashion-mnist" else _DIGITS,
    )


def _from_torchvision(name: str) -> PictureDataset:
    from torchvision import datasets as vision

    root = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sluice/data"
    source = vision.FashionMNIST if name == "fashion-mnist" else vision.MNIST
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(10.0)  # without a network, say so soon
    try:
        source(str(root), download=True)
    finally:
        socket.setdefaulttimeout(before)
    return _from_files(name, root / source.__name__ / "raw")


def _digits() -> PictureDataset:
    from PIL import Image
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = (raw.images * (255.0 / 16.0)).round().astype(np.uint8)
    pictures = np.stack([np.asarray(Image.fromarray(p).resize((28, 28), Image.Resampling.BILINEAR)) for p in small])
    labels = raw.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:450], order[450:]
    return PictureDataset(
        name="digits",
        source="scikit-learn load_digits, resized to 28x28",
        x_train=pictures[train][:, None],
        y_train=labels[train],
        x_test=pictures[test][:, None],
        y_test=labels[test],
        labels=_DIGITS,
    )
