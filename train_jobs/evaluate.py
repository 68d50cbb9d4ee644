"""Trained model -> measured variants. Accuracy is that of the graph in the runtime that will serve it, full test set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.torch import save
from torch import nn

from cluster import stats
from cluster.artifacts import ANYTHING, ArtifactStore
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.variants import Accuracy, Pass, Variant
from train_jobs.compression.quantize import QuantizeConfig, quantize
from train_jobs.config import TrainConfig
from train_jobs.datasets import PictureDataset
from train_jobs.export import INPUT, output_spec, to_onnx, to_torch_archive

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


def build_variants(
    store: ArtifactStore, model: nn.Module, config: TrainConfig, dataset: PictureDataset, *,
    quantization: QuantizeConfig | None = None, notify: Callable[[str], None] = lambda line: None,
) -> list[Variant]:  # fmt: skip
    """torch fp32, ONNX fp32 and ONNX int8, measured, stored and named "<recipe>/...". The ONNX fp32 graph descends
    from the torch program, the int8 graph from the ONNX one; each is compared with its parent on the same pictures."""
    quantization = quantization or QuantizeConfig()
    common: dict[str, Any] = {
        "family": config.family,
        "inputs": (INPUT,),
        "outputs": (output_spec(len(dataset.labels)),),
        "labels": dataset.labels,
        "preprocessing": "uint8 0..255 -> /255, normalised; inside the graph",
        "provenance": {"config": config.model_dump(mode="json"), "dataset": dataset.name},
    }
    torch_config, onnx_config = RuntimeConfig(name="torch"), RuntimeConfig(name="onnxruntime")

    def measured(
        variant: Variant, files: dict[str, bytes], runtime: RuntimeConfig, parent: NDArray[np.bool_] | None
    ) -> tuple[Variant, NDArray[np.bool_]]:
        stored = store.put(variant, files)
        correct = correct_flags(store, stored, dataset, runtime)
        accuracy = judge(correct, dataset, runtime=runtime.name, parent=parent)
        stored = store.put(stored.model_copy(update={"accuracy": accuracy}), files)
        store.set_ref(stored.name, stored.id, expected=ANYTHING)
        notify(f"{stored.name}: {accuracy.value:.4f} on {accuracy.total} test pictures, {stored.size_bytes:,} bytes")
        return stored, correct

    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    eager, eager_correct = measured(
        Variant(name=f"{config.recipe}/fp32-torch", format="torch_export", passes=(Pass(name="train"),), **common),
        {"model.pt2": to_torch_archive(model), "weights.safetensors": save(weights)},
        torch_config,
        None,
    )
    graph = to_onnx(model)
    onnx, onnx_correct = measured(
        Variant(
            name=f"{config.recipe}/fp32", format="onnx", parent_id=eager.id, passes=(Pass(name="export_onnx"),), **common
        ),
        {"model.onnx": graph},
        onnx_config,
        eager_correct,
    )
    # Calibration pictures come from the training set; the test set judges and nothing else.
    quantized = quantize(graph, dataset.x_train, quantization, input_name=INPUT.name, shape=INPUT.shape)
    int8, _ = measured(
        Variant(
            name=f"{config.recipe}/int8", format="onnx", parent_id=onnx.id,
            passes=(Pass(name="quantize_static_int8", params=quantization.model_dump(mode="json")),), **common,
        ),  # fmt: skip
        {"model.onnx": quantized},
        onnx_config,
        onnx_correct,
    )
    return [eager, onnx, int8]
