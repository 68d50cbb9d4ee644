"""Hostile HTTP/2: the frames of a right gRPC call, and then not quite.

Written by hand, frame by frame: no library would send most of it. What a server does with it is its own affair (an
answer, a GOAWAY, the end of the connection); what counts is that the calls of others are answered meanwhile and after.
"""

from __future__ import annotations

import random
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, END_HEADERS, PADDED = 0x1, 0x4, 0x8


def frame(kind: int, flags: int, stream: int, payload: bytes, *, length: int | None = None) -> bytes:
    """Its length may be a lie."""
    size = len(payload) if length is None else length
    return struct.pack(">I", size & 0xFFFFFF)[1:] + bytes([kind & 255, flags]) + struct.pack(">I", stream) + payload


def field(name: bytes, value: bytes) -> bytes:
    """A header field, literal, never indexed, without Huffman's code (RFC 7541, 6.2.2)."""
    return b"\x00" + _text(name) + _text(value)


def _text(value: bytes) -> bytes:
    size = len(value)
    if size < 127:
        return bytes([size]) + value
    rest, said = size - 127, [127]
    while rest > 127:
        said.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*said, rest]) + value


def fields(path: bytes, *more: tuple[bytes, bytes]) -> bytes:
    """The head of a gRPC call."""
    lines = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", path), (b":authority", b"fuzz"), (b"te",
    b"trailers"),
             (b"content-type", b"application/grpc"), *more]  # fmt: skip
    return b"".join(field(name, value) for name, value in lines)


def call(message: bytes, path: bytes = b"/inference.GRPCInferenceService/ModelInfer", stream: int = 1) -> list[bytes]:
    """The frames of a right call, in pieces of what every peer takes."""
    body = b"\x00" + struct.pack(">I", len(message)) + message
    pieces = [body[start : start + 16_384] for start in range(0, len(body), 16_384)]
    return [
        frame(HEADERS, END_HEADERS, stream, fields(path)),
        *(frame(DATA, END_STREAM if n + 1 == len(pieces) else 0, stream, piece) for n, piece in enumerate(pieces)),
    ]


def hostile(rng: random.Random, message: bytes) -> tuple[str, bytes]:
    """(what it is, bytes from the connection's first on)"""
    start = PREFACE + frame(SETTINGS, 0, 0, b"")
    whole = b"".join(call(message))
    head = frame(HEADERS, END_HEADERS, 1, fields(b"/inference.GRPCInferenceService/ModelInfer"))
    kinds = {
        "flipped": lambda: start + _flipped(rng, whole),
        "cut": lambda: start + whole[: rng.randrange(len(whole))],
        "no settings": lambda: PREFACE + whole,
        "length": lambda: start + frame(rng.randrange(10), 0, rng.choice([0, 1]), b"x" * 10, length=rng.choice([0,
        9, 11, 2**24 - 1])),
        "unknown frames": lambda: start + b"".join(frame(rng.randrange(10, 256), 255, 0,
        rng.randbytes(20)) for _ in range(50)),
        "settings": lambda: PREFACE + frame(SETTINGS, 0, 0, b"".join(
            struct.pack(">HI", rng.randrange(8), rng.choice([0, 1, 2**14 - 1, 2**31,
            2**32 - 1])) for _ in range(rng.choice([1, 500])))) + whole,
        "settings flood": lambda: start + frame(SETTINGS, 0, 0, b"") * 2000,
        "ping flood": lambda: start + frame(PING, 0, 0, b"8 bytes.") * 2000,
        "rapid reset": lambda: start + b"".join(
            b"".join(call(message[:200], stream=n)) + frame(RST_STREAM, 0, n, struct.pack(">I",
            8)) for n in range(1, 400, 2)),
        "open streams": lambda: start + b"".join(
            frame(HEADERS, END_HEADERS, n, fields(b"/inference.GRPCInferenceService/ModelInfer")) for n in range(1,
            2000, 2)),
        "continuations": lambda: start + frame(HEADERS, 0, 1, fields(b"/x")) + frame(CONTINUATION, 0, 1, field(b"a",
        b"b" * 90)) * 1500,
        "large head": lambda: start + frame(HEADERS, END_HEADERS, 1, fields(b"/x", *((b"x-%d" % n,
        b"v" * 100) for n in range(140)))),
        "index bomb": lambda: start + frame(HEADERS, END_HEADERS, 1,
        b"\x40" + _text(b"n") + _text(b"v" * 4000) + b"\xbe" * 12_000),
        "bad index": lambda: start + frame(HEADERS, END_HEADERS, 1, rng.choice([b"\xff" * 10, b"\x80", b"\xfe",
        b"\x00\x7f\xff\xff\xff\xff\xff"])),
        "bad fields": lambda: start + frame(HEADERS, END_HEADERS, 1, fields(b"/x", (b"Upper", b"x"), (b":late",
        b"x"), (b"connection", b"close"))),
        "stream 0": lambda: start + frame(rng.choice([DATA, HEADERS, RST_STREAM]), 5, 0, b"\x00" * 5),
        "even stream": lambda: start + b"".join(call(message, stream=2)),
        "backwards": lambda: start + b"".join(call(message, stream=9)) + b"".join(call(message, stream=3)),
        "data first": lambda: start + frame(DATA, 1, 1, b"\x00\x00\x00\x00\x00"),
        "twice": lambda: start + whole + whole,
        "window": lambda: start + head + frame(WINDOW_UPDATE, 0, rng.choice([0, 1]), struct.pack(">I",
        rng.choice([0, 2**31 - 1, 2**32 - 1]))) * 3,
        "padding": lambda: start + head + frame(DATA, PADDED | END_STREAM, 1, rng.choice([b"", b"\xff", b"\x05abc"])),
        "prefix": lambda: start + head + frame(DATA, END_STREAM, 1, rng.choice([
            b"", b"\x00", b"\x00\xff\xff\xff\xff", b"\x01\x00\x00\x00\x01x", b"\x07\x00\x00\x00\x00",
            b"\x00\x00\x00\x00\x00" * 3,
            b"\x00" + struct.pack(">I", len(message) + 9) + message])),
        "no end": lambda: start + head + frame(DATA, 0, 1, b"\x00\x00\x00\x00\x05ab"),
        "overrun": lambda: start + head + frame(DATA, 0, 1, b"\x00\x01\x00\x00\x00" + b"x" * 16_000) * 20,
        "goaway": lambda: start + frame(GOAWAY, 0, 0, b"\x00" * 8) + whole,
        "push": lambda: start + frame(PUSH, END_HEADERS, 1, b"\x00\x00\x00\x02" + fields(b"/x")),
        "priority": lambda: start + frame(PRIORITY, 0, 1, struct.pack(">IB", 1, 9)) * 100 + whole,
        "other head": lambda: start + frame(HEADERS, END_HEADERS | END_STREAM, 1, field(b":method",
        rng.choice([b"GET", b"", b"PRI"])) + fields(b"")),
        "trailers": lambda: start + head + frame(HEADERS, END_HEADERS | END_STREAM, 1, field(b"x", b"y")),
        "upgrade": lambda: b"GET / HTTP/1.1\r\nhost: h\r\nupgrade: h2c\r\nhttp2-settings: AA\r\n\r\n" + start,
        "noise": lambda: rng.choice([b"", PREFACE, start]) + rng.randbytes(rng.randint(1, 3000)),
        "half a preface": lambda: PREFACE[: rng.randrange(1, 24)],
    }  # fmt: skip
    what = rng.choice(list(kinds))
    return what, kinds[what]()


def _flipped(rng: random.Random, whole: bytes) -> bytes:
    data = bytearray(whole)
    for _ in range(rng.randint(1, 8)):
        data[rng.randrange(min(len(data), rng.choice([60, len(data)])))] = rng.randrange(256)
    return bytes(data)
