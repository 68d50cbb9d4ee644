"""Streams of an HTTP/2 connection -> unary gRPC calls -> answers.

grpc.aio does 3,500 to 4,000 empty calls a second on a core (docs/decisions/0014): a task, a context and several turns
of the loop for each, and an inference over REST takes a fifth of that in all. So calls are read here as inferences are
in front/protocol.py: a header block that was seen before by one look-up, the message as it came, the answer in one
write with those of its batch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cluster.errors import SluiceError
from serve_apps.front import rpc
from serve_apps.front.endpoint import Ledger
from serve_apps.front.h2 import (
    COMPRESSION_ERROR,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    MAX_FRAME_BYTES,
    MAX_STREAMS,
    NO_ERROR,
    PADDED,
    PROTOCOL_ERROR,
    REFUSED_STREAM,
    RST_STREAM,
    STREAM_CLOSED,
    H2Connection,
    H2Error,
    Stream,
    frame,
    unpadded,
)
from serve_apps.front.hpack import Decoder, HpackError, literal
from serve_apps.front.rpc import PREFIX, Call
from serve_apps.oip.grpc_service import Pending, Reply
from serve_apps.oip.grpc_status import RESOURCE_EXHAUSTED, Status, status_of

MAX_MESSAGE_BYTES = (16 << 20) + (64 << 10)
"""As cluster/control/serve_env.py has it for gRPC's own server."""
_MAX_HELD_BYTES = 64 << 20
"""Of messages that are not whole yet, of one connection."""
_KEPT = 64
_BEGIN = len(rpc.HEADERS).to_bytes(3, "big") + b"\x01\x04"
_END = len(rpc.FINE).to_bytes(3, "big") + b"\x01\x05"


class RpcEndpoint(Protocol):
    """What answers calls."""

    def begin(
        self, path: str, body: bytes, reply: Reply, *, timeout_s: float | None = None,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> Pending | None:  # fmt: skip
        """See GrpcService.begin."""


class _Stream(Stream):
    __slots__ = ("answered", "began", "body", "call", "pending")

    def __init__(self, number: int, call: Call, window: int) -> None:
        super().__init__(number, window)
        self.call = call
        self.body: bytearray | None = None
        self.pending: Pending | None = None
        self.began = 0.0
        self.answered = False


class GrpcProtocol(H2Connection[_Stream]):
    """One connection."""

    def __init__(
        self, endpoint: RpcEndpoint, *, ledger: Ledger | None = None,
        connections: set[H2Connection[_Stream]] | None = None, max_message_bytes: int = MAX_MESSAGE_BYTES,
    ) -> None:  # fmt: skip
        # A whole message: no stream waits for its window.
        super().__init__(set() if connections is None else connections, max_message_bytes + MAX_FRAME_BYTES)
        self._endpoint = endpoint
        self._ledger = ledger
        self._max_message_bytes = max_message_bytes
        self._decoder = Decoder()
        self._calls: dict[bytes, Call] = {}
        self._held = 0

    def _on_block(self, number: int, flags: int, block: bytes) -> None:
        # Decoded in any case: the table is the connection's.
        call = self._calls.get(block) or self._read(block)
        stream = self._streams.get(number)
        if stream is not None:  # trailers of the request
            if not flags & END_STREAM:
                raise H2Error(PROTOCOL_ERROR, "trailers that do not end their stream")
            self._on_whole(stream)
            return
        if number <= self._newest or not number & 1:
            raise H2Error(PROTOCOL_ERROR, f"stream {number} cannot begin: the last one was {self._newest}")
        if number > self._refuse_above:
            return  # it was told so, and calls again elsewhere
        self._newest = number
        if len(self._streams) >= MAX_STREAMS:
            self._send(frame(RST_STREAM, 0, number, REFUSED_STREAM.to_bytes(4, "big")))
            return
        if call.status:
            self._send(frame(HEADERS, END_HEADERS | END_STREAM, number, literal(b":status", call.status)))
            return
        self._streams[number] = stream = _Stream(number, call, self._first_window)
        if flags & END_STREAM:
            self._on_whole(stream)

    def _read(self, block: bytes) -> Call:
        before = self._decoder.changes
        try:
            call = rpc.read(self._decoder.decode(block))
        except HpackError as error:
            raise H2Error(COMPRESSION_ERROR, str(error)) from error
        except IndexError as error:
            raise H2Error(COMPRESSION_ERROR, "the block is cut off") from error
        if self._decoder.changes != before or len(self._calls) >= _KEPT:
            self._calls.clear()
        if self._decoder.changes == before:
            self._calls[block] = call
        return call

    def _on_data(self, number: int, flags: int, data: bytes, at: int, stop: int) -> None:
        stream = self._streams.get(number)
        if stream is None or stream.answered or stream.pending is not None:
            if not number or self._is_idle(number):
                raise H2Error(PROTOCOL_ERROR, f"DATA on stream {number}, which has not begun")
            return
        if flags & PADDED:
            data, at = unpadded(data, at, stop, flags), 0
            stop = len(data)
        if stream.body is None:
            if flags & END_STREAM and rpc.is_plain(data, at, stop):  # nearly every one
                self._call(stream, data[at + PREFIX : stop])
                return
            stream.body = bytearray()
        stream.body += memoryview(data)[at:stop]
        self._held += stop - at
        self._bound(stream)
        if flags & END_STREAM and not stream.answered:
            self._on_whole(stream)

    def _bound(self, stream: _Stream) -> None:
        body, most = stream.body, self._max_message_bytes
        assert body is not None
        size = max(len(body) - PREFIX, int.from_bytes(body[1:PREFIX], "big") if len(body) >= PREFIX else 0)
        if size > most:
            self._refuse(stream, rpc.too_large(size, most))
        elif self._held > _MAX_HELD_BYTES:
            self._refuse(
                stream, Status(RESOURCE_EXHAUSTED, f"unfinished messages of {self._held} bytes on one connection", 1)
            )

    def _on_whole(self, stream: _Stream) -> None:
        if stream.answered or stream.pending is not None:
            raise H2Error(STREAM_CLOSED, f"stream {stream.id} was ended before")
        body, stream.body = stream.body or bytearray(), None
        self._held -= len(body)
        try:
            self._call(stream, rpc.message(stream.call, body, self._max_message_bytes))
        except SluiceError as error:
            self._answer(stream, status_of(error), b"")

    def _call(self, stream: _Stream, message: bytes) -> None:
        call = stream.call
        if call.refused is not None:
            self._answer(stream, call.refused, b"")
            return
        stream.began = self._loop.time()
        if self._ledger is not None:
            self._ledger.began()
        pending = self._endpoint.begin(
            call.path, message, lambda status, content: self._reply(stream, status, content),
            timeout_s=call.timeout_s, headers=call.headers,
        )  # fmt: skip
        if not stream.answered:
            stream.pending = pending

    def _reply(self, stream: _Stream, status: Status, content: bytes) -> None:
        self._record(stream, status.counts_as)
        if stream.id in self._streams:
            self._answer(stream, status, content)

    def _record(self, stream: _Stream, status: int) -> None:
        stream.pending = None
        if self._ledger is not None:
            self._ledger.ended(status, self._loop.time() - stream.began)

    def _answer(self, stream: _Stream, status: Status, content: bytes) -> None:
        stream.answered = True
        if status.code:
            self._send(frame(HEADERS, END_HEADERS | END_STREAM, stream.id, rpc.HEADERS + rpc.trailers(status)))
            self._done(stream)
            return
        number = stream.id.to_bytes(4, "big")
        headers, data = rpc.answer(stream.call, content)
        begin = _BEGIN if headers is rpc.HEADERS else len(headers).to_bytes(3, "big") + b"\x01\x04"
        self._send_answer(stream, b"".join((begin, number, headers)), data, b"".join((_END, number, rpc.FINE)))

    def _refuse(self, stream: _Stream, status: Status) -> None:
        """Answer it though it is not whole, and have the client send no more of it."""
        self._answer(stream, status, b"")
        self._send(frame(RST_STREAM, 0, stream.id, NO_ERROR.to_bytes(4, "big")))

    def _done(self, stream: _Stream) -> None:
        if stream.body is not None:
            self._held -= len(stream.body)
            stream.body = None
        super()._done(stream)

    def _is_stuck(self, stream: _Stream) -> bool:
        return not stream.answered and stream.pending is None

    def _forget(self, stream: _Stream) -> None:
        pending = stream.pending
        stream.answered = True
        if pending is not None:
            pending.cancel()
            self._record(stream, 499)
        self._done(stream)
