"""A gRPC call: what its headers say, and how its answer looks on the wire. No connection, no frames: front/h2.py.

    headers -> Call; DATA of one stream -> message; (Status, message) -> DATA and trailers
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from cluster.errors import InvalidRequest, PayloadTooLarge
from serve_apps.front.hpack import Header, literal
from serve_apps.oip.compression import compress, decompress
from serve_apps.oip.grpc_status import RETRY_AFTER, UNIMPLEMENTED, Status, status_of

PREFIX = 5
"""Before each message: a byte that says whether it is packed, and its length."""
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])\Z")
_SECONDS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_PACKINGS = (b"gzip", b"deflate")
_WISH = b"sluice-"
_OK_200 = b"\x88"  # RFC 7541: entry 8 of the static table, by itself
HEADERS = _OK_200 + literal(b"content-type", b"application/grpc") + literal(
    b"grpc-accept-encoding", b"identity,deflate,gzip"
)  # fmt: skip
"""Of every answer."""
FINE = literal(b"grpc-status", b"0")
"""The trailers of one that went well."""


class Call(NamedTuple):
    """What a header block says; the same object for the same words."""

    path: str
    timeout_s: float | None = None
    headers: Mapping[bytes, bytes] = {}
    """Those of its metadata that may be wishes."""
    packing: bytes = b""
    """What packed messages are packed with."""
    refused: Status | None = None
    status: bytes = b""
    """HTTP's, if it is no gRPC at all."""


def read(headers: list[Header]) -> Call:
    """Never raises: what is wrong is `refused`, once the stream is whole, or `status`, at once."""
    said = dict(headers)
    if said.get(b":method") != b"POST" or not said.get(b"content-type", b"").startswith(b"application/grpc"):
        return Call("", status=b"415")
    path = said.get(b":path", b"").decode("latin-1")
    refused = timeout_s = None
    if b"grpc-timeout" in said:
        match = _TIMEOUT.match(said[b"grpc-timeout"])
        if match is None:
            refused = status_of(InvalidRequest(f"grpc-timeout={said[b'grpc-timeout'][:20]!r} is no time, such as 500m"))
        else:
            timeout_s = int(match[1]) * _SECONDS[match[2]]
    packing = said.get(b"grpc-encoding", b"identity")
    if packing == b"identity":
        packing = b""
    elif packing not in _PACKINGS:
        refused = Status(UNIMPLEMENTED, f"grpc-encoding {packing[:40]!r} is not known; send gzip, deflate or identity")
    wishes = {name: value for name, value in headers if name.startswith(_WISH)}
    return Call(path, timeout_s, wishes, packing, refused)


def is_plain(data: bytes, at: int, stop: int) -> bool:
    """Is this one whole message, not packed?"""
    return stop - at >= PREFIX and data[at : at + PREFIX] == b"\0" + (stop - at - PREFIX).to_bytes(4, "big")


def message(call: Call, body: bytes | bytearray, most: int) -> bytes:
    """The one message of a stream. Raises InvalidRequest, PayloadTooLarge."""
    size = int.from_bytes(body[1:PREFIX], "big")
    if len(body) < PREFIX or len(body) != PREFIX + size:
        raise InvalidRequest(f"the call brought {len(body)} bytes; a call brings one message, behind its length")
    if not body[0]:
        return bytes(body[PREFIX:])
    if body[0] != 1 or not call.packing:
        raise InvalidRequest("the message says it is packed, and no grpc-encoding says how")
    return decompress(bytes(body[PREFIX:]), call.packing.decode(), max_bytes=most)


def too_large(size: int, most: int) -> Status:
    return status_of(
        PayloadTooLarge(f"the message has {size} bytes or more; at most {most} are taken: send fewer rows at once")
    )


def answer(call: Call, content: bytes) -> tuple[bytes, bytes]:
    """(headers, DATA) of one that went well; packed if the request was, and it pays."""
    if call.packing:
        packed, encoding = compress(content, call.packing.decode())
        if encoding is not None:
            return HEADERS + literal(b"grpc-encoding", encoding.encode()), b"\1%b%b" % (_size(packed), packed)
    return HEADERS, b"\0%b%b" % (_size(content), content)


def trailers(status: Status) -> bytes:
    """As they stand in a header block."""
    block = literal(b"grpc-status", b"%d" % status.code)
    if status.details:
        block += literal(b"grpc-message", _percent(status.details))
    if status.retry_after_s is not None:
        block += literal(RETRY_AFTER.encode(), b"%d" % status.retry_after_s)
    return block


def _size(content: bytes) -> bytes:
    return len(content).to_bytes(4, "big")


def _percent(text: str) -> bytes:
    """gRPC over HTTP/2: visible ASCII and space as they are, but for the percent sign."""
    return b"".join(
        b"%c" % byte if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in text.encode()
    )
