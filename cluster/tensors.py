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
    if missing := expected.keys() - tensors.keys():
        raise InvalidRequest(f"input {sorted(missing)} is missing; the model takes {sorted(expected)}")
    if extra := tensors.keys() - expected.keys():
        raise InvalidRequest(f"input {sorted(extra)} is unknown; the model takes {sorted(expected)}")
    for name, spec in expected.items():
        array = tensors[name]
        if array.dtype != NUMPY_OF_DATATYPE[spec.datatype]:
            got = DATATYPE_OF_NUMPY.get(array.dtype, str(array.dtype))
            raise InvalidRequest(f"input {name!r} has datatype {got}; the model takes {spec.datatype}")
        fits = len(array.shape) == len(spec.shape) and all(
            have == want or (want == -1 and have >= 1) for have, want in zip(array.shape, spec.shape, strict=True)
        )
        if not fits:
            raise InvalidRequest(f"input {name!r} has shape {list(array.shape)}; the model takes {list(spec.shape)}")
