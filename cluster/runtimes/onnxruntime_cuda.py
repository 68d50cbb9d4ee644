"""ONNX Runtime session -> batches as CUDA graphs: one annotation id and one binding of fixed addresses for each bucket.
Implemented, not measured: no GPU was at hand.

The session captures a graph at the first run with an id that it has not met, and replays it at every later one. Its
Python offers no pinned memory on the host, so a batch is copied from and to ordinary memory.
"""

from __future__ import annotations

import numpy as np
import onnxruntime as ort

from cluster.runtimes.buckets import Slot, shapes_of
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import Variant

_GRAPH_ID, _NO_GRAPH = "gpu_graph_id", "-1"


def without_graph() -> ort.RunOptions:
    """Of a run that neither captures nor replays, in a session that otherwise would."""
    return _with_id(_NO_GRAPH)


def slot_of(session: ort.InferenceSession, variant: Variant, bucket: int, device: str = "cuda") -> Slot:
    """See buckets.Slot; tensors stay on `device` between runs."""
    binding, options = session.io_binding(), _with_id(str(bucket))
    sides = []
    for specs, bind in (
        (variant.inputs, binding.bind_ortvalue_input), (variant.outputs, binding.bind_ortvalue_output)
    ):  # fmt: skip
        side = []
        for spec, shape in zip(specs, shapes_of(specs, bucket), strict=True):
            dtype = NUMPY_OF_DATATYPE[spec.datatype]
            place = ort.OrtValue.ortvalue_from_shape_and_type(shape, dtype.type, device)
            bind(spec.name, place)
            side.append((place, np.zeros(shape, dtype)))
        sides.append(side)
    given, made = sides

    def run() -> None:
        for place, buffer in given:
            place.update_inplace(buffer)
        session.run_with_iobinding(binding, options)
        for place, buffer in made:
            buffer[...] = place.numpy()

    run()  # captures
    return Slot(tuple(buffer for _, buffer in given), tuple(buffer for _, buffer in made), run)


def _with_id(number: str) -> ort.RunOptions:
    options = ort.RunOptions()
    options.add_run_config_entry(_GRAPH_ID, number)
    return options
