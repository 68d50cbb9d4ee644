"""Header blocks of HTTP/2 -> headers (HPACK, RFC 7541): the decoder of one connection.

A block that neither adds to the dynamic table nor resizes it means the same each time until one does: `changes` counts
those, so whoever decodes may remember what a block meant. Only decoding: what we send needs no table (`literal`).
"""

from __future__ import annotations

from collections import deque

TABLE_BYTES = 4096
"""SETTINGS_HEADER_TABLE_SIZE: the value that holds where nobody says another."""
MAX_LIST_BYTES = 16 << 10
"""Of the headers of one block, decoded, as RFC 9113 counts them: each with 32 bytes on top."""
_ENTRY_BYTES = 32

# RFC 7541, appendix A.
_STATIC_NAMES = """:authority :method|GET :method|POST :path|/ :path|/index.html :scheme|http :scheme|https :status|200
:status|204 :status|206 :status|304 :status|400 :status|404 :status|500 accept-charset accept-encoding|gzip,_deflate
accept-language accept-ranges accept access-control-allow-origin age allow authorization cache-control
content-disposition content-encoding content-language content-length content-location content-range content-type cookie
date etag expect expires from host if-match if-modified-since if-none-match if-range if-unmodified-since last-modified
link location max-forwards proxy-authenticate proxy-authorization range referer refresh retry-after server set-cookie
strict-transport-security transfer-encoding user-agent vary via www-authenticate"""

Header = tuple[bytes, bytes]


def _static(entry: str) -> Header:
    name, _, value = entry.partition("|")
    return name.encode(), value.replace("_", " ").encode()


STATIC: tuple[Header, ...] = tuple(map(_static, _STATIC_NAMES.split()))

# RFC 7541, appendix B: the code is canonical, so the lengths say it all. Of the 256 bytes and of the end.
_LENGTHS = (
    "13 23 28 28 28 28 28 28 28 24 30 28 28 30 28 28 28 28 28 28 28 28 30 28 28 28 28 28 28 28 28 28 6 10 10 12 13 6 "
    "8 11 10 10 8 11 8 6 6 6 5 5 5 6 6 6 6 6 6 6 7 8 15 6 12 10 13 6 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 7 8 7 "
    "8 13 19 13 14 6 15 5 6 5 6 5 6 6 6 5 7 7 6 6 6 5 6 7 6 5 5 6 7 7 7 7 7 15 11 14 13 28 20 22 20 20 22 22 22 23 22 "
    "23 23 23 23 23 24 23 24 24 22 23 24 23 23 23 23 21 22 23 22 23 23 24 22 21 20 22 22 23 23 21 23 22 22 24 21 22 "
    "23 23 21 21 22 21 23 22 23 23 20 22 22 22 23 22 22 23 26 26 20 19 22 23 22 25 26 26 26 27 27 26 24 25 19 21 26 "
    "27 27 26 27 24 21 21 26 26 28 27 27 27 20 24 20 21 22 21 21 23 22 22 25 25 24 24 26 23 26 27 26 26 27 27 27 27 "
    "27 28 27 27 27 27 27 26 30"
)


def _codes(lengths: list[int]) -> dict[tuple[int, int], int]:
    """(length, code) -> byte; 256 for the end."""
    codes: dict[tuple[int, int], int] = {}
    code = before = 0
    for length, symbol in sorted((length, symbol) for symbol, length in enumerate(lengths)):
        code <<= length - before
        codes[length, code] = symbol
        code, before = code + 1, length
    return codes


HUFFMAN = _codes([int(length) for length in _LENGTHS.split()])
_SHORTEST = 5


class HpackError(Exception):
    """The block is none; what the connection says from here on cannot be understood."""


class Decoder:
    """Of one connection."""

    def __init__(self) -> None:
        self._table: deque[Header] = deque()
        self._size = 0
        self._most = TABLE_BYTES
        self.changes = 0

    def decode(self, block: bytes) -> list[Header]:
        """Raises HpackError."""
        headers: list[Header] = []
        at, end, size = 0, len(block), 0
        while at < end:
            byte = block[at]
            if byte & 0x80:
                index, at = _integer(block, at, 7)
                header = self._entry(index)
            elif byte & 0xE0 == 0x20:
                most, at = _integer(block, at, 5)
                if headers or most > TABLE_BYTES:
                    raise HpackError(f"a table of {most} bytes, or not at the begin of the block")
                self._most = most
                self._shrink(0)
                self.changes += 1
                continue
            else:
                indexed = byte & 0x40
                header, at = self._literal(block, at, 6 if indexed else 4)
                if indexed:
                    self._add(header)
            size += len(header[0]) + len(header[1]) + _ENTRY_BYTES
            if size > MAX_LIST_BYTES:
                raise HpackError(f"more than {MAX_LIST_BYTES} bytes of headers")
            headers.append(header)
        return headers

    def _literal(self, block: bytes, at: int, bits: int) -> tuple[Header, int]:
        index, at = _integer(block, at, bits)
        if index:
            name = self._entry(index)[0]
        else:
            name, at = _string(block, at)
        value, at = _string(block, at)
        return (name, value), at

    def _entry(self, index: int) -> Header:
        if 0 < index <= len(STATIC):
            return STATIC[index - 1]
        if len(STATIC) < index <= len(STATIC) + len(self._table):
            return self._table[index - len(STATIC) - 1]
        raise HpackError(f"no entry {index}")

    def _add(self, header: Header) -> None:
        size = len(header[0]) + len(header[1]) + _ENTRY_BYTES
        self._shrink(size)
        if size <= self._most:
            self._table.appendleft(header)
            self._size += size
        self.changes += 1

    def _shrink(self, more: int) -> None:
        """Make room for so many bytes; one that is larger than the table empties it."""
        while self._table and self._size + more > self._most:
            name, value = self._table.pop()
            self._size -= len(name) + len(value) + _ENTRY_BYTES


def literal(name: bytes, value: bytes) -> bytes:
    """A header that nobody remembers, as it stands in a block. Both below 127 bytes, or the value alone longer."""
    assert len(name) < 127
    return b"\x00" + bytes((len(name),)) + name + _length(len(value)) + value


def _length(size: int) -> bytes:
    if size < 127:
        return bytes((size,))
    parts = bytearray((127,))
    size -= 127
    while size > 127:
        parts.append(size & 127 | 128)
        size >>= 7
    parts.append(size)
    return bytes(parts)


def _integer(block: bytes, at: int, bits: int) -> tuple[int, int]:
    """RFC 7541, section 5.1."""
    most = (1 << bits) - 1
    value = block[at] & most
    at += 1
    if value < most:
        return value, at
    for shift in range(0, 28, 7):
        if at >= len(block):
            break
        byte = block[at]
        at += 1
        value += (byte & 127) << shift
        if byte < 128:
            return value, at
    raise HpackError("a number that does not end")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    """RFC 7541, section 5.2."""
    if at >= len(block):
        raise HpackError("the block is cut off")
    packed = block[at] & 0x80
    size, at = _integer(block, at, 7)
    end = at + size
    if end > len(block):
        raise HpackError("the block is cut off")
    return (_unpacked(block[at:end]) if packed else block[at:end]), end


def _unpacked(packed: bytes) -> bytes:
    text = bytearray()
    code = length = 0
    for byte in packed:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            if length < _SHORTEST:
                continue
            symbol = HUFFMAN.get((length, code))
            if symbol is not None:
                if symbol == 256:
                    raise HpackError("the end inside a string")
                text.append(symbol)
                code = length = 0
            elif length > 30:
                raise HpackError("no such code")
    if length > 7 or code != (1 << length) - 1:
        raise HpackError("the padding is not the begin of the end")
    return bytes(text)
