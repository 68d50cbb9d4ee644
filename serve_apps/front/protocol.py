"""Bytes of one connection -> answers. Inferences are read, queued and answered here; the rest is uvicorn's.

Measured (docs/results/request-path.md), half to two thirds of a request's time went into what stood around it: a task,
a scope, a queue of messages, Serve's wrapper and its records, each right for a web application and work without use for
a tensor that goes into a batch. So an inference takes the short way: one look-up of its head, its body as it came, the
batcher, one write. No task, no future, no copy of the body where it came in one piece.

A connection is either with us or with uvicorn's parser, never with both: the parser gets whole requests from their
first byte, whenever no inference of ours is on its way. HTTP/1.1 answers in order, so bytes that come while one is
wait (`_behind`).
"""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from serve_apps.front.endpoint import Endpoint, Ledger, Pending
from serve_apps.front.head import HEAD_END, MAX_FIELDS, MAX_HEAD_BYTES, Head, Heads

_MAX_HEAD_BYTES = 32 << 10
"""Of what the parser reads; HAProxy bounds them as well, and the direct port has none before it."""
_READ_BY_SERVE = frozenset((b"x-request-id", b"serve_multiplexed_model_id"))
_PATIENT_BYTES = 64 << 10
"""What a client may send ahead before it is no longer read."""


class LeanProtocol(HttpToolsProtocol):
    """One connection."""

    endpoint: Endpoint | None = None
    """Set once for the process, when the model is there (serve_apps/front/serve_hook.py)."""
    ledger: Ledger | None = None
    leaving = False
    """Each answer is the last of its connection: the client shall come back to another replica."""
    heads = Heads()

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._in_parser = False  # uvicorn's parser is inside a request
        self._in_head = False  # and there before its blank line
        self._head_bytes = 0
        self._head: Head | None = None  # of the inference whose body is coming
        self._body = bytearray()
        self._answering = False
        self._pending: Pending | None = None
        self._behind = b""
        self._echo = b""
        self._ending = False
        self._last = 0.0
        self._began = 0.0
        self._idle: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._last = self.loop.time()
        self._idle = self.loop.call_later(self.timeout_keep_alive, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._idle is not None:
            self._idle.cancel()
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.cancel()
            self._record(499)
        self._head, self._behind, self._ending = None, b"", True
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._head is not None:
            self._gather(data)
        elif self._answering or self._behind:
            self._wait(data)
        elif self._in_parser or (self.cycle is not None and not self.cycle.response_complete):
            self._parse(data)
        else:
            self._next(data)

    def _next(self, data: bytes) -> None:
        """The first bytes of a request. A head that comes in two pieces is left to the parser: it is rare."""
        endpoint = self.endpoint
        if endpoint is not None and data.startswith(b"POST "):
            end = data.find(HEAD_END, 0, MAX_HEAD_BYTES) + len(HEAD_END)
            head = self.heads.of(data[:end]) if end >= len(HEAD_END) else None
            if head is not None and endpoint.takes(head):
                self._unset_keepalive_if_required()
                have = len(data) - end
                if have == head.length:
                    self._begin(endpoint, head, data[end:])
                elif have > head.length:
                    self._behind = data[end + head.length :]
                    self._begin(endpoint, head, data[end : end + head.length])
                else:
                    self._head, self._body = head, bytearray(memoryview(data)[end:])
                return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Have uvicorn's parser read it."""
        self._last = self.loop.time()
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES and not self.transport.is_closing():
                self.send_400_response("")

    def _gather(self, data: bytes) -> None:
        self._last = self.loop.time()
        head, endpoint = self._head, self.endpoint
        assert head is not None
        assert endpoint is not None
        missing = head.length - len(self._body)
        if len(data) < missing:
            self._body += data
            return
        self._body += data if len(data) == missing else memoryview(data)[:missing]
        self._behind = data[missing:]
        body, self._body, self._head = self._body, bytearray(), None
        self._begin(endpoint, head, bytes(body))

    def _begin(self, endpoint: Endpoint, head: Head, body: bytes) -> None:
        self._answering = True
        self._began = self.loop.time()
        self._echo = head.echo
        if self.ledger is not None:
            self.ledger.began()
        pending = endpoint.begin(head, body, self._reply)
        if self._answering:  # otherwise it was answered at once
            self._pending = pending

    def _record(self, status: int) -> None:
        self._last = self.loop.time()
        if self.ledger is not None:
            self.ledger.ended(status, self._last - self._began)

    def _reply(self, status: int, lines: bytes, body: bytes) -> None:
        """Answer the inference that is on its way."""
        self._answering, self._pending = False, None
        self._record(status)
        state, transport = self.server_state, self.transport
        state.total_requests += 1
        if transport.is_closing():
            return
        if self._ending or self.leaving:
            self._ending = True
            lines += b"connection: close\r\n"
        common = LeanProtocol._common if state.default_headers is LeanProtocol._common_of else self._common_lines()
        transport.write(b"".join((STATUS_LINE[status], common, self._echo, lines, b"\r\n", body)))
        if self._ending:
            transport.close()
        elif self._behind:
            self.loop.call_soon(self._go_on)

    def _common_lines(self) -> bytes:
        """uvicorn makes the headers of every answer, the date among them, anew each second."""
        LeanProtocol._common_of = self.server_state.default_headers
        LeanProtocol._common = b"".join(b"%s: %s\r\n" % header for header in LeanProtocol._common_of)
        return LeanProtocol._common

    _common_of: Any = None
    _common = b""

    def _wait(self, data: bytes) -> None:
        self._behind += data
        if len(self._behind) > _PATIENT_BYTES:
            self.flow.pause_reading()

    def _go_on(self) -> None:
        """Read what came while an answer was on its way, unless the client does not read its answers."""
        if self._answering or self._ending or self.flow.write_paused or not self._behind:
            return
        data, self._behind = self._behind, b""
        self.flow.resume_reading()
        self.data_received(data)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._go_on()

    def on_message_begin(self) -> None:
        self._in_parser = self._in_head = True
        self._head_bytes = 0
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        # Serve takes what it reads of these for UTF-8, and answers 500 in plain text where it is none.
        if not value.isascii() and name.lower() in _READ_BY_SERVE:
            return
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._head_bytes = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if self._is_head_too_large():
            raise ValueError("which the parser takes for the end, and `send_400_response` explains")
        self._in_head = False
        super().on_headers_complete()
        if self.leaving and self.cycle is not None:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_parser = False

    def _is_head_too_large(self) -> bool:
        return self._in_head and (self._head_bytes > _MAX_HEAD_BYTES or len(self.headers) > MAX_FIELDS)

    def send_400_response(self, msg: str) -> None:
        """uvicorn's, for what the parser does not take: as every error is told here, and 431 where it is too much."""
        status, text = 400, "the request is no HTTP/1.1 that can be read; check its request line, fields and length"
        if self._is_head_too_large():
            status = 431
            text = (
                f"the request's head is too large; at most {_MAX_HEAD_BYTES} bytes and {MAX_FIELDS} fields are taken: "
                "send tensors in the body"
            )
        body = orjson.dumps({"error": text})
        lines = b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
        self.transport.write(b"".join((STATUS_LINE[status], self._common_lines(), lines, body)))
        self.transport.close()

    def shutdown(self) -> None:
        """uvicorn's word for: no further request on this connection."""
        if self._answering or self._head is not None:
            self._ending = True
        else:
            super().shutdown()

    def timeout_keep_alive_handler(self) -> None:
        if not self._answering and self._head is None:
            super().timeout_keep_alive_handler()

    def _look(self) -> None:
        """Close a connection that nothing came on. One timer that looks, in place of one a request. (What uvicorn
        answers last has a timer of uvicorn's.)"""
        left = self._last + self.timeout_keep_alive - self.loop.time()
        cycle = self.cycle
        busy = self._answering or (not self._in_parser and cycle is not None and not cycle.response_complete)
        if left <= 0 and not busy and self.timeout_keep_alive_task is None:
            # Also one whose head or body stopped half way: a client that sends nothing for so long does not go on.
            self.transport.close()
            return
        self._idle = self.loop.call_later(left if left > 0 else self.timeout_keep_alive, self._look)
