"""Name -> pictures in memory. $SLUICE_DATA_DIR, else torchvision's download, else the embedded digits with a notice."""

from __future__ import annotations

import hashlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError, DataUnavailable
from train_jobs.datasets.idx import read_idx

__all__ = ["NAMES", "LabelledDataset", "load", "require"]

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
class LabelledDataset:
    """Pictures uint8 (N, 1, 28, 28) and labels int64 (N,); `source` says where they came from."""

    name: str
    source: str
    x_train: NDArray[np.uint8]
    y_train: NDArray[np.int64]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.int64]
    labels: tuple[str, ...]

    @property
    def test_sha256(self) -> str:
        """Hash of the test pictures and labels: which ones exactly an accuracy was measured on."""
        return hashlib.sha256(self.x_test.tobytes() + self.y_test.tobytes()).hexdigest()


def load(name: str, *, notify: Callable[[str], None] | None = None) -> LabelledDataset:
    """The data set; where it is not to be had, the embedded digits after saying so through `notify` (`.name` tells).

    Without `notify` there is nobody to tell, so nothing stands in: raises DataUnavailable naming the reasons. Also
    raises DataUnavailable for files that are there and broken, ConfigError for an unknown name.
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
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            reasons.append(f"the download failed ({reason})")
    problem = f"{name} is not to be had here: {'; '.join(reasons)}."
    way_out = f"set SLUICE_DATA_DIR to a folder with {name}/*.gz for the real thing."
    if notify is None:
        raise DataUnavailable(f"{problem} To go on, {way_out}")
    notify(f"{problem} Using scikit-learn's embedded digits (1,797 pictures) instead; {way_out}")
    return _digits()


def require(dataset: LabelledDataset, name: str) -> None:
    """Raise ConfigError unless `dataset` is the one that a config names: a stand-in must not pass for it."""
    if dataset.name != name:
        raise ConfigError(
            f"the config says dataset={name!r}, these pictures are {dataset.name!r} ({dataset.source}); "
            "bring the data (SLUICE_DATA_DIR) or train a recipe for what is there (cnn_digits)"
        )


def _from_files(name: str, folder: Path) -> LabelledDataset:
    arrays = {key: read_idx(folder / file) for key, file in _FILES.items()}
    for part in ("train", "test"):
        pictures, labels = arrays[f"x_{part}"], arrays[f"y_{part}"]
        if pictures.shape[1:] != (28, 28) or labels.shape != (len(pictures),):
            raise DataUnavailable(
                f"{folder}: {part} pictures {pictures.shape} and labels {labels.shape} do not belong together; "
                "fetch them again"
            )
        if labels.max(initial=0) >= len(_DIGITS):
            raise DataUnavailable(f"{folder}: {part} has label {labels.max()}; there are 10 classes; fetch it again")
    return LabelledDataset(
        name=name,
        source=str(folder),
        x_train=arrays["x_train"][:, None],
        y_train=arrays["y_train"].astype(np.int64),
        x_test=arrays["x_test"][:, None],
        y_test=arrays["y_test"].astype(np.int64),
        labels=_FASHION if name == "fashion-mnist" else _DIGITS,
    )


def _from_torchvision(name: str) -> LabelledDataset:
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


def _digits() -> LabelledDataset:
    from PIL import Image
    from sklearn.datasets import load_digits

    raw = load_digits()
    small = (raw.images * (255.0 / 16.0)).round().astype(np.uint8)
    pictures = np.stack([np.asarray(Image.fromarray(p).resize((28, 28), Image.Resampling.BILINEAR)) for p in small])
    labels = raw.target.astype(np.int64)
    order = np.random.default_rng(0).permutation(len(labels))
    test, train = order[:450], order[450:]
    return LabelledDataset(
        name="digits",
        source="scikit-learn load_digits, resized to 28x28",
        x_train=pictures[train][:, None],
        y_train=labels[train],
        x_test=pictures[test][:, None],
        y_test=labels[test],
        labels=_DIGITS,
    )
