"""ONNX graph -> OpenVINO compiled model on the CPU. Imported only when a variant is loaded with it.

The plugin compiles kernels for each batch size that it meets, at the first batch of that size (milliseconds): whoever
promises a latency warms up every size first (serve_apps/deployment.py does).

It computes 64-bit numbers in 32 bits. Of a place beyond the end of a table its Gather makes a row of zeros, where other
runtimes fail; GatherND and its like do not look, and answer with whatever lies in memory there: graphs in which a
request's numbers reach those are refused. So are those that may hand a pool no rows at all. With one thread it also
loses the error of an operator that cannot take its tensors' shapes, and answers with what an earlier batch left: seen
by the number of rows.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import ArtifactError, ConfigError, InferenceFailed, RuntimeUnavailable
from cluster.runtimes.base import RuntimeConfig, Tensors
from cluster.tensors import check_inputs
from cluster.variants import Precision, Variant

try:
    import openvino as ov
    from openvino import properties
    from openvino.properties import hint
except ImportError as error:
    raise RuntimeUnavailable(f"openvino cannot be imported ({error}); pip install openvino") from error

# At a process's first tensor OpenVINO's binding makes its table of NumPy's types, and lets go of the GIL meanwhile: two
# streams whose first tensors met there waited for each other for ever (2026.4.1). Importing, there is only one.
_FIRST_TENSOR = ov.Tensor(np.zeros(1, np.float32)).data
_COMPUTE: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What is not quantized is computed in this. Left to itself the plugin takes bf16 wherever the CPU has it, and a
variant measured on one machine would be another one on the next."""
_INT32 = np.iinfo(np.int32)
_UNCHECKED = ("GatherND", "GatherElements", "GatherTree", "Scatter", "EmbeddingBag", "EmbeddingSegments")
"""Operators, by how their names begin, that use their second input as places and do not check them."""


class OpenVinoRuntime:
    """One compiled model with one infer request; `infer` releases the GIL while the graph runs."""

    name = "openvino"

    def __init__(self, store: ArtifactStore, variant: Variant, config: RuntimeConfig) -> None:
        self.config = config
        self._specs = variant.inputs
        data = store.read(variant, variant.model_file.path)
        settings = {
            hint.inference_precision(): _COMPUTE[variant.precision],
            properties.inference_num_threads(): config.threads,
            properties.num_streams(): 1,
            # Which cores are ours is decided outside, by affinity; replicas that pin themselves may share one.
            hint.enable_cpu_pinning(): config.pin,
        }
        try:
            core = ov.Core()
            graph = _read(core, data)
            _refuse_unchecked_places(graph, variant)
            _refuse_pools_of_nothing(graph, variant)
            self._model = core.compile_model(graph, "CPU", settings)
        except ConfigError:
            raise
        except Exception as error:
            raise ArtifactError(f"OpenVINO cannot load variant {variant.name} ({variant.id}): {error}") from error
        for what, ports, specs in (
            ("inputs", self._model.inputs, variant.inputs),
            ("outputs", self._model.outputs, variant.outputs),
        ):
            # A tensor that passes an Identity has both its names.
            named = [sorted(port.names) for port in ports]
            if len(ports) != len(specs) or not all(any(s.name in names for names in named) for s in specs):
                raise ArtifactError(
                    f"variant {variant.name} ({variant.id}) has {what} {named} in its graph, "
                    f"{[spec.name for spec in specs]} in its manifest; make it again"
                )
        self._outputs = [spec.name for spec in variant.outputs]
        self._batched_inputs, self._batched_outputs = (
            [spec.name for spec in specs if spec.shape[:1] == (-1,)] for specs in (variant.inputs, variant.outputs)
        )
        self._request = self._model.create_infer_request()

    def infer(self, inputs: Tensors) -> dict[str, NDArray[np.generic]]:
        """See Runtime.infer."""
        if self._request is None:
            raise InferenceFailed("this runtime is closed; load the variant again")
        check_inputs(self._specs, inputs)
        for name, array in inputs.items():
            if not _fits(array):
                raise InferenceFailed(
                    f"OpenVINO failed: input {name!r} holds {array.min()} to {array.max()} and it computes in 32 bits; "
                    "plan another runtime"
                )
        try:
            made = self._request.infer(dict(inputs))
            # Copies: the request's own tensors are written over by the next batch.
            answer = {name: np.array(made[name]) for name in self._outputs}
        except Exception as error:
            raise InferenceFailed(f"OpenVINO failed: {error}") from error
        self._check_rows(inputs, answer)
        return answer

    def _check_rows(self, inputs: Tensors, answer: Tensors) -> None:
        sent = {len(inputs[name]) for name in self._batched_inputs}
        got = {len(answer[name]) for name in self._batched_outputs}
        if sent and got and sent != got:
            raise InferenceFailed(
                f"OpenVINO failed: {sorted(got)} rows of answers to {sorted(sent)} of inputs; the graph takes no batch "
                "of that size"
            )

    def close(self) -> None:
        """Free the model."""
        self._request = self._model = None


def _read(core: ov.Core, data: bytes) -> ov.Model:
    """From a folder of its own: told bytes alone, OpenVINO takes weights that the graph says lie in a file from the
    working directory. A variant is self-contained."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        path.write_bytes(data)
        return core.read_model(path)


def _refuse_unchecked_places(graph: ov.Model, variant: Variant) -> None:
    """Raise ConfigError where a request could have memory read or written that is not the graph's."""
    for kind, name, given in _reached(graph, "Parameter"):
        if kind.startswith(_UNCHECKED) and given[1]:
            raise ConfigError(
                f"variant {variant.name} looks up places that a request names with {kind} ({name}), and OpenVINO does "
                "not check them; use runtime onnxruntime"
            )


def _refuse_pools_of_nothing(graph: ov.Model, variant: Variant) -> None:
    """Raise ConfigError where a pool gets as many rows as the data has it: none at times, which it does not take."""
    for kind, name, counted in _reached(graph, "NonZero"):
        if kind in ("MaxPool", "AvgPool") and counted[0]:
            raise ConfigError(
                f"variant {variant.name} may leave no row for {kind} {name}, and OpenVINO's takes a row at least; use "
                "runtime onnxruntime"
            )


def _reached(graph: ov.Model, origin: str) -> Iterator[tuple[str, str, list[bool]]]:
    """(kind, name, for each input: do values from an operator of kind `origin` reach it?) of every operator. They come
    in order, what they need first; a shape is none of the values."""
    reached: dict[str, bool] = {}
    for node in graph.get_ordered_ops():
        kind, name = node.get_type_name(), node.get_friendly_name()
        sources = [reached[port.get_source_output().get_node().get_friendly_name()] for port in node.inputs()]
        reached[name] = kind == origin or (any(sources) and kind != "ShapeOf")
        yield kind, name, sources


def _fits(array: NDArray[np.generic]) -> bool:
    if array.dtype.kind not in "iu" or np.can_cast(array.dtype, np.int32):
        return True
    return _INT32.min <= int(array.min()) and int(array.max()) <= _INT32.max
