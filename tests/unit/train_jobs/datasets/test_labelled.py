"""What arrays must be, whoever gives them; each refusal names the array, what is wrong and the way out."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_iris

from cluster.errors import ConfigError
from train_jobs.datasets.labelled import LabelledDataset, of_arrays


@pytest.fixture(scope="module")
def flowers() -> dict[str, Any]:
    """Fisher's irises, sorted by class as they come: float64 (150, 4), three classes of 50."""
    raw = load_iris()
    return {"x": raw.data, "y": raw.target, "labels": raw.target_names}


@pytest.fixture(scope="module")
def parts(flowers: dict[str, Any]) -> dict[str, Any]:
    x, y = flowers["x"].astype(np.float32), flowers["y"]
    return {"x_train": x[::2], "y_train": y[::2], "x_test": x[1::2], "y_test": y[1::2]}


def made(given: dict[str, Any], told: list[str] | None = None) -> LabelledDataset:
    return of_arrays(given, name="iris", source="here", spec="iris.npz", notify=None if told is None else told.append)


def test_samples_keep_their_datatype_and_shape_and_labels_become_int64(parts: dict[str, Any]) -> None:
    dataset = made(parts | {"y_train": parts["y_train"].astype(np.uint8)})
    assert (dataset.x_train.dtype, dataset.x_train.shape) == (np.float32, (75, 4))
    assert np.array_equal(dataset.x_test, parts["x_test"])
    assert np.array_equal(dataset.y_test, parts["y_test"])
    assert dataset.y_train.dtype == dataset.y_test.dtype == np.int64
    assert dataset.labels == ("0", "1", "2"), "classes without names are called by their numbers"
    assert (dataset.name, dataset.source, dataset.spec) == ("iris", "here", "iris.npz")


def test_training_samples_of_sorted_classes_are_mixed_and_keep_their_labels(parts: dict[str, Any]) -> None:
    dataset = made(parts)
    assert set(dataset.y_train[:12].tolist()) == {0, 1, 2}, "the first samples calibrate quantization"
    before = {(row.tobytes(), int(label)) for row, label in zip(parts["x_train"], parts["y_train"], strict=True)}
    after = {(row.tobytes(), int(label)) for row, label in zip(dataset.x_train, dataset.y_train, strict=True)}
    assert after == before
    assert np.array_equal(made(parts).x_train, dataset.x_train), "in the same order every time"


def test_one_part_is_split_and_that_is_told(flowers: dict[str, Any]) -> None:
    told: list[str] = []
    dataset = made(flowers, told)
    assert (len(dataset.y_train), len(dataset.y_test)) == (120, 30)
    assert np.bincount(dataset.y_test).tolist() == [10, 10, 10]
    assert dataset.labels == ("setosa", "versicolor", "virginica")
    assert "120 samples are for training and 30 (20% of each class) for the test" in told[0]
    assert "30 test samples are few" in told[1]
    assert made(flowers).test_sha256 == dataset.test_sha256


def test_torch_tensors_lists_and_foreign_byte_orders_are_arrays_too(parts: dict[str, Any]) -> None:
    as_tensor = torch.from_numpy(parts["x_train"]).requires_grad_()
    dataset = made(
        parts | {"x_train": as_tensor, "y_train": parts["y_train"].tolist(), "x_test": parts["x_test"].astype(">f4")}
    )
    assert np.array_equal(dataset.x_test, parts["x_test"])
    assert dataset.x_test.dtype.isnative
    assert dataset.test_sha256 == made(parts).test_sha256


def with_nan(x: np.ndarray) -> np.ndarray:
    changed = x.copy()
    changed[3, 1] = np.nan
    return changed


REFUSED: dict[str, tuple[Any, str]] = {
    "missing": (lambda p: {"x_train": p["x_train"], "labels": ["a"]}, r"here holds labels, x_train; give x_train"),
    "empty": (lambda p: {}, "here holds nothing; give x_train"),
    "lengths": (lambda p: p | {"y_test": p["y_test"][:5]}, "x_test has 75 samples and y_test 5 labels"),
    "float labels": (lambda p: p | {"y_train": p["y_train"] * 1.0}, r"y_train is float64; .*astype\(np.int64\)"),
    "names as labels": (lambda p: p | {"y_train": p["y_train"].astype(str)}, "y_train is <U21; .*go into `labels`"),
    "one-hot labels": (lambda p: p | {"y_test": np.eye(3, dtype=int)[p["y_test"]]}, r"y_test has shape .*argmax"),
    "counted from 1": (lambda p: p | {"labels": list("abc"), "y_test": p["y_test"] + 1}, "has label 3 and names 3 cla"),
    "negative": (lambda p: p | {"y_test": p["y_test"] - 1}, "y_test has label -1; classes are counted from 0"),
    "NaN": (lambda p: p | {"x_train": with_nan(p["x_train"])}, "x_train holds NaN or infinity, first in sample 3"),
    "no training": (lambda p: p | {"x_train": p["x_train"][:0], "y_train": []}, "x_train holds no samples.*calibrated"),
    "no test": (lambda p: p | {"x_test": p["x_test"][:0], "y_test": p["y_test"][:0]}, "x_test holds no samples.*accur"),
    "datatypes": (lambda p: p | {"x_test": p["x_test"].astype(np.float64)}, r"float32 \[75, 4\] and x_test float64"),
    "shapes": (lambda p: p | {"x_test": p["x_test"][:, :3]}, r"x_test float32 \[75, 3\]; a sample must look alike"),
    "text": (lambda p: p | {"x_test": p["x_test"].astype(str)}, "x_test is <U32, which no model takes"),
    "ragged": (lambda p: p | {"x_test": [[1.0], [1.0, 2.0]]}, "x_test cannot be made an array"),
    "flat": (lambda p: p | {"x_train": p["x_train"][:, 0]}, r"x_train has shape \[75\]; give \(samples, ...\)"),
    "one class": (lambda p: p | {"y_train": p["y_train"] * 0, "y_test": p["y_test"] * 0}, "has 1 class; a classifier"),
    "twice": (lambda p: p | {"labels": ["a", "b", "a"]}, r"names two classes alike in labels=\['a', 'b', 'a'\]"),
    "untrained class": (lambda p: p | {"y_train": p["y_train"].clip(0, 1)}, "no training sample of '2'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_used_is_refused(parts: dict[str, Any], case: str) -> None:
    change, message = REFUSED[case]
    with pytest.raises(ConfigError, match=message):
        made(change(parts))
