"""Exported torch program -> eager execution of its operators. Imported only when a variant is loaded with it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import ArtifactError, InferenceFailed, RuntimeUnavailable
from cluster.runtimes.base import RuntimeConfig, Tensors
from cluster.tensors import check_inputs
from cluster.variants import Variant

try:
    import torch
except ImportError as error:
    raise RuntimeUnavailable(f"torch cannot be imported ({error}); pip install torch") from error

from cluster.runtimes.torch_archive import load_pickle_free


class TorchRuntime:
    """The program's graph module under inference mode."""

    name = "torch"

    def __init__(self, store: ArtifactStore, variant: Variant, config: RuntimeConfig) -> None:
        self.config = config
        self._inputs = variant.inputs
        self._outputs = variant.outputs
        program = load_pickle_free(store.read(variant, variant.model_file.path))
        counts = (len(program.graph_signature.user_inputs), len(program.graph_signature.user_outputs))
        if counts != (len(self._inputs), len(self._outputs)):
            raise ArtifactError(
                f"variant {variant.name} ({variant.id}) has {counts[0]} inputs and {counts[1]} outputs in its graph, "
                f"{len(self._inputs)} and {len(self._outputs)} in its manifest; make it again"
            )
        self._module: Any
        try:
            self._module = program.module()
        except Exception as error:
            raise ArtifactError(f"torch cannot load variant {variant.name} ({variant.id}): {error}") from error
        self._module.validate_inputs = False  # check_inputs has looked, and torch's look takes 0.1 ms a batch

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """See Runtime.infer."""
        if self._module is None:
            raise InferenceFailed("this runtime is closed; load the variant again")
        check_inputs(self._inputs, inputs)
        # torch's count belongs to the calling thread once that thread has computed, and to the whole process before.
        if torch.get_num_threads() != self.config.threads:
            torch.set_num_threads(self.config.threads)
        try:
            with torch.inference_mode():
                # Copies both ways: a graph may write to its input, or return it, or return one of its own constants.
                copies = [np.array(inputs[spec.name], order="C") for spec in self._inputs]
                made = self._module(*map(torch.from_numpy, copies))
                outputs = made if isinstance(made, tuple | list) else (made,)
                arrays = [np.array(output.numpy(), order="C") for output in outputs]
        except Exception as error:
            raise InferenceFailed(f"torch failed: {error}") from error
        return {spec.name: array for spec, array in zip(self._outputs, arrays, strict=True)}

    def close(self) -> None:
        """Free the module."""
        self._module = None
