"""Exported torch program -> execution of its operators one by one, or of what torch_compile.py makes of them; on the
CPU or an NVIDIA GPU. Imported only when a variant is loaded with it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import ArtifactError, ConfigError, InferenceFailed, RuntimeUnavailable
from cluster.runtimes.base import RuntimeConfig, Tensors
from cluster.runtimes.buckets import Buckets
from cluster.tensors import NUMPY_OF_DATATYPE, check_inputs
from cluster.variants import Variant

try:
    import torch
    from torch.export.passes import move_to_device_pass
except ImportError as error:
    raise RuntimeUnavailable(f"torch cannot be imported ({error}); pip install torch") from error

from cluster.runtimes import torch_cuda
from cluster.runtimes.torch_archive import load_pickle_free


class TorchRuntime:
    """The program's graph module under inference mode."""

    name = "torch"

    def __init__(self, store: ArtifactStore, variant: Variant, config: RuntimeConfig) -> None:
        self.config = config
        self._inputs = variant.inputs
        self._outputs = variant.outputs
        self._sequence = variant.sequence
        self._device = torch.device(config.device)
        self._stream = torch_cuda.prepared(config) if config.device == "cuda" else None
        program = load_pickle_free(store.read(variant, variant.model_file.path))
        counts = (len(program.graph_signature.user_inputs), len(program.graph_signature.user_outputs))
        if counts != (len(self._inputs), len(self._outputs)):
            raise ArtifactError(
                f"variant {variant.name} ({variant.id}) has {counts[0]} inputs and {counts[1]} outputs in its graph, "
                f"{len(self._inputs)} and {len(self._outputs)} in its manifest; make it again"
            )
        module: Any
        try:
            module = (program if config.device == "cpu" else move_to_device_pass(program, self._device)).module()
        except Exception as error:
            raise ArtifactError(f"torch cannot load variant {variant.name} ({variant.id}): {error}") from error
        module.validate_inputs = False  # check_inputs has looked, and torch's look takes 0.1 ms a batch
        if config.channels_last:
            self._to_channels_last(module)
        self._module: Any = module
        if config.compile:
            from cluster.runtimes.torch_compile import compiled  # imports a compiler: half a second that few need

            self._use_threads()
            self._module = compiled(module, self._inputs, self._batch, config.threads)
        self._buckets: Buckets | None = None
        if self._stream is not None:
            torch.cuda.synchronize()  # weights came on another stream
            if config.cuda_graphs:
                graphs = torch_cuda.Graphs(self._module, self._batch, self._stream)
                self._buckets = Buckets(variant, graphs.capture)

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """See Runtime.infer."""
        if self._module is None:
            raise InferenceFailed("this runtime is closed; load the variant again")
        check_inputs(self._inputs, inputs)
        self._use_threads()
        try:
            with torch.inference_mode(), self._on_stream():
                if self._buckets is not None and (answer := self._buckets.infer(inputs)) is not None:
                    return answer
                # Copies both ways: a graph may write to its input, or return it, or return one of its own constants.
                copies = [np.array(inputs[spec.name], order="C") for spec in self._inputs]
                made = self._module(*(self._placed(torch.from_numpy(copy)) for copy in copies))
                outputs = made if isinstance(made, tuple | list) else (made,)
                arrays = [np.array(output.cpu().numpy(), order="C") for output in outputs]
        except Exception as error:
            raise InferenceFailed(f"torch failed: {error}") from error
        return {spec.name: array for spec, array in zip(self._outputs, arrays, strict=True)}

    def _on_stream(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def _use_threads(self) -> None:
        # torch's count belongs to the calling thread once that thread has computed, and to the whole process before.
        if torch.get_num_threads() != self.config.threads:
            torch.set_num_threads(self.config.threads)

    def _placed(self, tensor: torch.Tensor) -> torch.Tensor:
        """`tensor` where and how the module takes it."""
        if self.config.channels_last and tensor.dim() == 4:
            return tensor.to(self._device, memory_format=torch.channels_last)
        return tensor.to(self._device)

    def _batch(self, size: int) -> list[torch.Tensor]:
        """Zeros for the module, all that is free `size` long, but for sequences: those are the longest."""
        shapes = [[size if n < 0 else n for n in spec.shape] for spec in self._inputs]
        if self._sequence is not None:
            shapes[0][self._sequence.axis] = self._sequence.longest
        return [
            self._placed(torch.from_numpy(np.zeros(shape, NUMPY_OF_DATATYPE[spec.datatype])))
            for spec, shape in zip(self._inputs, shapes, strict=True)
        ]

    def _to_channels_last(self, module: torch.nn.Module) -> None:
        """Raises ConfigError if the graph insists on another order: an exported `view` may."""
        try:
            module.to(memory_format=torch.channels_last)
            with torch.inference_mode():
                module(*self._batch(2))
        except Exception as error:
            raise ConfigError(
                f"channels_last=true: this graph does not run with the channels innermost ({error}); unset it, or "
                "write reshape for view in the model's forward and export it anew"
            ) from error

    def close(self) -> None:
        """Free the module, and graphs captured of it."""
        self._module = None
        if self._buckets is not None:
            self._buckets.close()
