"""Arrays of any origin -> LabelledDataset, after the checks that all that follows relies on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError
from cluster.tensors import DATATYPE_OF_NUMPY
from train_jobs.datasets.split import TEST_SHARE, stratified

Array = NDArray[np.generic]
Notify = Callable[[str], None]
PARTS = ("x_train", "y_train", "x_test", "y_test")
_TELLING = 600
"""On fewer test samples than about this, one more error than the trained model is too many to promise half a point."""


@dataclass(frozen=True)
class LabelledDataset:
    """Samples (N, ...) of one shape and datatype, and labels int64 (N,), 0 to K-1; `source` says where they came from.

    Our own pictures are uint8 (N, 1, 28, 28).
    """

    name: str
    source: str
    x_train: Array
    y_train: NDArray[np.int64]
    x_test: Array
    y_test: NDArray[np.int64]
    labels: tuple[str, ...]
    """The name of each class, by its number."""
    spec: str = ""
    """What `load` takes to have it again, from any folder; empty if it was made by hand."""

    @property
    def test_sha256(self) -> str:
        """Hash of the test samples and labels: which ones exactly an accuracy was measured on."""
        return hashlib.sha256(self.x_test.tobytes() + self.y_test.tobytes()).hexdigest()


def of_arrays(
    given: Mapping[str, Any], *, name: str, source: str, spec: str, notify: Notify | None = None
) -> LabelledDataset:
    """x_train, y_train, x_test and y_test, or x and y to be split; `labels`, if given, names the classes.

    Training samples are put in a fixed random order: the first of them calibrate quantization, and in a set that is
    sorted by class these would be of one class alone. Raises ConfigError naming the array, what is wrong with it and
    the way out.
    """
    parts = _parts(given, source, notify or (lambda line: None))
    labels = _labels(given.get("labels"), parts, source)
    order = np.random.default_rng(0).permutation(len(parts["y_train"]))
    dataset = LabelledDataset(
        name=name, source=source, spec=spec, labels=labels, y_test=parts["y_test"],
        y_train=parts["y_train"][order], x_train=np.ascontiguousarray(parts["x_train"][order]),
        x_test=np.ascontiguousarray(parts["x_test"]),
    )  # fmt: skip
    if notify is not None and len(dataset.y_test) < _TELLING:
        notify(
            f"{source}: {len(dataset.y_test)} test samples are few to tell variants apart by; with 1,000 or more, half "
            "a point of accuracy can be told"
        )
    return dataset


def _parts(given: Mapping[str, Any], source: str, notify: Notify) -> dict[str, Any]:
    """The four checked arrays, split if they were not."""
    if not given.keys() >= set(PARTS):
        if not given.keys() >= {"x", "y"}:
            raise ConfigError(
                f"{source} holds {', '.join(sorted(map(str, given))) or 'nothing'}; give {', '.join(PARTS)}, or x and "
                "y to be split, and labels if the classes have names"
            )
        x, y = _checked(given["x"], given["y"], ("x", "y"), source)
        train, test = stratified(y)
        notify(
            f"{source} comes in one part: {len(train):,} samples are for training and {len(test):,} "
            f"({TEST_SHARE:.0%} of each class) for the test, the same ones every time"
        )
        return {"x_train": x[train], "y_train": y[train], "x_test": x[test], "y_test": y[test]}
    parts: dict[str, Any] = {}
    for names in (("x_train", "y_train"), ("x_test", "y_test")):
        parts |= dict(zip(names, _checked(given[names[0]], given[names[1]], names, source), strict=True))
    x_train, x_test = parts["x_train"], parts["x_test"]
    if (x_train.dtype, x_train.shape[1:]) != (x_test.dtype, x_test.shape[1:]):
        raise ConfigError(
            f"{source}: x_train is {x_train.dtype} {list(x_train.shape)} and x_test {x_test.dtype} "
            f"{list(x_test.shape)}; a sample must look alike in both"
        )
    return parts


def _checked(x: Any, y: Any, names: tuple[str, str], source: str) -> tuple[Array, NDArray[np.int64]]:
    """Samples and labels of one part."""
    samples, labels = _array(x, f"{source}: {names[0]}"), _array(y, f"{source}: {names[1]}")
    _check_samples(samples, f"{source}: {names[0]}")
    what = f"{source}: {names[1]}"
    if labels.dtype.kind not in "uib":
        raise ConfigError(
            f"{what} is {labels.dtype}; labels must be whole numbers 0, 1, 2, ... (`.astype(np.int64)`), the names of "
            "the classes go into `labels`"
        )
    if labels.ndim != 1:
        raise ConfigError(
            f"{what} has shape {list(labels.shape)}; give one number for each sample (`.argmax(1)` if it is one-hot, "
            "`.ravel()` if it is a column)"
        )
    if len(samples) != len(labels):
        raise ConfigError(f"{source}: {names[0]} has {len(samples)} samples and {names[1]} {len(labels)} labels")
    if labels.min() < 0:
        raise ConfigError(f"{what} has label {labels.min()}; classes are counted from 0")
    return samples, labels.astype(np.int64)


def _array(value: Any, what: str) -> Array:
    """A numpy array of a torch tensor, a list or an array, in this machine's byte order."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise ConfigError(f"{what} cannot be made an array ({error}); all samples must have one shape") from error
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _check_samples(x: Array, what: str) -> None:
    if x.dtype.kind not in "uifb" or x.dtype not in DATATYPE_OF_NUMPY:
        raise ConfigError(f"{what} is {x.dtype}, which no model takes; give numbers of one shape, such as float32")
    if x.ndim < 2 or 0 in x.shape[1:]:
        raise ConfigError(f"{what} has shape {list(x.shape)}; give (samples, ...), for tables (samples, features)")
    if len(x) == 0:
        why = "an accuracy needs some" if "test" in what else "quantization is calibrated on them"
        raise ConfigError(f"{what} holds no samples, and {why}")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        bad = int(np.flatnonzero(~np.isfinite(x).reshape(len(x), -1).all(axis=1))[0])
        raise ConfigError(f"{what} holds NaN or infinity, first in sample {bad}; leave such samples out or fill in")


def _labels(given: Any, parts: dict[str, Any], source: str) -> tuple[str, ...]:
    """The names of the classes, their numbers where none are given."""
    highest = int(max(parts["y_train"].max(), parts["y_test"].max()))
    if given is None:
        labels = tuple(map(str, range(highest + 1)))
    else:
        flat = np.asarray(given).ravel().tolist()
        labels = tuple(each.decode() if isinstance(each, bytes) else str(each) for each in flat)
    if highest >= len(labels):
        raise ConfigError(f"{source} has label {highest} and names {len(labels)} classes, 0 to {len(labels) - 1}")
    if len(set(labels)) < len(labels):
        raise ConfigError(f"{source} names two classes alike in labels={list(labels)}; give each a name of its own")
    if len(labels) < 2:
        raise ConfigError(f"{source} has {len(labels)} class; a classifier tells at least two apart")
    if lacking := sorted(set(parts["y_test"].tolist()) - set(parts["y_train"].tolist())):
        raise ConfigError(
            f"{source} has no training sample of {labels[lacking[0]]!r}, which the test set asks for; add some"
        )
    return labels
