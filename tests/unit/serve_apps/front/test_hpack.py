"""Header blocks: the specification's own examples, and nothing that is none gets through."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.front.hpack import HUFFMAN, STATIC, Decoder, HpackError, literal

# RFC 7541, appendix C.4: three requests on one connection, Huffman coded; the third by its whole list of headers.
BLOCKS = (
    "828684418cf1e3c2e5f23a6ba0ab90f4ff",
    "828684be5886a8eb10649cbf",
    "828785bf408825a849e95ba97d7f8925a849e95bb8e8b4bf",
)
THIRD = [
    (b":method", b"GET"), (b":scheme", b"https"), (b":path", b"/index.html"), (b":authority", b"www.example.com"),
    (b"custom-key", b"custom-value"),
]  # fmt: skip


def test_the_specifications_example() -> None:
    decoder = Decoder()
    first, second, third = (decoder.decode(bytes.fromhex(block)) for block in BLOCKS)
    assert first == [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"www.example.com")]
    assert second == [*first, (b"cache-control", b"no-cache")]
    assert third == THIRD
    assert decoder.changes == 3


def test_the_tables_are_whole() -> None:
    assert len(STATIC) == 61
    assert STATIC[60] == (b"www-authenticate", b"")
    assert sorted(HUFFMAN.values()) == list(range(257))
    assert sum(2.0**-length for length, _ in HUFFMAN) == 1.0, "a complete prefix code"


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.binary(max_size=300)), max_size=9))
def test_what_is_written_plainly_is_read_and_changes_nothing(headers: list[tuple[bytes, bytes]]) -> None:
    decoder = Decoder()
    assert decoder.decode(b"".join(literal(*header) for header in headers)) == headers
    assert decoder.changes == 0


@pytest.mark.parametrize(
    "block",
    ["80", "ff", "c0", "40", "4001", "400161", "0085", "008141", "3fe2ff03", "8220", "bf", "7fffffffffff"],
)
def test_what_is_no_block_is_refused(block: str) -> None:
    with pytest.raises(HpackError):
        Decoder().decode(bytes.fromhex(block))


def test_a_block_that_unpacks_to_too_much_is_refused() -> None:
    decoder = Decoder()
    decoder.decode(b"\x40\x01a\x7f\x81\x1e" + bytes(3968))
    with pytest.raises(HpackError, match="more than"):
        decoder.decode(b"\xbe" * 100)


def test_the_table_forgets_the_oldest() -> None:
    decoder = Decoder()
    for number in range(200):
        decoder.decode(b"\x40\x03%03d\x00" % number)
    assert decoder.decode(b"\xbe") == [(b"199", b"")]
    assert decoder._size <= 4096
    with pytest.raises(HpackError):
        decoder.decode(b"\xff\x5a")


@given(st.binary(max_size=120))
def test_any_bytes_are_a_block_or_refused(block: bytes) -> None:
    with suppress(HpackError):
        Decoder().decode(block)
