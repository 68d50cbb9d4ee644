"""Tensors of every datatype that the protocol knows <-> raw bytes, or flat JSON values.

Raw: little-endian, row by row, in the native size; a BYTES element behind its length in four bytes. An array of numbers
is a view of the body: nothing is copied, nothing writable. BYTES tensors are arrays of `bytes`.
"""

from __future__ import annotations

import reprlib
import struct
from array import array
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest, PayloadTooLarge
from cluster.tensors import DATATYPE_OF_NUMPY

brief = reprlib.Repr()  # an error names the value, and must not echo a megabyte of it
brief.maxstring = brief.maxother = 80
brief.maxlist, brief.maxlevel = 16, 1
MAX_TEXTS = 1 << 16
"""Elements of a BYTES tensor in raw bytes: each becomes an object, at 0.2 us on the event loop."""
_LENGTH = struct.Struct("<I")


def from_raw(
    what: str, body: bytes, offset: int, size_bytes: Any, dtype: np.dtype[Any], shape: list[int], count: int
) -> NDArray[np.generic]:
    """The tensor of `count` elements that takes `size_bytes` of `body` from `offset` on. Raises InvalidRequest, which
    calls it `what`."""
    if dtype.hasobject:
        return _texts(what, body, offset, size_bytes, shape, count)
    return _numbers(what, body, offset, size_bytes, dtype, shape, count)


def _numbers(
    what: str, body: bytes, offset: int, size_bytes: Any, dtype: np.dtype[Any], shape: list[int], count: int
) -> NDArray[np.generic]:
    want = count * dtype.itemsize
    if type(size_bytes) is not int or size_bytes != want:
        raise InvalidRequest(
            f"{what} says binary_data_size={brief.repr(size_bytes)}; shape {shape} of {dtype.name} takes {want} bytes"
        )
    if offset + want > len(body):
        raise InvalidRequest(f"{what} needs {want} bytes of binary data; only {len(body) - offset} are left")
    tensor: NDArray[np.generic] = np.ndarray(shape, dtype, body, offset)
    if dtype.itemsize > 1:
        # JSON ends anywhere; executors read whole words.
        return tensor if tensor.flags.aligned else tensor.copy()
    if dtype.kind == "b" and count and tensor.view(np.uint8).max() > 1:
        raise InvalidRequest(f"{what} is BOOL and holds a byte above 1; a BOOL byte is 0 or 1")
    return tensor


def _texts(
    what: str, body: bytes, offset: int, size_bytes: Any, shape: list[int], count: int
) -> NDArray[np.generic]:
    """Of BYTES: each element is a length of four bytes, and so many more."""
    if type(size_bytes) is not int or not 4 * count <= size_bytes:
        raise InvalidRequest(
            f"{what} says binary_data_size={brief.repr(size_bytes)}; shape {shape} of BYTES takes {4 * count} bytes "
            "or more, four for the length of each"
        )
    if count > MAX_TEXTS:
        raise PayloadTooLarge(
            f"{what} has {count} elements; at most {MAX_TEXTS} of BYTES are taken: send fewer rows at once"
        )
    end = offset + size_bytes
    if end > len(body):
        raise InvalidRequest(f"{what} needs {size_bytes} bytes of binary data; only {len(body) - offset} are left")
    texts = []
    for number in range(count):
        start = offset + 4
        size = _LENGTH.unpack_from(body, offset)[0] if start <= end else 0
        offset = start + size
        if offset > end:
            raise InvalidRequest(f"{what}: element {number} of {count} goes beyond its binary_data_size={size_bytes}")
        texts.append(body[start:offset])
    if offset != end:
        raise InvalidRequest(f"{what}: {end - offset} bytes of its binary_data_size={size_bytes} are no element")
    return objects(texts).reshape(shape)


def objects(values: list[Any]) -> NDArray[np.generic]:
    """A flat BYTES tensor."""
    made = np.empty(len(values), np.object_)
    made[:] = values
    return made


def from_json(what: str, data: Any, dtype: np.dtype[Any], shape: list[int], count: int) -> NDArray[np.generic]:
    """`data` is flat, or nested exactly as `shape` says: other nestings are a transposed or mistaken tensor."""
    if type(data) is not list:
        raise InvalidRequest(f"{what} has neither a list `data` nor `parameters.binary_data_size`")
    if data and type(data[0]) is list:
        if len(data) not in shape[:1]:
            raise InvalidRequest(f"{what}: `data` has {len(data)} rows; shape {shape} says otherwise")
        for size in shape[1:]:
            if any(type(row) is not list or len(row) != size for row in data):
                raise InvalidRequest(f"{what}: `data` is nested, but not as shape {shape} says")
            data = list(chain.from_iterable(data))
    if len(data) != count:
        raise InvalidRequest(f"{what} has {len(data)} values in `data`; shape {shape} needs {count}, flat or nested")
    if not count:
        return np.zeros(shape, dtype)
    packed = _packed(what, data, dtype)
    return (packed if isinstance(packed, np.ndarray) else np.frombuffer(packed, dtype)).reshape(shape)


def _packed(what: str, data: list[Any], dtype: np.dtype[Any]) -> bytearray | array[Any] | NDArray[np.generic]:
    """Flat JSON values -> memory of this dtype. bytearray and array are strict about types and bounds, and quick."""
    try:
        if dtype.kind == "O":
            return objects([str.encode(text) for text in data])
        if dtype.char == "e":
            with np.errstate(over="ignore"):
                return _in_range(what, np.frombuffer(array("d", data)).astype(dtype))
        if dtype.kind == "b":
            if set(map(type, data)) != {bool}:
                raise TypeError("not all values are true or false")
            return np.array(data, dtype)
        if dtype.char == "B":
            return bytearray(data)
        packed = array(dtype.char, data)
    except (TypeError, ValueError, OverflowError) as error:
        if isinstance(error, InvalidRequest):
            raise
        raise InvalidRequest(f"{what}: `data` is not all {DATATYPE_OF_NUMPY[dtype]}: {error}") from error
    if dtype.char == "f":
        _in_range(what, np.frombuffer(packed, dtype))
    return packed


def _in_range(what: str, numbers: NDArray[np.generic]) -> NDArray[np.generic]:
    if not np.isfinite(numbers).all():
        raise InvalidRequest(f"{what}: `data` holds a number beyond {DATATYPE_OF_NUMPY[numbers.dtype]}")
    return numbers


def raw_bytes(tensor: NDArray[np.generic]) -> bytes:
    """As binary data has it. Raises TypeError for an element of BYTES that is neither bytes nor text."""
    if not tensor.dtype.hasobject:
        return tensor.tobytes()
    parts = []
    for element in tensor.ravel().tolist():
        text = encoded(element)
        parts += [_LENGTH.pack(len(text)), text]
    return b"".join(parts)


def encoded(element: Any) -> bytes:
    """Models answer BYTES in text or in bytes. Raises TypeError for what is neither."""
    if isinstance(element, str):
        return element.encode(errors="surrogateescape")
    if isinstance(element, bytes):
        return element
    raise TypeError(f"an element is {type(element).__name__}, not bytes or text")


def texts_of(tensor: NDArray[np.generic]) -> list[str]:
    return [encoded(element).decode() for element in tensor.ravel().tolist()]
