"""Content-Encoding of bodies: what comes is unpacked within bounds, what goes is packed if the client takes it.

gzip (RFC 1952) and deflate (RFC 1950; also without its header, as some clients send it). A few bytes may unpack to a
thousand times as many, so nothing is unpacked beyond the bounds to find out how much it would have been.

Both hold the thread that calls them: unpacking makes 1 MiB in 1 to 5 ms, packing takes about 10 ms for one.
"""

from __future__ import annotations

import zlib
from functools import lru_cache

from cluster.errors import InvalidRequest, PayloadTooLarge

MAX_RATIO = 100
"""JSON packs 3 to 20 times; only above FREE_BYTES, for a small picture that is all black packs better."""
FREE_BYTES = 1 << 20
MIN_BYTES = 1024
"""Below it an answer fits into a packet as it is."""
_MAX_MEMBERS = 8
"""A gzip body may be several, one after the other; each costs a loop, also an empty one."""
_LEVEL = 1
"""The quickest: the others make JSON numbers smaller by a tenth and take two to six times as long."""
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's wbits


def decompress(body: bytes, encoding: str, *, max_bytes: int, max_ratio: int = MAX_RATIO) -> bytes:
    """The body as it was before `encoding`, the value of Content-Encoding. Raises PayloadTooLarge beyond `max_bytes`
    or, above FREE_BYTES, `max_ratio` times its size; InvalidRequest for another encoding, or a body that is not what
    it says."""
    name = encoding.strip().lower()
    if name in ("", "identity"):
        if len(body) > max_bytes:
            raise _too_large(len(body), max_bytes)
        return body
    if name not in ("gzip", "x-gzip", "deflate"):
        raise InvalidRequest(
            f"content-encoding {encoding[:40]!r} is not known; send the body plain, or packed once by gzip or deflate"
        )
    fair = max(FREE_BYTES, max_ratio * len(body))
    try:
        parts = _members(body, name, min(max_bytes, fair))
    except zlib.error as error:
        raise InvalidRequest(f"the body of {len(body)} bytes is no {name} ({error}); send it plain") from error
    if parts is not None:
        return parts[0] if len(parts) == 1 else b"".join(parts)
    if max_bytes <= fair:
        raise _too_large(len(body), max_bytes, name)
    raise PayloadTooLarge(
        f"the body has {len(body)} bytes as {name} and more than {max_ratio} times as many unpacked; send it plain"
    )


def compress(body: bytes, accept: str, *, min_bytes: int = MIN_BYTES) -> tuple[bytes, str | None]:
    """(body, Content-Encoding) for a client that sent `accept` as its Accept-Encoding; None leaves it as it is. An
    answer that could have been packed bears `Vary: Accept-Encoding` either way."""
    encoding = chosen(accept) if len(body) >= min_bytes and len(accept) <= 256 else None
    if encoding is None:
        return body, None
    packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP if encoding == "gzip" else _ZLIB)
    packed = packer.compress(body) + packer.flush()
    return (packed, encoding) if len(packed) < len(body) else (body, None)


@lru_cache(maxsize=64)
def chosen(accept: str) -> str | None:
    """gzip or deflate, what is wanted more; None if neither (RFC 9110, 12.5.3)."""
    wanted: dict[str, float] = {}
    for item in accept.lower().split(","):
        name, *parameters = (part.strip() for part in item.split(";"))
        wanted["gzip" if name == "x-gzip" else name] = _quality(parameters)
    rest = wanted.get("*", 0.0)
    gzip, deflate = wanted.get("gzip", rest), wanted.get("deflate", rest)
    if max(gzip, deflate) < max(wanted.get("identity", 0.0), 1e-9):
        return None
    return "gzip" if gzip >= deflate else "deflate"


def _quality(parameters: list[str]) -> float:
    """1 without a q; 0, not wanted, for one that is no number from 0 to 1."""
    for parameter in parameters:
        if parameter.startswith("q="):
            digits = parameter[2:]
            whole = digits.replace(".", "", 1)
            return min(1.0, float(digits)) if whole.isascii() and whole.isdigit() and len(digits) < 8 else 0.0
    return 1.0


def _members(body: bytes, name: str, most: int) -> list[bytes] | None:
    """Its parts unpacked; None if that is more than `most` bytes."""
    wbits = _GZIP
    if name == "deflate":
        # Two bytes of header: method 8, and both together divide by 31 (RFC 1950, 2.2).
        wbits = _ZLIB if len(body) >= 2 and body[0] & 15 == 8 and (body[0] << 8 | body[1]) % 31 == 0 else _RAW
    parts: list[bytes] = []
    rest, left = body, most
    for _ in range(_MAX_MEMBERS if wbits == _GZIP else 1):
        member = zlib.decompressobj(wbits)
        parts.append(member.decompress(rest, left + 1))
        left -= len(parts[-1])
        if left < 0:
            return None
        if not member.eof:
            raise zlib.error("it is cut off")
        rest = member.unused_data
        if not rest:
            return parts
    raise zlib.error(f"{len(rest)} bytes follow its end")


def _too_large(size: int, most: int, name: str = "") -> PayloadTooLarge:
    told = f"{size} bytes as {name} and more than {most} unpacked" if name else f"{size} bytes"
    return PayloadTooLarge(f"the body has {told}; at most {most} are taken: send fewer rows at once")
