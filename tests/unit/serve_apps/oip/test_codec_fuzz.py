"""Valid requests with bytes or JSON values changed: nothing but InvalidRequest (PayloadTooLarge is one) may escape."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import InvalidRequest
from cluster.variants import TensorSpec
from serve_apps.oip.codec import (
    HEADER_LENGTH,
    decode,
    encode_request,
)  # fmt: skip

OUTPUTS = (
    TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),
    TensorSpec(name="label", datatype="INT64", shape=(-1,)),
)


def body_of(**entry: Any) -> bytes:
    return orjson.dumps({"inputs": [{"name": "x", "shape": [2], "datatype": "UINT8", "data": [1, 2]} | entry]})


VALID = [
    encode_request({"x": np.arange(6, dtype=np.int16).reshape(2, 3)}, binary=False, id="a", parameters={"timeout": 5}),
    encode_request({"x": np.ones((2, 3), np.float32), "y": np.ones(2, bool)}, binary=True, binary_output=True),
    (body_of(shape=[1, 2], data=[[1, 2]], parameters={}), {}),
]


def survives(body: bytes, headers: dict[str, str]) -> None:
    try:
        request = decode(body, headers, OUTPUTS)
    except InvalidRequest as error:
        complaint = str(error)
    else:
        assert request.inputs
        assert set(request.binary_outputs) <= {"logits", "label"}
        return
    assert 0 < len(complaint) < 2000
    orjson.dumps({"error": complaint})  # it is text


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.integers(0, 400), st.integers(0, 3), st.binary(max_size=3)), max_size=4),
    st.one_of(st.none(), st.none(), st.integers(0, 400).map(str), st.text(max_size=4)),
)
def test_mutated_bytes(
    valid: tuple[bytes, dict[str, str]], edits: list[tuple[int, int, bytes]], length: str | None
) -> None:
    body, headers = valid
    for at, drop, new in edits:
        at %= len(body) + 1
        body = body[:at] + new + body[at + drop :]
    survives(body, headers if length is None else {HEADER_LENGTH: length})


JSON_VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False, allow_infinity=False),
        st.text(max_size=5), st.sampled_from(["x", "UINT8", "BOOL", "FP16", "INT64", "BYTES", "logits", 0, 1, 2]),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(
            st.sampled_from(["name", "shape", "datatype", "data", "parameters", "binary_data_size", "binary_data"]),
            inner,
        ),
    ),
    max_leaves=8,
)  # fmt: skip


def replace_somewhere(value: Any, path: list[int], new: Any) -> Any:
    if not path or not value or not isinstance(value, (dict, list)):
        return new
    keys = list(value) if isinstance(value, dict) else list(range(len(value)))
    key = keys[path[0] % len(keys)]
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[key] = replace_somewhere(value[key], path[1:], new)
    return copy


@settings(max_examples=400, deadline=None)
@given(
    st.sampled_from(VALID),
    st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=1, max_size=5), JSON_VALUES), min_size=1, max_size=3),
    st.booleans(),
)
def test_mutated_json(
    valid: tuple[bytes, dict[str, str]], edits: list[tuple[list[int], Any]], keep_length: bool
) -> None:
    body, headers = valid
    end = int(headers.get(HEADER_LENGTH, len(body)))
    request = {"outputs": [{"name": "logits"}], "parameters": {"priority": 1}} | orjson.loads(body[:end])
    for path, new in edits:
        request = replace_somewhere(request, path, new)
    head = orjson.dumps(request)
    if HEADER_LENGTH in headers and not keep_length:
        headers = {HEADER_LENGTH: str(len(head))}
    survives(head + body[end:], headers)
