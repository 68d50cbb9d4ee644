"""What is sent is what the server's own codec reads, and what it writes is what is read."""

from __future__ import annotations

import contextlib
import zlib
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cluster import errors
from cluster.errors import InvalidRequest, ProtocolError, SluiceError
from cluster.scheduling import AccuracyWish
from cluster.tensors import DATATYPE_OF_NUMPY
from cluster.variants import TensorSpec
from serve_apps.oip.client import calls
from serve_apps.oip.client.answers import InferAnswer
from serve_apps.oip.client.calls import Message, Reply, Wishes, retry_after_s
from serve_apps.oip.codec import HEADER_LENGTH, decode, encode_response
from serve_apps.oip.tensors import objects
from serve_apps.oip.wishes import Wishes as ServerWishes
from serve_apps.oip.wishes import in_headers

NUMERIC = ("?", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
ARRAYS = st.sampled_from(NUMERIC).flatmap(
    lambda kind: hnp.arrays(np.dtype(kind), hnp.array_shapes(max_dims=3, max_side=4))
)
TEXTS = hnp.arrays(
    np.dtype(object), hnp.array_shapes(max_dims=3, max_side=4),
    elements=st.text(max_size=9) | st.text(max_size=9).map(str.encode),
)  # fmt: skip
NAMES = st.text(min_size=1, max_size=20)
TENSORS = st.dictionaries(NAMES, ARRAYS, min_size=1, max_size=3)
WISHES = st.builds(
    Wishes, priority=st.none() | st.integers(1, 9),
    accuracy=st.none() | st.sampled_from(("best", "balanced", "fast")) | st.floats(0, 1),
    tenant=st.none() | st.text("abcdefgh-_.", min_size=1, max_size=20),
)  # fmt: skip


def infer(inputs: dict[str, Any], **changes: Any) -> calls.Call[InferAnswer]:
    given = {"outputs": None, "wishes": Wishes(), "version": None, "request_id": None, "binary": True, "gzip": False}
    return calls.infer("m", inputs, **given | changes)


def same(one: np.ndarray, other: np.ndarray) -> bool:
    """To the bit, NaN included."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def as_said(wishes: Wishes, timeout_s: float | None) -> ServerWishes:
    accuracy: AccuracyWish | float | None = wishes.accuracy
    return ServerWishes(timeout_s, wishes.priority or 0, accuracy, wishes.tenant)


@given(TENSORS, WISHES, st.none() | NAMES, st.none() | st.floats(0.001, 100))
def test_the_server_reads_what_the_client_sends(
    inputs: dict[str, Any], wishes: Wishes, request_id: str | None, left_s: float | None
) -> None:
    said = infer(inputs, wishes=wishes, request_id=request_id).message(left_s)
    outputs = [TensorSpec(name="y", datatype="FP16", shape=(-1,))]
    request = decode(said.body, said.headers, outputs)
    assert request.id == request_id
    assert request.binary_outputs == {"y": True}
    assert request.inputs.keys() == inputs.keys()
    assert all(same(request.inputs[name], inputs[name]) for name in inputs)
    timeout_s = None if left_s is None else max(1, int(left_s * 1e6)) / 1e6
    assert request.wishes == as_said(wishes, timeout_s)


@given(TENSORS.filter(lambda tensors: all(
    array.dtype.char != "e" and (array.dtype.kind != "f" or np.isfinite(array).all()) for array in tensors.values()
)))  # fmt: skip
def test_as_text_too(inputs: dict[str, Any]) -> None:
    said = infer(inputs, binary=False).message(None)
    assert said.headers == {"content-type": "application/json"}
    request = decode(said.body, said.headers, [TensorSpec(name="y", datatype="FP32", shape=(-1,))])
    assert request.binary_outputs == {"y": False}
    assert all((request.inputs[name] == inputs[name]).all() for name in inputs)
    assert all(request.inputs[name].dtype == inputs[name].dtype for name in inputs)


@given(TENSORS, st.data())
def test_the_client_reads_what_the_server_writes(outputs: dict[str, Any], data: st.DataObject) -> None:
    asked = {"x": np.zeros((1, 1), np.float32)}
    wanted = data.draw(st.lists(st.sampled_from(sorted(outputs)), min_size=1, unique=True))
    call = infer(asked, outputs=wanted, request_id="seven")
    said = call.message(None)
    specs = [
        TensorSpec(name=name, datatype=DATATYPE_OF_NUMPY[array.dtype], shape=(-1,))
        for name, array in outputs.items()
    ]
    request = decode(said.body, said.headers, specs)
    body, length = encode_response("m", "v1", request, outputs, {"variant": "m/int8"})
    headers = {HEADER_LENGTH: str(length)}
    answer = call.read(Reply(200, headers, body))
    assert (answer.model, answer.version, answer.variant, answer.id) == ("m", "v1", "m/int8", "seven")
    assert sorted(answer.outputs) == sorted(wanted)
    assert all(same(answer[name], outputs[name]) for name in wanted)


@given(TEXTS, st.booleans())
def test_text_goes_there_and_back(texts: np.ndarray, binary: bool) -> None:
    """Strings and byte strings are UTF-8 bytes to the server, and to who reads its answer; in binary any bytes are."""
    call = infer({"x": texts}, binary=binary)
    said = call.message(None)
    request = decode(said.body, said.headers, [TensorSpec(name="y", datatype="BYTES", shape=(-1,))])
    sent = [each.encode() if isinstance(each, str) else each for each in texts.ravel().tolist()]
    assert request.inputs["x"].ravel().tolist() == sent
    body, length = encode_response("m", "v1", request, {"y": request.inputs["x"]})
    answer = call.read(Reply(200, {} if length is None else {HEADER_LENGTH: str(length)}, body))
    assert (length is None) != binary
    assert answer["y"].dtype == np.dtype(object)
    assert answer["y"].shape == texts.shape
    assert answer["y"].ravel().tolist() == sent


@given(st.lists(st.binary(max_size=9), min_size=1, max_size=5))
def test_any_bytes_go_there_and_back_in_binary(parts: list[bytes]) -> None:
    call = infer({"x": objects(parts)})
    said = call.message(None)
    request = decode(said.body, said.headers, [TensorSpec(name="y", datatype="BYTES", shape=(-1,))])
    body, length = encode_response("m", "v1", request, {"y": request.inputs["x"]})
    assert call.read(Reply(200, {HEADER_LENGTH: str(length)}, body))["y"].tolist() == parts


def test_arrays_of_strings_are_taken_as_numpy_has_them() -> None:
    for array in (np.array([["größer", ""]]), np.array([["größer".encode(), b""]])):
        for binary in (True, False):
            said = infer({"x": array}, binary=binary).message(None)
            request = decode(said.body, said.headers, [TensorSpec(name="y", datatype="BYTES", shape=(-1,))])
            assert request.inputs["x"].tolist() == [["größer".encode(), b""]]


@pytest.mark.parametrize("array", [objects([b"\xff"]), np.array([np.nan])])
def test_what_json_has_not_is_not_sent_as_json(array: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"input 'x' holds .*; send it as binary data: binary=True"):
        infer({"x": array}, binary=False)


@pytest.mark.parametrize("array", [
    np.arange(6, dtype=">f4").reshape(2, 3), np.arange(12, dtype=np.int16).reshape(3, 4)[:, ::2],
    np.arange(6, dtype=np.float32).reshape(2, 3).T, np.float32(3), np.zeros((0, 3), np.uint8),
])  # fmt: skip
def test_arrays_are_sent_as_they_read_whatever_their_memory_is(array: Any) -> None:
    said = infer({"x": array}).message(None)
    request = decode(said.body, said.headers, [TensorSpec(name="y", datatype="FP32", shape=(-1,))])
    assert request.inputs["x"].shape == array.shape
    assert (request.inputs["x"] == array).all()
    assert request.inputs["x"].dtype == array.dtype.newbyteorder("=")


def test_what_cannot_be_sent_is_told_before_anything_is() -> None:
    with pytest.raises(InvalidRequest, match="complex"):
        infer({"x": np.zeros(2, np.complex64)})
    with pytest.raises(InvalidRequest, match="NaN"):
        infer({"x": np.array([np.nan], np.float32)}, binary=False)


def test_gzip_packs_what_is_worth_it_and_asks_for_the_same() -> None:
    small, large = (
        infer({"x": np.zeros(size, np.float32)}, gzip=True).message(None) for size in (4, 4000)
    )
    assert small.headers["accept-encoding"] == large.headers["accept-encoding"] == "gzip"
    assert "content-encoding" not in small.headers
    assert large.headers["content-encoding"] == "gzip"
    plain = infer({"x": np.zeros(4000, np.float32)}).message(None)
    assert zlib.decompress(large.body, 31) == plain.body
    assert "accept-encoding" not in plain.headers


@given(WISHES, st.none() | st.floats(0.001, 100))
def test_a_picture_says_its_wishes_in_headers(wishes: Wishes, left_s: float | None) -> None:
    said = calls.infer_picture("m", b"\x89PNG...", content_type=None, wishes=wishes, version=None).message(left_s)
    assert said.headers["content-type"] == "image/png"
    assert said.body == b"\x89PNG..."
    heard = in_headers({name.encode(): value.encode() for name, value in said.headers.items()})
    assert heard == as_said(wishes, None if left_s is None else max(1, int(left_s * 1e6)) / 1e6)


def test_what_is_no_picture_must_be_named() -> None:
    with pytest.raises(InvalidRequest, match="begins with b'GIF8'"):
        calls.infer_picture("m", b"GIF89a", content_type=None, wishes=Wishes(), version=None)
    call = calls.infer_picture("m", b"GIF89a", content_type="image/gif", wishes=Wishes(), version=None)
    assert call.message(None).headers["content-type"] == "image/gif"


def test_names_and_versions_stay_one_segment_of_the_path() -> None:
    path = "/v2/models/a%2F..%2Fb/versions/v%2F1"
    assert calls.metadata("a/../b", "v/1").message(None) == Message("GET", path, {}, b"")
    assert calls.repository_change("a b", "load", None).message(None).path == "/v2/repository/models/a%20b/load"


@pytest.mark.parametrize(("status", "error"), [
    (400, errors.InvalidRequest), (404, errors.UnknownModel), (408, errors.DeadlineExceeded),
    (413, errors.PayloadTooLarge), (429, errors.QuotaExceeded), (500, errors.InferenceFailed),
    (503, errors.Overloaded), (405, errors.ProtocolError), (302, errors.ProtocolError), (502, errors.ProtocolError),
])  # fmt: skip
def test_a_refusal_is_the_error_that_the_server_raised_in_its_words(status: int, error: type[SluiceError]) -> None:
    call = calls.metadata("m", None)
    with pytest.raises(error, match="what, the value") as caught:
        call.read(Reply(status, {"retry-after": "7"}, orjson.dumps({"error": "what, the value"})))
    assert type(caught.value) is error
    assert getattr(caught.value, "retry_after_s", 7.0) == 7.0
    for body in (b"", b"<html>", b"[]", b'{"error": 3}', b'{"error": ""}', b"\xff" * 999):
        with pytest.raises(error, match=f"answered {status}") as caught:
            call.read(Reply(status, {}, body))
        assert len(str(caught.value)) < 1000


@given(st.binary(max_size=200), st.none() | st.text(max_size=10))
def test_no_answer_whatever_breaks_the_client(body: bytes, length: str | None) -> None:
    """It reads it, or says ProtocolError."""
    headers = {} if length is None else {HEADER_LENGTH: length}
    for call in (
        infer({"x": np.zeros(1, np.float32)}), calls.metadata("m", None), calls.config("m", None),
        calls.statistics("m", None), calls.repository_index(ready=False), calls.server_metadata(),
    ):  # fmt: skip
        with pytest.raises(ProtocolError):
            call.read(Reply(200, headers, body if body[:1] not in b"{[" else b"x" + body))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(("name", "inputs", "shape", "versions", "input", "dims", "parameters", "model_stats", "state",
                         "inference_stats", "success", "count", "batch_stats", "extensions")), inner, max_size=4,
    ), max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_no_json_whatever_breaks_the_client(said: Any) -> None:
    body = orjson.dumps(said) if _fits(said) else b"{}"
    for call in (
        calls.metadata("m", None), calls.config("m", None), calls.statistics("m", None),
        calls.repository_index(ready=False), calls.server_metadata(),
    ):  # fmt: skip
        with contextlib.suppress(ProtocolError):
            call.read(Reply(200, {}, body))


def _fits(said: Any) -> bool:
    try:
        orjson.dumps(said)
    except orjson.JSONEncodeError:
        return False
    return True


@pytest.mark.parametrize(("said", "seconds"), [
    ("3", 3.0), ("0", 0.0), (" 12 ", 12.0), ("", None), ("soon", None), ("-1", None), ("1.5", None),
    ("9" * 30, None), ("Thu, 01 Jan 1970 00:01:40 GMT", 60.0), ("Thu, 01 Jan 1970 00:00:01 GMT", 0.0),
])  # fmt: skip
def test_retry_after_in_seconds_or_as_a_date(said: str, seconds: float | None) -> None:
    assert retry_after_s(Reply(503, {"retry-after": said}, b""), now=lambda: 40.0) == seconds


def test_readiness_is_an_answer_and_not_a_refusal() -> None:
    call = calls.is_ready("m", None)
    assert not call.retried
    assert call.read(Reply(200, {}, b"{}"))
    assert not call.read(Reply(503, {}, b"{}"))
    with pytest.raises(errors.UnknownModel):
        call.read(Reply(404, {}, b""))


def test_an_output_that_is_not_there_is_named() -> None:
    answer = InferAnswer("m", "1", "", None, {"y": np.zeros(1)}, {})
    with pytest.raises(KeyError, match="no output 'z'; the answer has \\['y'\\]"):
        answer["z"]
