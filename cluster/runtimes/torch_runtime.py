"""Exported torch program -> eager execution of its operators. Imported only when a variant is loaded with it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import InferenceFailed, RuntimeUnavailable
from cluster.runtimes.base import RuntimeConfig, Tensors
from cluster.tensors import check_inputs
from cluster.variants import Variant

try:
    import torch
except ImportError as error:  # pragma: no cover - the dependency is declared; a slim serving image may lack it
    raise RuntimeUnavailable("torch is not installed; pip install torch") from error

from cluster.runtimes.torch_archive import load_pickle_free

FORMATS = ("torch_export",)


class TorchRuntime:
    """The program's graph module under inference mode. torch's thread count is the whole process', so the last
    TorchRuntime loaded decides it for all: one per process if it matters."""

    name = "torch"

    def __init__(self, store: ArtifactStore, variant: Variant, config: RuntimeConfig) -> None:
        self.config = config
        self._inputs = variant.inputs
        self._outputs = variant.outputs
        torch.set_num_threads(config.threads)
        program = load_pickle_free(store.read(variant, variant.model_file.path))
        self._module: torch.nn.Module | None = program.module()

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """See Runtime.infer."""
        check_inputs(self._inputs, inputs)
        if self._module is None:
            raise InferenceFailed("this runtime is closed; load the variant again")
        tensors = [torch.from_numpy(np.ascontiguousarray(inputs[spec.name])) for spec in self._inputs]
        try:
            with torch.inference_mode():
                made = self._module(*tensors)
        except Exception as error:
            raise InferenceFailed(f"torch failed: {error}") from error
        outputs = made if isinstance(made, tuple | list) else (made,)
        return {spec.name: out.numpy() for spec, out in zip(self._outputs, outputs, strict=True)}

    def close(self) -> None:
        """Free the module."""
        self._module = None
