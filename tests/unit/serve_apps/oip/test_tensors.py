"""Every datatype against the specification read anew: bytes made by `struct`, and JSON by the standard library."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import InvalidRequest, PayloadTooLarge
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec
from serve_apps.oip.codec import HEADER_LENGTH, InferRequest, decode, encode_response
from serve_apps.oip.tensors import MAX_TEXTS

FORMATS = {
    "BOOL": "?", "UINT8": "B", "UINT16": "H", "UINT32": "I", "UINT64": "Q", "INT8": "b", "INT16": "h", "INT32": "i",
    "INT64": "q", "FP16": "e", "FP32": "f", "FP64": "d",
}  # fmt: skip
"""Of the table "Tensor Data Types", as `struct` calls them."""
WIDTHS = {"FP16": 16, "FP32": 32, "FP64": 64}
OUTPUTS = (TensorSpec(name="y", datatype="FP32", shape=(-1,)),)


def values_of(datatype: str) -> st.SearchStrategy[Any]:
    if datatype == "BOOL":
        return st.booleans()
    if datatype in WIDTHS:
        return st.floats(width=WIDTHS[datatype], allow_nan=False, allow_infinity=False)  # type: ignore[arg-type]
    if datatype == "BYTES":
        return st.text(max_size=9)
    bits, signed = int(datatype.lstrip("UINT")), datatype.startswith("INT")
    return st.integers(-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else st.integers(0, (1 << bits) - 1)


def raw_of(datatype: str, values: list[Any]) -> bytes:
    """Little-endian, row by row, without padding; a BYTES element behind its length in four bytes."""
    if datatype == "BYTES":
        return b"".join(struct.pack("<I", len(each := text.encode())) + each for text in values)
    return struct.pack(f"<{len(values)}{FORMATS[datatype]}", *values)


def of_raw(datatype: str, raw: bytes) -> list[Any]:
    if datatype != "BYTES":
        return list(struct.unpack(f"<{len(raw) // struct.calcsize('<' + FORMATS[datatype])}{FORMATS[datatype]}", raw))
    values = []
    while raw:
        (size,) = struct.unpack("<I", raw[:4])
        values.append(raw[4 : 4 + size].decode())
        raw = raw[4 + size :]
    return values


def listed(array: Any) -> list[Any]:
    return [each.decode() if isinstance(each, bytes) else each for each in array.ravel().tolist()]


def test_no_datatype_is_forgotten() -> None:
    assert {*FORMATS, "BYTES"} == set(NUMPY_OF_DATATYPE)
    for datatype, code in FORMATS.items():
        assert NUMPY_OF_DATATYPE[datatype].itemsize == struct.calcsize("<" + code)


@given(st.data(), st.sampled_from([*FORMATS, "BYTES"]), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3))
def test_requests_and_answers_hold_what_the_specification_says(
    data: st.DataObject, datatype: str, rows: int, columns: int, padding: int
) -> None:
    size = rows * columns
    values = data.draw(st.lists(values_of(datatype), min_size=size, max_size=size))
    entry: dict[str, Any] = {"name": "x", "shape": [rows, columns], "datatype": datatype}
    nested = [values[row * columns : (row + 1) * columns] for row in range(rows)]
    for said in (values, nested):
        body = json.dumps({"inputs": [entry | {"data": said}]}).encode()
        array = decode(body, {}, OUTPUTS).inputs["x"]
        assert (array.shape, array.dtype) == ((rows, columns), NUMPY_OF_DATATYPE[datatype])
        assert listed(array) == values
    raw = raw_of(datatype, values)
    head = json.dumps({"inputs": [entry | {"parameters": {"binary_data_size": len(raw)}}]}).encode() + b" " * padding
    array = decode(head + raw, {HEADER_LENGTH: str(len(head))}, OUTPUTS).inputs["x"]
    assert (array.shape, listed(array)) == ((rows, columns), values)

    text, length = encode_response("m", "1", InferRequest(None, {}, {"y": False}), {"y": array})
    [told] = json.loads(text)["outputs"]
    assert length is None
    assert (told["datatype"], told["shape"]) == (datatype, [rows, columns])
    if datatype in WIDTHS:  # JSON says a number of that width with as few digits as tell it from its neighbours
        told["data"] = np.array(told["data"], NUMPY_OF_DATATYPE[datatype]).tolist()
    assert told["data"] == values
    body, length = encode_response("m", "1", InferRequest(None, {}, {"y": True}), {"y": array})
    assert length is not None
    [told] = json.loads(body[:length])["outputs"]
    assert told == {
        "name": "y", "datatype": datatype, "shape": [rows, columns], "parameters": {"binary_data_size": len(raw)}
    }  # fmt: skip
    assert "data" not in told
    assert of_raw(datatype, body[length:]) == values


@given(st.floats(-65504, 65504))
def test_a_number_for_an_fp16_is_rounded_to_the_nearest(number: float) -> None:
    entry = {"name": "x", "shape": [1], "datatype": "FP16", "data": [number]}
    [got] = decode(json.dumps({"inputs": [entry]}).encode(), {}, OUTPUTS).inputs["x"].tolist()
    assert got == struct.unpack("<e", struct.pack("<e", number))[0]


def texts(raw: bytes, count: int, size: Any = None) -> list[bytes]:
    parameters = {"binary_data_size": len(raw) if size is None else size}
    head = json.dumps({"inputs": [{"name": "x", "shape": [count], "datatype": "BYTES", "parameters": parameters}]})
    request = decode(head.encode() + raw, {HEADER_LENGTH: str(len(head))}, OUTPUTS)
    return request.inputs["x"].tolist()  # type: ignore[no-any-return]


def test_bytes_need_not_be_text() -> None:
    assert texts(b"\2\0\0\0\xff\0" + bytes(4), 2) == [b"\xff\0", b""]


BAD_TEXTS = {
    "no lengths": (b"abc", 1, None, "takes 4 bytes or more"),
    "beyond the tensor": (b"\5\0\0\0abc", 1, None, "element 0 of 1 goes beyond its binary_data_size=7"),
    "beyond the address space": (b"\xff\xff\xff\xff", 1, None, "element 0 of 1 goes beyond"),
    "the second has no length": (b"\3\0\0\0abcd", 2, None, "element 1 of 2 goes beyond"),
    "left over": (b"\1\0\0\0abc", 1, None, "2 bytes of its binary_data_size=7 are no element"),
    "more than there is": (b"\1\0\0\0a", 1, 6, "needs 6 bytes of binary data; only 5 are left"),
    "no number": (b"\1\0\0\0a", 1, "5", "binary_data_size='5'"),
    "bool": (b"", 0, True, "binary_data_size=True"),
    "none": (b"a", 0, None, "1 bytes of its binary_data_size=1 are no element"),
}


@pytest.mark.parametrize("kind", BAD_TEXTS)
def test_bytes_that_are_no_elements_are_refused(kind: str) -> None:
    raw, count, size, complaint = BAD_TEXTS[kind]
    with pytest.raises(InvalidRequest, match=complaint):
        texts(raw, count, size)


def test_elements_of_bytes_are_bounded_because_each_is_an_object() -> None:
    assert len(texts(bytes(4 * MAX_TEXTS), MAX_TEXTS)) == MAX_TEXTS
    with pytest.raises(PayloadTooLarge, match=f"{MAX_TEXTS + 1} elements"):
        texts(bytes(4 * MAX_TEXTS + 4), MAX_TEXTS + 1)
