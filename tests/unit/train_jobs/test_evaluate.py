"""Accuracies that an independent count confirms, in every runtime, against the parent and against the trained model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime as ort
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import beta

from cluster import stats
from cluster.artifacts import ArtifactStore
from cluster.errors import InvalidRequest
from cluster.runtimes import RuntimeConfig, runtimes_for
from cluster.slo import AccuracyFloor
from cluster.variants import Variant
from tests.unit.train_jobs.conftest import Built
from train_jobs.datasets import LabelledDataset
from train_jobs.evaluate import Bench, correct_flags, measured
from train_jobs.loop import TrainResult
from train_jobs.tasks.classify import correct

Flags = NDArray[np.bool_]
Logits = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


def by_onnxruntime(graph: bytes) -> Logits:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return lambda pictures: session.run(None, {"image": pictures})[0]  # type: ignore[no-any-return]


def by_openvino(graph: bytes) -> Logits:
    core = ov.Core()
    model = core.compile_model(core.read_model(model=graph, weights=b""), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda pictures: model(pictures)[0]  # type: ignore[no-any-return]


COUNTERS = {"onnxruntime": by_onnxruntime, "openvino": by_openvino}


def recounted(built: Built, name: str, runtime: str, digits: LabelledDataset) -> Flags:
    """Right or wrong, one picture at a time, by the executor itself."""
    logits = COUNTERS[runtime](built.store.read(built.variants[name], "model.onnx"))
    found = [int(np.argmax(logits(picture[None]))) for picture in digits.x_test]
    return np.asarray(np.asarray(found) == digits.y_test)


def test_every_variant_is_measured_in_every_runtime_that_executes_it(built: Built) -> None:
    for name, variant in built.variants.items():
        runtimes = [accuracy.runtime for accuracy in variant.accuracies]
        assert set(runtimes) == set(runtimes_for(variant.format))
        assert runtimes[0] == ("torch" if name == "fp32-torch" else "onnxruntime"), "what it was made for comes first"
        assert len(set(runtimes)) == len(runtimes)


def test_the_trained_module_s_accuracy_is_the_module_s(
    built: Built, trained: TrainResult, digits: LabelledDataset
) -> None:
    by_hand = correct(trained.model, torch.from_numpy(digits.x_test), torch.from_numpy(digits.y_test))
    (accuracy,) = built.variants["fp32-torch"].accuracies
    assert (accuracy.correct, accuracy.total, accuracy.value) == (by_hand, 450, by_hand / 450)
    assert (accuracy.to_parent, accuracy.to_root) == (None, None), "there is nothing to compare it with"


@pytest.mark.parametrize("runtime", sorted(COUNTERS))
@pytest.mark.parametrize("name", ["fp32", "int8", "pruned-int8"])
def test_the_accuracy_is_what_an_independent_count_finds(
    built: Built, digits: LabelledDataset, name: str, runtime: str
) -> None:
    accuracy = built.variants[name].accuracy_in(runtime)
    assert accuracy is not None
    count = int(recounted(built, name, runtime, digits).sum())
    assert (accuracy.correct, accuracy.total, accuracy.value) == (count, 450, count / 450)
    low, high = beta.ppf([0.025, 0.975], count + 0.5, 450 - count + 0.5)
    assert accuracy.interval == pytest.approx((low, high))
    assert (accuracy.dataset, accuracy.metric, accuracy.confidence) == ("digits", "accuracy", 0.95)


def drop(digits: LabelledDataset, other: Flags, child: Flags) -> float:
    return max(float(other[digits.y_test == c].mean() - child[digits.y_test == c].mean()) for c in range(10))


@pytest.mark.parametrize("runtime", sorted(COUNTERS))
def test_a_grandchild_is_compared_with_its_parent_and_with_the_trained_model_on_the_same_pictures(
    built: Built, trained: TrainResult, digits: LabelledDataset, runtime: str
) -> None:
    """Others are measured where they were made for; the variant itself in each of its runtimes."""
    accuracy = built.variants["pruned-int8"].accuracy_in(runtime)
    assert accuracy is not None
    child = recounted(built, "pruned-int8", runtime, digits)
    parent = recounted(built, "pruned", "onnxruntime", digits)
    with torch.inference_mode():
        root = trained.model(torch.from_numpy(digits.x_test)).argmax(1).numpy() == digits.y_test
    assert not np.array_equal(parent, root), "the two comparisons differ: otherwise this proves nothing"
    for difference, name, other in ((accuracy.to_parent, "pruned", parent), (accuracy.to_root, "fp32-torch", root)):
        assert difference is not None
        assert difference.other_id == built.variants[name].id
        assert difference.value == pytest.approx(child.mean() - other.mean())
        assert difference.interval == stats.paired_delta(other, child).interval
        assert difference.interval[0] <= difference.bounds[0] <= difference.value
        assert difference.value <= difference.bounds[1] <= difference.interval[1]
        assert difference.worst_class_drop == pytest.approx(drop(digits, other, child))


def test_exporting_costs_no_accuracy(built: Built) -> None:
    for accuracy in built.variants["fp32"].accuracies:
        assert accuracy.to_root is not None
        assert accuracy.to_root.value == 0.0, "ONNX computes what torch computes"
        assert accuracy.to_root == accuracy.to_parent


@pytest.mark.parametrize(("wrong", "verdict"), [(0, "holds"), (2, "unclear"), (60, "fails")])
def test_the_verdict_weighs_the_drop_from_the_root_against_the_number_of_pictures(
    digits: LabelledDataset, wrong: int, verdict: str
) -> None:
    root = np.ones(450, dtype=np.bool_)
    child = root.copy()
    child[:wrong] = False
    accuracy = measured(child, digits, runtime="onnxruntime", parent=("p" * 16, child), root=("r" * 16, root))
    assert AccuracyFloor().verdict(accuracy) == verdict
    assert accuracy.to_root is not None
    assert accuracy.to_parent is not None
    assert (accuracy.to_root.value, accuracy.to_parent.value) == (pytest.approx(-wrong / 450), 0.0)


def test_the_batch_size_of_the_count_does_not_matter(built: Built, digits: LabelledDataset) -> None:
    variant, config = built.variants["int8"], RuntimeConfig(name="onnxruntime")
    whole, odd = (
        correct_flags(built.store, variant, digits, config, batch_size=size) for size in (1000, 7)
    )
    assert whole.shape == (450,)
    np.testing.assert_array_equal(whole, odd)


def test_a_name_points_at_a_variant_once_its_accuracy_is_known_and_never_before(
    built: Built, digits: LabelledDataset, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    told: list[str] = []
    fp32 = built.variants["fp32"]
    bench = Bench(store, digits, told.append)
    fresh = Variant.model_validate(fp32.model_dump(exclude={"id", "files", "accuracies", "parent_id"}))
    with pytest.raises(InvalidRequest, match="cnn_digits/fp32 does not run on onnxruntime"):
        bench.add(fresh, {"model.onnx": b"broken"}, "onnxruntime")
    assert store.refs() == {}
    assert told == []
    made = bench.add(fresh, {"model.onnx": built.store.read(fp32, "model.onnx")}, "onnxruntime")
    assert store.refs() == {"cnn_digits/fp32": made.id}
    assert store.get("cnn_digits/fp32").accuracies == made.accuracies != ()
