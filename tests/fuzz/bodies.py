"""Hostile bodies: what stands in them is wrong, how they are framed is right. So every one must be answered."""

from __future__ import annotations

import copy
import gzip
import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image

from serve_apps.oip.codec import HEADER_LENGTH
from tests.fuzz.valid import Valid, post
from tests.fuzz.wire import Case

Generator = Callable[[Valid, random.Random], Case]
_VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64, 10**30, -(2**63) - 1, 0.5, -0.0,
    1e308, 5e-324, "", "x", "\x00", "\ud7ff", "\U0001f600", "a" * 5000, [], {}, [[]], [[], []], [None], {"": None},
    {"data": []}, "FP16", "BYTES", "BOOL", "INT64", "UINT8", "FP128", "NaN", "-1", "1e3", "../../etc/passwd", [1, [2]],
    [-1], [0], [2**62, 2**62], [2**32, 2**32, 2**32], [1] * 40, [0, 2**63], ["1"], [1.0], [True], [[1, 2], [3]],
]  # fmt: skip
_TOKENS = [
    b"NaN", b"-NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"00", b"01", b"1.", b".5", b"+1", b"0x10", b"1_0",
    b"'x'", b"undefined", b'"\\ud800"', b'"\\u0000"', b'"\xff\xfe"', b'"\xed\xa0\x80"', b"\xef\xbb\xbf1", b"1" * 400,
    b"[" * 2000, b'{"a":' * 2000, b"[" * 200 + b"]" * 200, b"//", b"/* */ 1", b"1 2", b"{", b"]", b"\x00",
]  # fmt: skip


def _json(valid: Valid, rng: random.Random) -> Any:
    return json.loads(valid.of("json", rng).body)


def _paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Of everything in a tree, not more than a few of a long list."""
    found = [here] if here else []
    if isinstance(value, dict):
        for key, each in value.items():
            found += _paths(each, (*here, key))
    elif isinstance(value, list):
        for index, each in enumerate(value[:4]):
            found += _paths(each, (*here, index))
    return found


def _put(value: Any, path: tuple[Any, ...], new: Any) -> None:
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def json_values(valid: Valid, rng: random.Random) -> Case:
    """One to three values of a valid request are others."""
    request = _json(valid, rng)
    if rng.random() < 0.5:
        name = rng.choice(["timeout", "priority", "accuracy", "tenant", "binary_data_output", "x"])
        request["parameters"] = {name: copy.deepcopy(rng.choice(_VALUES))}
    if rng.random() < 0.3:
        value = copy.deepcopy(rng.choice(_VALUES))
        request["outputs"] = value if rng.random() < 0.5 else [{"name": value}]
    what = []
    for _ in range(rng.randint(0, 2)):
        paths = _paths(request)
        path = rng.choice(paths)
        new = copy.deepcopy(rng.choice(_VALUES))  # it may be changed, in its turn
        _put(request, path, new)
        what.append(f"{'.'.join(map(str, path))}={str(new)[:20]}")
    return Case("JSON: values", " ".join(what), post(valid.path, json.dumps(request).encode(errors="surrogatepass")))


def json_tokens(valid: Valid, rng: random.Random) -> Case:
    """A value's text is no JSON, or no JSON that one should take."""
    request = _json(valid, rng)
    path = rng.choice(_paths(request))
    _put(request, path, "@@@@")
    token = rng.choice(_TOKENS)
    body = json.dumps(request).encode().replace(b'"@@@@"', token, 1)
    return Case("JSON: tokens", f"{path} {token[:20]!r}", post(valid.path, body))


def json_bytes(valid: Valid, rng: random.Random) -> Case:
    """Bytes changed, put in, left out; or cut off."""
    body = bytearray(valid.of("json", rng).body)
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(body)) if body else 0
        match rng.randrange(4):
            case 0:
                body[at : at + 1] = rng.randbytes(1)
            case 1:
                body[at:at] = rng.randbytes(rng.randint(1, 4))
            case 2:
                del body[at : at + rng.randint(1, 30)]
            case 3:
                del body[rng.randrange(len(body) + 1) :]
    return Case("JSON: bytes", "", post(valid.path, bytes(body)))


def json_shapes(valid: Valid, rng: random.Random) -> Case:
    """Depth, breadth and repetition."""
    request = _json(valid, rng)
    first = request["inputs"][0]
    depth = rng.choice([50, 300, 1000, 5000, 100_000])
    match rng.randrange(9):
        case 0:
            body = b"[" * depth + b"]" * depth
        case 1:
            body = b'{"inputs":' * depth + b"1" + b"}" * depth
        case 2:
            text = json.dumps(request | {"inputs": [first | {"data": 0}]})
            body = text.replace('"data": 0', '"data": ' + "[" * depth + "]" * depth, 1).encode()
        case 3:
            request["inputs"] = [first] * rng.choice([2, 100, 1000])
            body = json.dumps(request).encode()[: 4 << 20]
        case 4:
            first["shape"] = [
                rng.choice([1, 2**16, 2**31, 2**32, 2**63, 0, -1]) for _ in range(rng.choice([0, 1, 4, 1000]))
            ]
            body = json.dumps(request).encode()
        case 5:
            first["name"] = rng.choice(["n", "\u00e9", "\U0001f600"]) * rng.choice([1000, 500_000])
            body = json.dumps(request).encode()
        case 6:
            request["parameters"] = {f"p{n}": n for n in range(rng.choice([100, 20_000]))}
            body = json.dumps(request).encode()
        case 7:
            request["outputs"] = [{"name": rng.choice(["logits", "x", ""])}] * rng.choice([10, 10_000])
            body = json.dumps(request).encode()
        case _:
            body = b'{"inputs":[],' + b'"inputs":1,' * rng.choice([1, 1000]) + json.dumps(request).encode()[1:]
    return Case("JSON: depth and breadth", f"{len(body)} bytes", post(valid.path, body))


def binary_lengths(valid: Valid, rng: random.Random) -> Case:
    """What the lengths say is not so."""
    one = valid.of("binary", rng)
    end = int(one.headers[HEADER_LENGTH])
    head, raw = json.loads(one.body[:end]), one.body[end:]
    headers = dict(one.headers)
    sizes = [-1, 0, 1, 2**31, 2**32, 2**63, 2**64, 1.5, "784", None, True, [], "NaN", len(raw) + 1, len(raw) - 1, 1e300]
    for _ in range(rng.randint(0, 2)):
        entry = rng.choice(head["inputs"])
        match rng.randrange(4):
            case 0:
                entry["parameters"]["binary_data_size"] = rng.choice(sizes)
            case 1:
                entry["shape"] = rng.choice([[0, 3], [-1], [2**32, 2**32], [2**63], [], [1.5], None, "x"])
            case 2:
                entry["datatype"] = rng.choice(["FP64", "BYTES", "", None, 1, "uint8", "FP16"])
            case _:
                entry["data"] = [1]
    text = json.dumps(head).encode()
    said: str = rng.choice([
        str(len(text)), str(len(text)), str(len(text)), "-1", "0", "NaN", "", " ", "1e3", "0x10", f"+{len(text)}",
        str(len(text) + len(raw) + 1), "9" * 40, str(len(text) - 1), str(len(text) + 1), f"{len(text)},{len(text)}",
        "\u0661".encode().decode("latin-1"),
    ])  # fmt: skip
    headers[HEADER_LENGTH] = said
    if rng.random() < 0.3:
        raw = rng.choice([raw[:-1], raw + b"\0", b"", raw * 2])
    return Case("binary: lengths", f"{said} of {len(text)}", post(valid.path, text + raw, headers))


def binary_bytes(valid: Valid, rng: random.Random) -> Case:
    """Bytes anywhere changed, put in or left out."""
    one = valid.of("binary", rng)
    body = bytearray(one.body)
    end = int(one.headers[HEADER_LENGTH])
    for _ in range(rng.randint(1, 5)):
        at = rng.randrange(min(len(body), end) if rng.random() < 0.7 else len(body) or 1) if body else 0
        if rng.random() < 0.5:
            body[at : at + 1] = rng.randbytes(1)
        elif rng.random() < 0.5:
            body[at:at] = rng.randbytes(rng.randint(1, 8))
        else:
            del body[at : at + rng.randint(1, 8)]
    return Case("binary: bytes", "", post(valid.path, bytes(body), one.headers))


def octets(valid: Valid, rng: random.Random) -> Case:
    """Raw bytes of another number than rows have, and of what is no picture."""
    kind = rng.choice(
        ["application/octet-stream", "application/octet-stream", "text/plain", "image/png", "image/x", ""]
    )
    size = rng.choice([0, 1, 783, 785, 1000, 784 * 3 - 1, 100_000])
    accept = rng.choice(["*/*", "application/octet-stream", "x" * 300, ""])
    return Case("octets", f"{kind} {size}", post(valid.path, rng.randbytes(size), {"content-type": kind,
    "accept": accept}),
                wrong=True)  # fmt: skip


def pictures(valid: Valid, rng: random.Random) -> Case:
    """Pictures that are damaged, of the wrong kind, or far larger than their file."""
    made = io.BytesIO()
    kind = rng.choice(["png", "jpeg", "gif", "bmp", "webp"])
    claimed = rng.choice(["png", "jpeg"])
    big = rng.random() < 0.15
    side = rng.choice([4000, 9000]) if big else rng.choice([1, 27, 28, 29, 200])
    mode = rng.choice(["L", "RGB", "1"]) if kind != "webp" else "RGB"
    if big:
        kind, mode = "png", "1"
    Image.new(mode, (side, rng.choice([1, side]))).save(made, kind)
    data = bytearray(made.getvalue())
    if not big:
        for _ in range(rng.randint(0, 8)):
            at = rng.randrange(8 if rng.random() < 0.1 else 0, len(data))
            data[at] = rng.randrange(256)
    if rng.random() < 0.3:
        del data[rng.randrange(len(data)) :]
    if kind == "png" and rng.random() < 0.3 and len(data) > 24:
        data[16:24] = struct.pack(">II", *rng.choice([(2**31 - 1, 2**31 - 1), (0, 0), (65535, 65535), (2**32 - 1, 1)]))
        if len(data) > 33:
            data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    return Case(
        "pictures", f"{kind} as {claimed}, {side}", post(valid.path, bytes(data), {"content-type": f"image/{claimed}"})
    )


_BOMBS: dict[str, bytes] = {}


def _bomb(name: str) -> bytes:
    """Made once: they take a while."""
    if not _BOMBS:
        blanks = zlib.compressobj(9, zlib.DEFLATED, 31)
        packed = b"".join(blanks.compress(b" " * (1 << 20)) for _ in range(200)) + blanks.flush()
        _BOMBS["200 MiB of blanks"] = packed
        _BOMBS["packed twice"] = gzip.compress(packed)
        _BOMBS["a thousand members"] = gzip.compress(b" " * 1000) * 1000
        _BOMBS["20 MiB as deflate"] = zlib.compress(b" " * (20 << 20), 9)
    return _BOMBS[name]


def compressed(valid: Valid, rng: random.Random) -> Case:
    """Bombs, damage, and other encodings than are said."""
    encoding = rng.choice(
        ["gzip", "gzip", "gzip", "deflate", "x-gzip", "br", "zstd", "gzip, gzip", "identity", "", "\xff", "g" * 500]
    )
    body = valid.of("json", rng).body
    match rng.randrange(7):
        case 0:
            what = rng.choice(["200 MiB of blanks", "packed twice", "a thousand members", "20 MiB as deflate"])
            body = _bomb(what)
            encoding = "deflate" if "deflate" in what else "gzip"
        case 1:
            what, body = "cut off", gzip.compress(body)[: rng.randint(0, 60)]
        case 2:
            packed = bytearray(gzip.compress(body) if encoding != "deflate" else zlib.compress(body))
            for _ in range(rng.randint(1, 5)):
                packed[rng.randrange(len(packed))] = rng.randrange(256)
            what, body = "damaged", bytes(packed)
        case 3:
            what, body = "with a tail", gzip.compress(body) + rng.randbytes(rng.randint(1, 50))
        case 4:
            what = "not packed"
        case 5:
            what, body = "noise", rng.randbytes(rng.randint(0, 3000))
        case _:
            what, body = "empty", rng.choice([b"", gzip.compress(b""), zlib.compress(b""), b"\x1f\x8b"])
    return Case("compressed", f"{what} as {encoding[:20]}", post(valid.path, body, {"content-encoding": encoding}))


def too_large(valid: Valid, rng: random.Random) -> Case:
    """More than is taken; sent all the same."""
    size = rng.choice([(4 << 20) + 1, 5 << 20, (16 << 20) + 1])
    headers = rng.choice([{}, {"content-type": "application/json"}])
    return Case("too large", f"{size}", post(valid.path, b" " * size, headers), wrong=True)


BODIES: dict[Generator, int] = {
    json_values: 22, json_tokens: 8, json_bytes: 12, json_shapes: 5, binary_lengths: 14, binary_bytes: 10, octets: 4,
    pictures: 6, compressed: 8, too_large: 1,
}  # fmt: skip
"""Each with its weight."""
