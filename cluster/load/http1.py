"""Prebuilt request bytes -> one HTTP/1.1 keep-alive connection -> (outcome, response bytes).

Only what a load generator needs, because every microsecond here is a microsecond of somebody's measured latency:
one request in flight, no redirects, no TLS, no HEAD (its answers carry a length but no body).

An outcome is the HTTP status, or one of the negative codes below.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple, Protocol, cast

CONNECT_FAILED = -1
"""Nobody accepted the connection."""
RESET = -2
"""The connection closed before the answer was complete."""
TIMEOUT = -3
"""No complete answer within the client's timeout, counted from the scheduled time."""
BAD_RESPONSE = -4
"""The bytes are not HTTP/1.1."""
UNSENT = -5
"""Never sent: the run was aborted because the backlog had grown past `abort_backlog`."""

OUTCOME_NAMES: dict[int, str] = {
    CONNECT_FAILED: "connect failed",
    RESET: "reset",
    TIMEOUT: "timeout",
    BAD_RESPONSE: "bad response",
    UNSENT: "unsent",
}


def build_request(
    method: str, path: str, host: str, headers: Mapping[str, str] | None = None, body: bytes = b""
) -> bytes:
    """The whole request as bytes; Content-Length is added whenever there is a body or the method implies one."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {host}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    if any("\r" in line or "\n" in line for line in lines):
        raise ValueError(f"a line break in {lines!r} would split the request; remove it.")
    if body or method in {"POST", "PUT", "PATCH"}:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + body


class Head(NamedTuple):
    """What the response head says about where the answer ends."""

    status: int
    length: int | None  # None: chunked, or until the connection closes
    chunked: bool
    close: bool


@lru_cache(maxsize=256)  # Servers repeat their head for a whole second (the Date line), so nearly every call is a hit.
def parse_head(head: bytes) -> Head:
    """Parse up to and including the blank line. Raises ValueError when it is no HTTP/1.x response head."""
    lines = head.split(b"\r\n")
    version, _, rest = lines[0].partition(b" ")
    if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit():
        raise ValueError(f"{lines[0][:80]!r} is not an HTTP/1.1 status line.")
    status = int(rest[:3])
    length: int | None = None
    chunked, close = False, version == b"HTTP/1.0"
    for line in lines[1:]:
        name, _, value = line.partition(b":")
        name, value = name.strip().lower(), value.strip().lower()
        if name == b"content-length":
            if not value.isdigit():
                raise ValueError(f"Content-Length {value[:40]!r} is not a number.")
            length = int(value)
        elif name == b"transfer-encoding":
            chunked = b"chunked" in value
        elif name == b"connection":
            close = b"close" in value or (close and b"keep-alive" not in value)
    if status < 200 or status in (204, 304):
        length, chunked = 0, False
    return Head(status, None if chunked else length, chunked, close)


def decode_chunked(data: bytes, start: int) -> tuple[bytes, int] | None:
    """Decode a chunked body at `start`: (body, index after it), or None while it is incomplete.

    Starts over on every packet: quadratic for an answer of many packets, which inference answers are not.
    """
    body: list[bytes] = []
    while True:
        line_end = data.find(b"\r\n", start)
        if line_end < 0:
            return None
        size = int(data[start:line_end].split(b";")[0], 16)
        if size < 0:
            raise ValueError(f"{size} is no chunk size.")
        start = line_end + 2
        if size == 0:
            break
        if len(data) < start + size + 2:
            return None
        body.append(data[start : start + size])
        start += size + 2
    while True:  # trailer lines up to the empty one
        line_end = data.find(b"\r\n", start)
        if line_end < 0:
            return None
        if line_end == start:
            return b"".join(body), line_end + 2
        start = line_end + 2


class Owner(Protocol):
    """Who is told what became of a request."""

    def answered(self, connection: Connection, index: int, outcome: int, response: bytes) -> None:
        """Request `index` ended; `connection.open` tells whether the connection can carry another one."""

    def lost(self, connection: Connection) -> None:
        """The connection closed while idle."""


class Connection(asyncio.Protocol):
    """One keep-alive connection. `index` is the request in flight, -1 when idle; it is never used again once closed."""

    __slots__ = ("_buffer", "_head", "_head_end", "_owner", "_transport", "answers", "index", "open")

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.WriteTransport | None = None
        self._buffer = b""
        self._head: Head | None = None
        self._head_end = 0
        self.index = -1
        self.answers = 0
        self.open = False

    def send(self, index: int, request: bytes) -> None:
        self.index = index
        assert self._transport is not None
        self._transport.write(request)

    def abort(self) -> None:
        """Close without telling the owner."""
        self.open = False
        self.index = -1
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self.open = True

    def data_received(self, data: bytes) -> None:
        if self.index < 0:  # Bytes that nobody asked for: what follows could be mistaken for the next answer.
            if self.open:
                self.abort()
                self._owner.lost(self)
            return
        if self._buffer:
            data = self._buffer + data
        try:
            self._parse(data)
        except ValueError:
            self._finish(BAD_RESPONSE, data, keep=False)

    def _parse(self, data: bytes) -> None:
        head = self._head
        while head is None:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                if len(data) > 65536:
                    raise ValueError("a response head of more than 64 KiB")
                self._buffer = data
                return
            head = parse_head(data[: end + 4])
            if head.status < 200:  # 100 Continue and the like precede the answer
                data, head = data[end + 4 :], None
                continue
            self._head, self._head_end = head, end + 4
        if head.length is not None:
            missing = self._head_end + head.length - len(data)
            if missing > 0:
                self._buffer = data
            else:
                self._finish(head.status, data, keep=not head.close and missing == 0)
        elif head.chunked:
            decoded = decode_chunked(data, self._head_end)
            if decoded is None:
                self._buffer = data
            else:
                body, end = decoded
                self._finish(head.status, data[: self._head_end] + body, keep=not head.close and end == len(data))
        else:
            self._buffer = data

    def _finish(self, outcome: int, response: bytes, *, keep: bool) -> None:
        self._buffer = b""
        self._head = None
        self.answers += 1
        index, self.index = self.index, -1
        if not keep:
            self.abort()
        self._owner.answered(self, index, outcome, response)

    def connection_lost(self, exc: Exception | None) -> None:
        was_open, self.open = self.open, False
        if not was_open:
            return
        if self.index < 0:
            self._owner.lost(self)
        elif self._head is not None and self._head.length is None and not self._head.chunked and exc is None:
            self._finish(self._head.status, self._buffer, keep=False)  # the close was the end of the body
        else:
            self._finish(RESET, self._buffer, keep=False)
