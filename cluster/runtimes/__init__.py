"""Variant -> Runtime: the loaders, each imported only when a variant is loaded with it."""

from __future__ import annotations

import importlib
import importlib.util

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError
from cluster.runtimes.base import Runtime, RuntimeConfig, RuntimeName
from cluster.runtimes.streams import StreamedRuntime
from cluster.runtimes.threshold import ThresholdRuntime
from cluster.variants import Variant

__all__ = ["Runtime", "RuntimeConfig", "RuntimeName", "load_runtime", "runtimes_for"]

_LOADERS: dict[RuntimeName, tuple[str, str, tuple[str, ...]]] = {
    "onnxruntime": ("cluster.runtimes.onnxruntime_runtime", "OnnxRuntime", ("onnx",)),
    "openvino": ("cluster.runtimes.openvino_runtime", "OpenVinoRuntime", ("onnx",)),
    "torch": ("cluster.runtimes.torch_runtime", "TorchRuntime", ("torch_export",)),
}


def runtimes_for(variant_format: str) -> list[RuntimeName]:
    """The runtimes that execute this format and are installed here; imports none of them."""
    return [
        name
        for name, (_, _, formats) in _LOADERS.items()
        if variant_format in formats and importlib.util.find_spec(name) is not None
    ]


def load_runtime(store: ArtifactStore, variant: Variant, config: RuntimeConfig) -> Runtime:
    """Load a variant's verified bytes into the runtime that `config` names.

    Raises ConfigError if that runtime cannot execute the variant's format or not with these switches,
    RuntimeUnavailable if it, its device or its compiler is not there, ChecksumMismatch if the bytes changed on disk,
    ArtifactError if they are no graph that it can execute or not the one that the manifest describes.
    """
    module, loader, formats = _LOADERS[config.name]
    if variant.format not in formats:
        able = [name for name, (_, _, can) in _LOADERS.items() if variant.format in can]
        raise ConfigError(
            f"runtime {config.name!r} cannot execute format {variant.format!r} of variant {variant.name}; use {able}"
        )
    texts = [spec.name for spec in (*variant.inputs, *variant.outputs) if spec.datatype == "BYTES"]
    if texts and (config.name != "onnxruntime" or config.device != "cpu"):
        raise ConfigError(
            f"variant {variant.name} has BYTES tensors {texts}, and {config} computes numbers only; use runtime "
            "onnxruntime on the CPU"
        )
    load = getattr(importlib.import_module(module), loader)
    if config.streams == 1:
        runtime: Runtime = load(store, variant, config)
    else:
        runtime = StreamedRuntime([load(store, variant, config.lane) for _ in range(config.streams)], variant, config)
    value = variant.thresholds.get(config.name)
    return runtime if value is None else ThresholdRuntime(runtime, value)
