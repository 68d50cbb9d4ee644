"""Trained model -> measured variants. Accuracy is that of the graph in the runtime that will serve it, on the full test
set; each variant is compared with its parent on the same pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save

from cluster import hardware, stats
from cluster.artifacts import ANYTHING, ArtifactStore
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.runtimes.base import RuntimeName
from cluster.variants import Accuracy, Pass, Variant
from train_jobs import datasets
from train_jobs.compression.quantize import QuantizeConfig, quantize
from train_jobs.config import TrainConfig
from train_jobs.datasets import PictureDataset
from train_jobs.export import INPUT, output_spec, to_onnx, to_torch_archive
from train_jobs.models import CNN

MAX_DROP = 0.005
"""Default relative floor: at most half a point below the parent."""


def correct_flags(
    store: ArtifactStore, variant: Variant, dataset: PictureDataset, config: RuntimeConfig, *, batch_size: int = 250
) -> NDArray[np.bool_]:
    """For each test picture: is the variant right about it?"""
    runtime = load_runtime(store, variant, config)
    try:
        labels = [
            np.argmax(runtime.infer({INPUT.name: dataset.x_test[i : i + batch_size]})["logits"], axis=1)
            for i in range(0, len(dataset.x_test), batch_size)
        ]
    finally:
        runtime.close()
    return np.asarray(np.concatenate(labels) == dataset.y_test)


def judge(
    correct: NDArray[np.bool_], dataset: PictureDataset, *, runtime: str, parent: NDArray[np.bool_] | None = None,
    max_drop: float = MAX_DROP,
) -> Accuracy:  # fmt: skip
    """Counts -> Accuracy with its interval and, against a parent, the paired difference and the verdict."""
    right, total = int(correct.sum()), len(correct)
    plain = Accuracy(
        value=right / total, correct=right, total=total, interval=stats.jeffreys(right, total), dataset=dataset.name,
        runtime=runtime,
    )  # fmt: skip
    if parent is None:
        return plain
    delta, interval = stats.paired_delta(parent, correct)
    return plain.model_copy(
        update={
            "delta": delta,
            "delta_interval": interval,
            "worst_class_drop": stats.worst_class_drop(dataset.y_test, parent, correct),
            "verdict": stats.judge_relative(parent, correct, max_drop),
        }
    )


class _Bench:
    """Stores variants of one model, measures each in its runtime, and remembers what each got right."""

    def __init__(self, store: ArtifactStore, dataset: PictureDataset, notify: Callable[[str], None]) -> None:
        self._store = store
        self._dataset = dataset
        self._notify = notify
        self._correct: dict[str, NDArray[np.bool_]] = {}

    def add(self, variant: Variant, files: dict[str, bytes], runtime: RuntimeName) -> Variant:
        """Store and measure; the name points at the variant once its accuracy is known, never before."""
        stored = self._store.put(variant, files)
        correct = correct_flags(self._store, stored, self._dataset, RuntimeConfig(name=runtime))
        self._correct[stored.id] = correct
        parent = self._correct[stored.parent_id] if stored.parent_id else None
        accuracy = judge(correct, self._dataset, runtime=runtime, parent=parent)
        stored = self._store.put(stored.model_copy(update={"accuracy": accuracy}), files)
        self._store.set_ref(stored.name, stored.id, expected=ANYTHING)
        verdict = f", {accuracy.verdict} within {MAX_DROP:.1%} of its parent" if accuracy.verdict else ""
        self._notify(
            f"{stored.name}: {accuracy.value:.4f} on {accuracy.total} test pictures{verdict}, "
            f"{stored.size_bytes:,} bytes"
        )
        return stored


def build_variants(
    store: ArtifactStore, model: CNN, config: TrainConfig, dataset: PictureDataset, *,
    quantization: QuantizeConfig | None = None, notify: Callable[[str], None] = lambda line: None,
) -> list[Variant]:  # fmt: skip
    """torch fp32, ONNX fp32 and ONNX int8, measured, stored and named "<recipe>/...". The ONNX fp32 graph descends
    from the torch program, the int8 graph from the ONNX one.

    Raises ConfigError if the data set is not the one that the model was trained on.
    """
    datasets.require(dataset, config.dataset)
    quantization = quantization or QuantizeConfig()
    common: dict[str, Any] = {
        "family": config.family,
        "inputs": (INPUT,),
        "outputs": (output_spec(len(dataset.labels)),),
        "labels": dataset.labels,
        "preprocessing": model.preprocess.describe(),
        "provenance": {
            "config": config.model_dump(mode="json"),
            "dataset": {"name": dataset.name, "test_sha256": dataset.test_sha256},
            "made_on": hardware.fingerprint(),
        },
    }
    bench = _Bench(store, dataset, notify)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    eager = bench.add(
        Variant(name=f"{config.recipe}/fp32-torch", format="torch_export", passes=(Pass(name="train"),), **common),
        {"model.pt2": to_torch_archive(model), "weights.safetensors": save(weights)},
        "torch",
    )
    graph = to_onnx(model)
    fp32 = Variant(
        name=f"{config.recipe}/fp32", format="onnx", parent_id=eager.id, passes=(Pass(name="export_onnx"),), **common
    )
    fp32 = bench.add(fp32, {"model.onnx": graph}, "onnxruntime")
    # Calibration pictures come from the training set; the test set judges and nothing else.
    quantized = quantize(graph, dataset.x_train, quantization, input_name=INPUT.name, shape=INPUT.shape)
    step = Pass(name="quantize_static_int8", params=quantization.model_dump(mode="json"))
    int8 = Variant(name=f"{config.recipe}/int8", format="onnx", parent_id=fp32.id, passes=(step,), **common)
    return [eager, fp32, bench.add(int8, {"model.onnx": quantized}, "onnxruntime")]
