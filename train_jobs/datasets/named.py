"""The sets that Sluice knows by name: $SLUICE_DATA_DIR, else torchvision's download, else the embedded digits.

Clothing in colour (datasets/clothing.py) is not to be downloaded: it lies in $SLUICE_DATA_DIR, or the digits stand in.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np

from cluster.errors import DataUnavailable
from train_jobs.datasets import clothing
from train_jobs.datasets.idx import read_idx
from train_jobs.datasets.labelled import LabelledDataset
from train_jobs.datasets.standin import announce

NAMES = ("fashion-mnist", "mnist", "digits", *clothing.NAMES)
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


def from_name(name: str, *, notify: Callable[[str], None] | None) -> LabelledDataset:
    """One of NAMES; the digits stand in after saying so through `notify`, where there is somebody to tell.

    Raises DataUnavailable naming the reasons.
    """
    if name == "digits":
        return _digits()
    if name in clothing.NAMES:
        file = clothing.file_of(name)
        if file is not None and file.exists():
            return clothing.from_clothing(name, file, notify=notify)
        reason = f"{file} is not there" if file is not None else "SLUICE_DATA_DIR is not set"
        return _stand_in(name, reason, "clothing-small/ (clothing-small-32.npz, clothing-small-224.zip)", notify)
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
    return _stand_in(name, "; ".join(reasons), f"{name}/*.gz", notify)


def _stand_in(name: str, reason: str, files: str, notify: Callable[[str], None] | None) -> LabelledDataset:
    digits = "scikit-learn's embedded digits (1,797 pictures)"
    announce(name, reason, files=files, stand_in=digits, notify=notify)
    return _digits()


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
        spec=name,
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
        spec="digits",
    )
