"""Open Inference Protocol datatypes <-> numpy, and the check of a batch against a variant's TensorSpecs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest
from cluster.variants import TensorSpec

NUMPY_OF_DATATYPE: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(np.object_),
}
DATATYPE_OF_NUMPY = {dtype: name for name, dtype in NUMPY_OF_DATATYPE.items()}


def check_inputs(specs: Iterable[TensorSpec], tensors: Mapping[str, NDArray[np.generic]]) -> None:
    """Raise InvalidRequest unless `tensors` are exactly the inputs that `specs` name; -1 accepts any size >= 1."""
    expected = {spec.name: spec for spec in specs}
    if expected.keys() != tensors.keys():
        missing, extra = sorted(expected.keys() - tensors.keys()), sorted(tensors.keys() - expected.keys())
        told = [f"input {missing} is missing"] * bool(missing) + [f"input {extra} is unknown"] * bool(extra)
        raise InvalidRequest(f"{' and '.join(told)}; the model takes {sorted(expected)}")
    for name, spec in expected.items():
        array = tensors[name]
        if array.dtype != NUMPY_OF_DATATYPE[spec.datatype]:
            got = DATATYPE_OF_NUMPY.get(array.dtype, str(array.dtype))
            raise InvalidRequest(f"input {name!r} has datatype {got}; the model takes {spec.datatype}")
        have, want = array.shape, spec.shape
        if have[1:] == want[1:] and want[:1] == (-1,) and have and have[0] >= 1:
            continue  # nearly every request: only the batch is free
        if len(have) != len(want) or not all(h == w or (w == -1 and h >= 1) for h, w in zip(have, want, strict=True)):
            raise InvalidRequest(f"input {name!r} has shape {list(have)}; the model takes {list(want)}")
