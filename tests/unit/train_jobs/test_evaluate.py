"""Figures that an independent count confirms, in every runtime, against the parent and against the trained model; each
family by its own judge."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import openvino as ov
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import beta
from torch import nn

from cluster import stats
from cluster.artifacts import ArtifactStore
from cluster.errors import InvalidRequest
from cluster.runtimes import RuntimeConfig, runtimes_for
from cluster.slo import AccuracyFloor
from cluster.variants import Pass, TensorSpec, Variant
from tests.unit.train_jobs.conftest import Built
from tests.unit.train_jobs.tasks.forecast_scenarios import MLP
from tests.unit.train_jobs.tasks.generative_scenarios import GAN as GAN_CONFIG
from train_jobs.compression.cast import to_bf16
from train_jobs.datasets import LabelledDataset, ett
from train_jobs.evaluate import Bench, evidence_of
from train_jobs.export import to_onnx
from train_jobs.judges import ClassifyJudge, ErrorJudge, FrechetJudge, Judge
from train_jobs.loop import TrainResult
from train_jobs.models import GAN
from train_jobs.tasks import AdversarialConfig
from train_jobs.tasks.adversarial import Adversarial
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


def judge_of(digits: LabelledDataset) -> ClassifyJudge:
    return ClassifyJudge(digits, inputs="image", outputs="logits")


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
    accuracy = judge_of(digits).accuracy(child, runtime="onnxruntime", parent=("p" * 16, child), root=("r" * 16, root))
    assert AccuracyFloor().verdict(accuracy) == verdict
    assert accuracy.to_root is not None
    assert accuracy.to_parent is not None
    assert (accuracy.to_root.value, accuracy.to_parent.value) == (pytest.approx(-wrong / 450), 0.0)


def test_the_batch_size_of_the_count_does_not_matter(built: Built, digits: LabelledDataset) -> None:
    variant, config = built.variants["int8"], RuntimeConfig(name="onnxruntime")
    whole, odd = (
        evidence_of(built.store, variant, judge_of(digits), config, batch_size=size) for size in (1000, 7)
    )
    assert whole.shape == (450,)
    np.testing.assert_array_equal(whole, odd)


def test_a_name_points_at_a_variant_once_its_accuracy_is_known_and_never_before(
    built: Built, digits: LabelledDataset, tmp_path_factory: pytest.TempPathFactory
) -> None:
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    told: list[str] = []
    fp32 = built.variants["fp32"]
    bench = Bench(store, judge_of(digits), told.append)
    fresh = Variant.model_validate(fp32.model_dump(exclude={"id", "files", "accuracies", "parent_id"}))
    with pytest.raises(InvalidRequest, match="cnn_digits/fp32 does not run on onnxruntime"):
        bench.add(fresh, {"model.onnx": b"broken"}, "onnxruntime")
    assert store.refs() == {}
    assert told == []
    made = bench.add(fresh, {"model.onnx": built.store.read(fp32, "model.onnx")}, "onnxruntime")
    assert store.refs() == {"cnn_digits/fp32": made.id}
    assert store.get("cnn_digits/fp32").accuracies == made.accuracies != ()


# Other families


def added(
    store: ArtifactStore, judge: Judge, module: nn.Module, inputs: TensorSpec, output: str
) -> tuple[Variant, Variant, list[str]]:
    """A module's graph, its bf16 one below it, and what was told."""
    told: list[str] = []
    bench = Bench(store, judge, told.append)
    graph = to_onnx(module, inputs, (output,))
    made = Variant(
        name="m/fp32", family="m", format="onnx", inputs=(inputs,), passes=(Pass(name="import_onnx"),),
        outputs=(TensorSpec(name=output, datatype="FP32", shape=(-1, 1)),),
    )  # fmt: skip
    root = bench.add(made, {"model.onnx": graph}, "onnxruntime")
    below = made.model_copy(update={"name": "m/bf16", "parent_id": root.id, "precision": "bf16"})
    return root, bench.add(below, {"model.onnx": to_bf16(graph)}, "onnxruntime"), told


def test_a_forecaster_is_measured_by_its_error(tmp_path: Path) -> None:
    task = MLP.task.build(MLP, ett.seasonal(280))
    model, test = task.model.float().eval(), task.parts.test
    lookback, channels = task.shapes["inputs"]
    judge = ErrorJudge(
        x=test.x.numpy(), y=test.y.numpy(), dataset="seasonal", inputs="window", output="forecast",
        scale=model.preprocess.std.numpy(), block=48,  # type: ignore[union-attr,operator]
    )  # fmt: skip
    window = TensorSpec(name="window", datatype="FP32", shape=(-1, lookback, channels))
    root, child, told = added(ArtifactStore(tmp_path), judge, model, window, "forecast")
    with torch.inference_mode():
        by_hand = task.findings(model).metrics["mse"]
    for accuracy in root.accuracies:
        assert (accuracy.metric, accuracy.higher_is_better, accuracy.correct) == ("mse", False, None)
        assert (accuracy.total, accuracy.dataset) == (len(test), "seasonal")
        assert accuracy.value == pytest.approx(by_hand, rel=1e-4)
    assert [accuracy.runtime for accuracy in child.accuracies] == ["onnxruntime", "openvino"]
    for accuracy in child.accuracies:
        assert accuracy.to_root is not None
        assert accuracy.to_root == accuracy.to_parent
        assert accuracy.to_root.relative
        assert abs(accuracy.to_root.value) < 0.05
        assert accuracy.to_root.worst_class_drop is None
    assert told[0].startswith(f"m/fp32: mse {by_hand:.4g} on {len(test)} test samples (onnxruntime, ")
    assert ": at most 5% above the trained model's error, " in told[1]


def test_a_generator_is_measured_by_the_distance_of_its_pictures(
    few_digits: LabelledDataset, tmp_path: Path
) -> None:
    config = GAN_CONFIG.model_copy(update={"precision": "fp32"})
    task = AdversarialConfig().build(config, few_digits)
    assert isinstance(task, Adversarial)
    assert isinstance(task.model, GAN)
    judge = FrechetJudge(task=task, dataset="digits", inputs="latent", output="image", seed=0)
    latent = TensorSpec(name="latent", datatype="FP32", shape=(-1, 6))
    root, child, told = added(ArtifactStore(tmp_path), judge, task.model.average, latent, "image")
    with torch.inference_mode():
        by_hand = task.findings(task.model.eval()).metrics["frechet"]
    assert root.accuracies[0].value == pytest.approx(by_hand, rel=1e-3)
    assert child.accuracies[0].to_root is not None
    assert child.accuracies[0].to_root.interval[0] < 0.1
    assert told[0].startswith("m/fp32: frechet ")


def test_a_graph_that_answers_with_nothing_is_left_out_with_the_reason(tmp_path: Path) -> None:
    """As what overflows in a smaller datatype would."""

    class Overflowing(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return torch.log(x - 1e9)

    x = np.ones((20, 2), np.float32)
    judge = ErrorJudge(x=x, y=x, dataset="d", inputs="x", output="y")
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
    store = ArtifactStore(tmp_path)
    with pytest.raises(InvalidRequest, match="m/fp32 does not run on onnxruntime: the graph answers 20 of 20 test"):
        added(store, judge, Overflowing(), spec, "y")
    assert store.refs() == {}
