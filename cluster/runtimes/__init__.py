"""Variant -> Runtime: the loaders, each imported only when a variant is loaded with it."""

from __future__ import annotations

import importlib

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError
from cluster.runtimes.base import Runtime, RuntimeConfig
from cluster.variants import Variant

__all__ = ["Runtime", "RuntimeConfig", "load_runtime"]

_LOADERS = {
    "onnxruntime": ("cluster.runtimes.onnxruntime_runtime", "OnnxRuntime", ("onnx",)),
    "torch": ("cluster.runtimes.torch_runtime", "TorchRuntime", ("torch_export",)),
}


def load_runtime(store: ArtifactStore, variant: Variant, config: RuntimeConfig) -> Runtime:
    """Load a variant's verified bytes into the runtime that `config` names.

    Raises ConfigError if that runtime cannot execute the variant's format, RuntimeUnavailable if it is not installed,
    ChecksumMismatch if the bytes changed on disk, ArtifactError if they are no graph that it can execute or not the
    one that the manifest describes.
    """
    module, loader, formats = _LOADERS[config.name]
    if variant.format not in formats:
        able = [name for name, (_, _, can) in _LOADERS.items() if variant.format in can]
        raise ConfigError(
            f"runtime {config.name!r} cannot execute format {variant.format!r} of variant {variant.name}; use {able}"
        )
    runtime: Runtime = getattr(importlib.import_module(module), loader)(store, variant, config)
    return runtime
