"""The first bytes of a request -> Head: what an inference needs of them, or None where the careful parser must look.

Clients and proxies say the same thing before each body, so nearly every head is found in a table: one look-up instead
of a parse. What is not plainly a request with a length (chunked, compressed, an upgrade, a doubtful byte) is None:
httptools then parses the same bytes, and refuses what is wrong. So nothing is accepted here that it would not accept.
"""

from __future__ import annotations

import re
from typing import Any

HEAD_END = b"\r\n\r\n"
MAX_HEAD_BYTES = 16 << 10
MAX_FIELDS = 128
_KEPT = 4096
"""Heads that are remembered; a client that never says the same twice must not fill the memory."""
# RFC 9110, sections 5.1 and 5.5: a name is a token, a value is visible ASCII (or above), spaces and tabs.
_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\x21-\x7e\x80-\xff][\t\x20-\x7e\x80-\xff]*)?\Z")
_FIRST = re.compile(rb"POST (/[\x21\x24-\x3b\x3d\x40-\x7e]*) HTTP/1\.1\Z")
_CAREFUL = frozenset(
    (b"transfer-encoding", b"content-encoding", b"expect", b"upgrade", b"te", b"trailer",
     b"x-request-disconnect-disabled")
)  # fmt: skip
_ONCE = frozenset((b"content-length", b"host", b"content-type", b"inference-header-content-length"))


class Head:
    """Of a POST with a body of known length, on a connection that stays."""

    __slots__ = ("echo", "headers", "length", "memo", "target")

    def __init__(self, target: bytes, headers: dict[bytes, bytes], length: int) -> None:
        self.target = target
        """As it was sent: path without query."""
        self.headers = headers
        """Names in lower case."""
        self.length = length
        """Bytes of the body."""
        name = headers.get(b"x-request-id", b"")
        self.echo = b"x-request-id: %s\r\n" % name if name else b""
        """The header line that names the request in its answer, empty if the client gave it no name."""
        self.memo: Any = None
        """What whoever answers has read out of it."""


class Heads:
    """The table."""

    def __init__(self, kept: int = _KEPT) -> None:
        self._known: dict[bytes, Head | None] = {}
        self._kept = kept

    def of(self, head: bytes) -> Head | None:
        """Of the bytes up to and including the blank line."""
        try:
            return self._known[head]
        except KeyError:
            pass
        if len(self._known) >= self._kept:
            self._known.clear()
        parsed = self._known[head] = parse(head)
        return parsed


def parse(head: bytes) -> Head | None:
    """None: not for us. Never raises."""
    first, *lines = head[: -len(HEAD_END)].split(b"\r\n")
    target = _FIRST.match(first)
    if target is None or len(lines) > MAX_FIELDS:
        return None
    headers: dict[bytes, bytes] = {}
    for line in lines:
        match = _LINE.match(line)
        if match is None:
            return None
        name, value = match[1].lower(), (match[2] or b"").rstrip(b" \t")
        if name in _CAREFUL or (name in headers and name in _ONCE):
            return None
        if name == b"connection" and value.lower() != b"keep-alive":
            return None
        headers[name] = value
    length = headers.get(b"content-length", b"")
    if b"host" not in headers or not (length.isdigit() and len(length) < 16):
        return None
    return Head(target[1], headers, int(length))
