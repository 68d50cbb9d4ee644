"""Variants end to end on real digits: complete manifests, and accuracies that an independent count confirms."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from scipy.stats import beta

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError
from cluster.variants import Variant
from train_jobs.compression.quantize import QuantizeConfig, quantize
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.evaluate import build_variants, judge
from train_jobs.loop import TrainResult, correct


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def variants(
    store: ArtifactStore, told: list[str], trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset
) -> list[Variant]:
    return build_variants(store, trained.model, quick_config, digits, notify=told.append)


def test_the_lineage_runs_from_the_torch_program_over_onnx_to_int8(variants: list[Variant]) -> None:
    eager, fp32, int8 = variants
    assert [v.name for v in variants] == ["cnn_digits/fp32-torch", "cnn_digits/fp32", "cnn_digits/int8"]
    assert [v.format for v in variants] == ["torch_export", "onnx", "onnx"]
    assert (eager.parent_id, fp32.parent_id, int8.parent_id) == (None, eager.id, fp32.id)
    assert [step.name for v in variants for step in v.passes] == ["train", "export_onnx", "quantize_static_int8"]
    assert int8.passes[0].params == QuantizeConfig().model_dump(mode="json")
    assert int8.passes[0].params["per_channel"] is True


def test_every_manifest_says_what_goes_in_and_out_and_how_it_is_prepared(
    variants: list[Variant], quick_config: TrainConfig, digits: LabelledDataset
) -> None:
    for variant in variants:
        (entry,), (result,) = variant.inputs, variant.outputs
        assert (entry.name, entry.datatype, entry.shape) == ("image", "UINT8", (-1, 1, 28, 28))
        assert (result.name, result.datatype, result.shape) == ("logits", "FP32", (-1, 10))
        assert variant.labels == tuple("0123456789")
        assert variant.preprocessing.startswith("uint8 0..255 -> (x / 255 - 0.3")
        assert "inside the graph" in variant.preprocessing
        assert TrainConfig.model_validate(variant.provenance["config"]) == quick_config
        assert variant.provenance["dataset"] == {"name": "digits", "test_sha256": digits.test_sha256}
        assert variant.provenance["made_on"]["libraries"]["torch"] == torch.__version__.split("+")[0]


def test_the_store_gives_each_back_by_name_with_verified_bytes(store: ArtifactStore, variants: list[Variant]) -> None:
    for variant in variants:
        assert store.get(variant.name) == variant
        assert len(variant.files) == (2 if variant.format == "torch_export" else 1)
        for file in variant.files:
            assert len(store.read(variant, file.path)) == file.size_bytes > 0
    assert store.verify() == []
    assert len(store.list()) == 3
    assert variants[2].size_bytes < 0.4 * variants[1].size_bytes


def recounted(store: ArtifactStore, variant: Variant, digits: LabelledDataset) -> NDArray[np.bool_]:
    """Right or wrong, one picture at a time, by ONNX Runtime itself."""
    session = ort.InferenceSession(store.read(variant, "model.onnx"), providers=["CPUExecutionProvider"])
    found = [int(np.argmax(session.run(None, {"image": picture[None]})[0])) for picture in digits.x_test]
    return np.asarray(found) == digits.y_test


def test_the_accuracy_is_what_an_independent_count_finds(
    store: ArtifactStore, variants: list[Variant], trained: TrainResult, digits: LabelledDataset
) -> None:
    by_hand = correct(trained.model, torch.from_numpy(digits.x_test), torch.from_numpy(digits.y_test))
    counts = [by_hand, *(int(recounted(store, v, digits).sum()) for v in variants[1:])]
    for variant, count in zip(variants, counts, strict=True):
        accuracy = variant.accuracy
        assert accuracy is not None
        assert (accuracy.correct, accuracy.total, accuracy.value) == (count, 450, count / 450)
        low, high = beta.ppf([0.025, 0.975], count + 0.5, 450 - count + 0.5)
        assert accuracy.interval == pytest.approx((low, high))
        assert (accuracy.dataset, accuracy.metric, accuracy.confidence) == ("digits", "accuracy", 0.95)
    assert [v.accuracy.runtime for v in variants if v.accuracy] == ["torch", "onnxruntime", "onnxruntime"]


def test_int8_is_compared_with_its_parent_on_the_same_pictures(
    store: ArtifactStore, variants: list[Variant], digits: LabelledDataset
) -> None:
    eager, fp32, int8 = (v.accuracy for v in variants)
    assert eager is not None
    assert fp32 is not None
    assert int8 is not None
    assert (eager.delta, eager.verdict) == (None, None), "the first of the line has nothing to be compared with"
    assert fp32.delta == 0.0, "ONNX computes what torch computes"
    parent, child = recounted(store, variants[1], digits), recounted(store, variants[2], digits)
    assert int8.delta == pytest.approx(child.mean() - parent.mean())
    assert int8.delta_interval is not None
    assert int8.delta_interval[0] <= int8.delta <= int8.delta_interval[1]
    drops = [parent[digits.y_test == c].mean() - child[digits.y_test == c].mean() for c in range(10)]
    assert int8.worst_class_drop == pytest.approx(max(drops))
    assert int8.verdict in ("holds", "unclear", "fails")


def test_int8_is_calibrated_on_training_pictures_and_never_on_the_test_set(
    store: ArtifactStore, variants: list[Variant], digits: LabelledDataset
) -> None:
    graph = store.read(variants[1], "model.onnx")
    on_train, on_test = (
        quantize(graph, pictures, QuantizeConfig(), input_name="image", shape=(-1, 1, 28, 28))
        for pictures in (digits.x_train, digits.x_test)
    )
    assert store.read(variants[2], "model.onnx") == on_train != on_test


def test_what_is_told_names_each_variant_with_its_accuracy(told: list[str], variants: list[Variant]) -> None:
    assert len(told) == 3
    for line, variant in zip(told, variants, strict=True):
        assert variant.accuracy is not None
        assert line.startswith(f"{variant.name}: {variant.accuracy.value:.4f} on 450 test pictures")
        assert (f"{variant.accuracy.verdict} within 0.5% of its parent" in line) == (variant.parent_id is not None)


def test_building_again_moves_the_names_and_makes_nothing_twice(
    store: ArtifactStore, variants: list[Variant], trained: TrainResult, quick_config: TrainConfig,
    digits: LabelledDataset,
) -> None:  # fmt: skip
    again = build_variants(store, trained.model, quick_config, digits)
    assert again[1].id == variants[1].id, "the same model exports to the same bytes"
    assert store.get("cnn_digits/int8").id == again[2].id
    assert store.verify() == []


def test_a_manifest_is_plain_json(store: ArtifactStore, variants: list[Variant]) -> None:
    for variant in variants:
        text = (Path(store.root) / "variants" / f"{variant.id}.json").read_text()
        assert json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))["id"] == variant.id


def test_pictures_of_another_data_set_do_not_judge_a_model(
    store: ArtifactStore, trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset
) -> None:
    with pytest.raises(ConfigError, match="dataset='mnist', these pictures are 'digits'"):
        build_variants(store, trained.model, quick_config.model_copy(update={"dataset": "mnist"}), digits)


@pytest.mark.parametrize(("wrong", "verdict"), [(0, "holds"), (2, "unclear"), (60, "fails")])
def test_the_verdict_weighs_the_drop_against_the_number_of_pictures(
    digits: LabelledDataset, wrong: int, verdict: str
) -> None:
    parent = np.ones(450, dtype=np.bool_)
    child = parent.copy()
    child[:wrong] = False
    accuracy = judge(child, digits, runtime="onnxruntime", parent=parent)
    assert accuracy.verdict == verdict
    assert accuracy.delta == pytest.approx(-wrong / 450)
