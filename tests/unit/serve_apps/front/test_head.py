"""What the table takes for a head is one that httptools takes, and says the same of it."""

from __future__ import annotations

import httptools
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.front.head import Head, Heads, parse

GOOD = b"POST /v2/models/m/infer HTTP/1.1\r\nHost: h\r\nContent-Length: 12\r\nX-Request-ID: a b\r\n\r\n"


class _Careful:
    """What httptools reads."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.url = b""
        self.complete = False

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self.complete = True


def careful(head: bytes) -> _Careful | None:
    """None if httptools refuses it."""
    seen = _Careful()
    parser = httptools.HttpRequestParser(seen)
    try:
        parser.feed_data(head)
    except (httptools.HttpParserError, httptools.HttpParserUpgrade):
        return None
    return seen if seen.complete and parser.get_method() == b"POST" and parser.should_keep_alive() else None


def test_a_plain_head_is_read() -> None:
    head = parse(GOOD)
    assert head is not None
    assert (head.target, head.length, head.echo) == (b"/v2/models/m/infer", 12, b"x-request-id: a b\r\n")
    assert head.headers == {b"host": b"h", b"content-length": b"12", b"x-request-id": b"a b"}


@pytest.mark.parametrize(
    "other",
    [
        GOOD.replace(b"POST", b"GET"),
        GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"),
        GOOD.replace(b"/infer", b"/infer?x=1"),
        GOOD.replace(b"/infer", b"/in fer"),
        GOOD.replace(b"Content-Length: 12\r\n", b""),
        GOOD.replace(b"Host: h\r\n", b""),
        GOOD.replace(b"12", b"+12"),
        GOOD.replace(b"12", b"12, 12"),
        GOOD.replace(b"12\r\n", b"12\r\ncontent-length: 12\r\n"),
        GOOD.replace(b"12\r\n", b"12\r\nTransfer-Encoding: chunked\r\n"),
        GOOD.replace(b"12\r\n", b"12\r\nContent-Encoding: gzip\r\n"),
        GOOD.replace(b"12\r\n", b"12\r\nExpect: 100-continue\r\n"),
        GOOD.replace(b"12\r\n", b"12\r\nConnection: close\r\n"),
        GOOD.replace(b"12\r\n", b"12\r\n folded: x\r\n"),
        GOOD.replace(b"12\r\n", b"12\r\nsp ace: x\r\n"),
        GOOD.replace(b"12\r\n", b"12\r\nspace : x\r\n"),
        GOOD.replace(b"12\r\n", b"12\r\nx: a\nb\r\n"),
        GOOD.replace(b"12\r\n", b"12\r\nx: a\rb\r\n"),
        GOOD.replace(b"12\r\n", b"12\r\nx: \x00\r\n"),
        GOOD.replace(b"12\r\n", b"12\r\nno colon\r\n"),
    ],
)
def test_what_is_not_plain_is_left_to_the_careful_parser(other: bytes) -> None:
    assert parse(other) is None


PIECES = st.sampled_from(
    [b"POST", b"GET", b" ", b"/v2", b"?", b"#", b"%20", b"HTTP/1.1", b"\r\n", b"\n", b"\r", b":", b"host", b"h",
     b"content-length", b"transfer-encoding", b"chunked", b"1", b"12", b"-1", b"\x00", b"\x7f", b"\xff", b"\t", b"{",
     b"x-a"]
)  # fmt: skip


@given(st.lists(PIECES, max_size=12), st.integers(0, len(GOOD) - 5), st.integers(0, 6))
def test_nothing_is_taken_that_httptools_would_not_take(pieces: list[bytes], at: int, cut: int) -> None:
    bent = GOOD[:at] + b"".join(pieces) + GOOD[min(at + cut, len(GOOD) - 4) :]
    bent = bent[: bent.index(b"\r\n\r\n") + 4]  # as the front cuts it
    head = parse(bent)
    if head is None:
        return
    seen = careful(bent)
    assert seen is not None, bent
    assert seen.url == head.target
    assert {name: value.rstrip(b" \t") for name, value in seen.headers.items()} == head.headers
    assert int(seen.headers[b"content-length"]) == head.length


def test_the_table_forgets_before_it_grows_beyond_its_bound() -> None:
    heads = Heads(kept=3)
    for n in range(20):
        head = heads.of(GOOD.replace(b"12", b"%d" % n))
        assert isinstance(head, Head)
        assert head.length == n
        assert len(heads._known) <= 3
    assert heads.of(GOOD) is heads.of(GOOD)


def test_a_hostile_head_costs_no_more_than_its_length() -> None:
    """A value of spaces with an evil end must not be tried at every space: this would take minutes."""
    for n in range(50):
        assert parse(GOOD.replace(b"12\r\n", b"12\r\nx: a%s\x00\r\n" % (b" " * (16_000 - n)))) is None
