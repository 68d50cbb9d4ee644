"""The JSON part of a binary request -> Template: where its tensors lie in the body, remembered.

A client says the same JSON before each picture, and the same model answers it with the same JSON: both are worked out
once. What the codec decides, a Template repeats; it decides nothing of its own. Not for tensors whose bytes can be
wrong (BOOL), nor for requests with an id of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest
from serve_apps.oip.codec import InferRequest
from serve_apps.oip.tensors import raw_bytes

Arrays = dict[str, NDArray[np.generic]]
_MAX_JSON_BYTES = 4096
_KEPT = 1024


class _Slot(NamedTuple):
    name: str
    dtype: np.dtype[np.generic]
    shape: tuple[int, ...]
    start: int


class Template:
    """Of requests that differ in the bytes of their tensors only."""

    __slots__ = ("_slots", "answers", "request", "size")

    def __init__(self, request: InferRequest, json_bytes: int) -> None:
        self.request = request._replace(inputs={})
        self._slots: list[_Slot] = []
        start = json_bytes
        for name, array in request.inputs.items():
            self._slots.append(_Slot(name, array.dtype, array.shape, start))
            start += array.nbytes
        self.size = start
        """Bytes of the whole body."""
        self.answers: dict[object, bytes] = {}
        """What stands before the tensors of an answer, by who made it and its shapes."""

    def inputs(self, body: bytes) -> Arrays:
        """Views of a body of `size` bytes."""
        arrays: Arrays = {}
        for name, dtype, shape, start in self._slots:
            array: NDArray[np.generic] = np.ndarray(shape, dtype, body, start)
            arrays[name] = array if dtype.itemsize == 1 or array.flags.aligned else array.copy()
        return arrays


class Templates:
    """Those of one set of models: they hold what its input check let pass."""

    def __init__(self) -> None:
        self._known: dict[bytes, Template] = {}

    def of(self, body: bytes, json_bytes: int) -> Template | None:
        """The template that this body fits, if such a request was seen before."""
        template = self._known.get(body[:json_bytes])
        return template if template is not None and template.size == len(body) else None

    def learn(self, body: bytes, json_bytes: int, request: InferRequest) -> None:
        """Remember a request that was decoded and checked, if the next one like it needs no look at its bytes."""
        if request.id is not None or not 0 < json_bytes <= _MAX_JSON_BYTES:
            return
        if any(array.dtype.kind not in "iuf" for array in request.inputs.values()):
            return
        template = Template(request, json_bytes)
        if template.size != len(body):  # a tensor that came as JSON
            return
        if len(self._known) >= _KEPT:
            self._known.clear()
        self._known[body[:json_bytes]] = template


def raw_parts(request: InferRequest, results: Mapping[str, NDArray[np.generic]]) -> list[bytes] | None:
    """The bytes of the wanted outputs in their order; None if one of them goes as JSON."""
    parts = []
    for name, binary in request.binary_outputs.items():
        array = results.get(name)
        if not binary or array is None:
            return None
        parts.append(raw_bytes(array))
    return parts


def check_rows(inputs: Mapping[str, NDArray[np.generic]]) -> None:
    """Raises InvalidRequest unless all inputs have the same number of rows."""
    if len(inputs) > 1:
        rows = {array.shape[0] for array in inputs.values()}
        if len(rows) != 1:
            raise InvalidRequest(f"the inputs have batch sizes {sorted(rows)}; they must be the same")
