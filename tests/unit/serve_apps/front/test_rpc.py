"""Header blocks -> calls, and answers -> what stands on the wire."""

from __future__ import annotations

import gzip

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.control.serve_env import MAX_GRPC_BYTES
from cluster.errors import InvalidRequest, PayloadTooLarge
from serve_apps.front import rpc
from serve_apps.front.grpc_protocol import MAX_MESSAGE_BYTES
from serve_apps.front.hpack import Decoder
from serve_apps.oip.exchange import MAX_BODY_BYTES
from serve_apps.oip.grpc_status import Status

GRPC = [(b":method", b"POST"), (b":path", b"/a.B/C"), (b"content-type", b"application/grpc")]
CALL = rpc.Call("/a.B/C")
PACKED = rpc.Call("/a.B/C", packing=b"gzip")


def test_every_way_takes_messages_of_the_same_size() -> None:
    assert MAX_MESSAGE_BYTES == MAX_GRPC_BYTES, "our reader and gRPC's own server"
    assert 0 < MAX_GRPC_BYTES - MAX_BODY_BYTES <= 1 << 16, "a body over HTTP, and names around it"


def test_a_call_is_read() -> None:
    call = rpc.read([
        *GRPC, (b"grpc-timeout", b"250m"), (b"grpc-encoding", b"gzip"), (b"sluice-priority", b"1"), (b"x", b"y"),
    ])  # fmt: skip
    assert call == rpc.Call("/a.B/C", 0.25, {b"sluice-priority": b"1"}, b"gzip")


@pytest.mark.parametrize(
    ("said", "seconds"), [(b"2H", 7200.0), (b"3M", 180.0), (b"1S", 1.0), (b"5m", 5e-3), (b"7u", 7e-6), (b"9n", 9e-9)]
)
def test_times_have_units(said: bytes, seconds: float) -> None:
    assert rpc.read([*GRPC, (b"grpc-timeout", said)]).timeout_s == pytest.approx(seconds)


@pytest.mark.parametrize("said", [b"", b"5", b"m", b"-5m", b"123456789m", b"1.5S", b"5m\n"])
def test_a_time_that_is_none_is_refused(said: bytes) -> None:
    refused = rpc.read([*GRPC, (b"grpc-timeout", said)]).refused
    assert refused is not None
    assert (refused.code, "grpc-timeout" in refused.details) == (3, True)


@pytest.mark.parametrize("headers", [[], GRPC[1:], GRPC[:2], [(b":method", b"GET"), *GRPC[1:]]])
def test_what_is_no_grpc_has_a_status_of_http(headers: list[tuple[bytes, bytes]]) -> None:
    assert rpc.read(headers).status == b"415"


@given(st.binary(max_size=40))
def test_a_message_is_what_was_sent_or_refused(body: bytes) -> None:
    assert rpc.message(CALL, b"\0" + len(body).to_bytes(4, "big") + body, 100) == body
    try:
        got = rpc.message(CALL, body, 100)
    except InvalidRequest:
        return
    assert body == b"\0" + len(got).to_bytes(4, "big") + got


def test_a_packed_message_is_unpacked_within_bounds() -> None:
    packed = gzip.compress(bytes(1000))
    body = b"\1" + len(packed).to_bytes(4, "big") + packed
    assert rpc.message(PACKED, body, 1000) == bytes(1000)
    with pytest.raises(PayloadTooLarge):
        rpc.message(PACKED, body, 999)
    with pytest.raises(InvalidRequest, match="grpc-encoding"):
        rpc.message(CALL, body, 1000)


def test_an_answer_is_packed_as_its_request_was() -> None:
    content = bytes(5000)
    headers, data = rpc.answer(CALL, content)
    assert (headers, data) == (rpc.HEADERS, b"\0" + (5000).to_bytes(4, "big") + content)
    headers, data = rpc.answer(PACKED, content)
    assert dict(Decoder().decode(headers))[b"grpc-encoding"] == b"gzip"
    assert data[:1] == b"\1"
    assert int.from_bytes(data[1:5], "big") == len(data) - 5
    assert gzip.decompress(data[5:]) == content


@given(st.text(max_size=60))
def test_details_travel_as_visible_ascii(text: str) -> None:
    block = dict(Decoder().decode(rpc.trailers(Status(14, text, 7))))
    assert block[b"grpc-status"] == b"14"
    assert block[b"retry-after"] == b"7"
    said = block.get(b"grpc-message", b"")
    assert all(0x20 <= byte <= 0x7E for byte in said)
    parts = said.split(b"%")
    assert parts[0] + b"".join(bytes((int(p[:2], 16),)) + p[2:] for p in parts[1:]) == text.encode()
