"""Bytes of one HTTP/2 connection -> header blocks and DATA of its streams, and back (RFC 9113, as much as calls need).

Streams that the client begins, one block and one message each way; no push, no priorities. What a client can make us
hold is bounded: streams, bytes of messages that are not whole, header blocks; who does not read its answers is not read
either. Whoever uses it gives `_on_block` and `_on_data` (front/grpc_protocol.py).
"""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar, cast

MAX_STREAMS = 1024
MAX_FRAME_BYTES = 64 << 10
MAX_BLOCK_BYTES = 16 << 10
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_WINDOW = 64 << 20
_GREETING_S, _STALL_S, _IDLE_S = 10.0, 90.0, 900.0
_LAST_CALL_S = 0.5
"""Between the word that no new calls are wanted, and not taking them."""

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS, PADDED, PRIORITISED = 4, 8, 32
NO_ERROR, PROTOCOL_ERROR, FLOW_CONTROL_ERROR, STREAM_CLOSED = 0, 1, 3, 5
FRAME_SIZE_ERROR, REFUSED_STREAM, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 6, 7, 9, 11
_MOST = (1 << 31) - 1


class H2Error(Exception):
    """The peer broke the rules: nothing more is read."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return b"%b%c%c%b%b" % (len(payload).to_bytes(3, "big"), kind, flags, stream.to_bytes(4, "big"), payload)


def greeting(stream_window: int) -> bytes:
    """What a server says first: how many streams, how much on each and in all, frames of which size."""
    settings = {3: MAX_STREAMS, 4: stream_window, 5: MAX_FRAME_BYTES, 6: MAX_BLOCK_BYTES}
    payload = b"".join(name.to_bytes(2, "big") + value.to_bytes(4, "big") for name, value in settings.items())
    return frame(SETTINGS, 0, 0, payload) + frame(WINDOW_UPDATE, 0, 0, (_WINDOW - 65535).to_bytes(4, "big"))


class Stream:
    """What the connection must know of one."""

    __slots__ = ("id", "last", "rest", "window")

    def __init__(self, number: int, window: int) -> None:
        self.id = number
        self.window = window
        """What it may be sent still."""
        self.rest: memoryview | None = None
        """DATA that waits for a window, and the frame that follows it."""
        self.last = b""


S = TypeVar("S", bound=Stream)


class H2Connection(asyncio.Protocol, Generic[S]):
    """One connection of a server."""

    def __init__(self, connections: set[H2Connection[S]], stream_window: int) -> None:
        """`connections` holds those that are open."""
        self._connections = connections
        self._stream_window = stream_window
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport
        self._input = b""
        self._greeted = False
        self._streams: dict[int, S] = {}
        self._newest = 0
        self._refuse_above = _MOST
        self._block: tuple[int, int, bytearray] | None = None  # of a stream whose header block goes on
        self._taken = 0  # of our window, since it was given back
        self._window = self._first_window = 65535  # what we may send: in all, and on a new stream
        self._max_frame = 16384
        self._out: list[bytes] = []
        self._ending = False
        self._last = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def _on_block(self, number: int, flags: int, block: bytes) -> None:
        """A whole header block. Raises H2Error."""
        raise NotImplementedError

    def _on_data(self, number: int, flags: int, data: bytes, at: int, stop: int) -> None:
        """DATA is `data[at:stop]`. Raises H2Error."""
        raise NotImplementedError

    def _forget(self, stream: S) -> None:
        """Its client waits no longer."""
        raise NotImplementedError

    def _is_stuck(self, stream: S) -> bool:
        """Waits for more from its client."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by name
        self._connections.add(self)
        self._last = self._loop.time()
        self._timer = self._loop.call_later(_GREETING_S, self._look)
        self._send(greeting(self._stream_window))

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        if self._timer is not None:
            self._timer.cancel()
        for stream in list(self._streams.values()):
            self._forget(stream)
        self._ending = True

    def pause_writing(self) -> None:
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._transport.resume_reading()

    def _look(self) -> None:
        """Is it stuck, or of no use any more?"""
        idle_s = self._loop.time() - self._last
        if not self._greeted or (idle_s > _STALL_S and any(map(self._is_stuck, self._streams.values()))):
            self._transport.abort()
            return
        if not self._streams and idle_s > _IDLE_S:
            self.leave()
        self._timer = self._loop.call_later(_STALL_S / 3, self._look)

    def leave(self) -> None:
        """Have the client take its next calls elsewhere; answer those that are on their way, and close."""
        if self._refuse_above == _MOST and not self._ending:
            self._send(frame(GOAWAY, 0, 0, _MOST.to_bytes(4, "big") + bytes(4)))
            self._loop.call_later(_LAST_CALL_S, self._take_no_more)

    def _take_no_more(self) -> None:
        self._refuse_above = self._newest
        self._send(frame(GOAWAY, 0, 0, self._newest.to_bytes(4, "big") + bytes(4)))
        self._end_if_done()

    def _end_if_done(self) -> None:
        if self._refuse_above < _MOST and not self._streams and not self._ending:
            self._ending = True
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """End it now."""
        self._transport.abort()

    def _send(self, data: bytes) -> None:
        """With what else is sent in this turn of the loop."""
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(data)

    def _flush(self) -> None:
        if self._out and not self._transport.is_closing():
            self._transport.write(b"".join(self._out))
        self._out.clear()

    # ---- frames in

    def data_received(self, data: bytes) -> None:
        if self._ending:
            return
        self._last = self._loop.time()
        if self._input:
            data = self._input + data
        at = 0
        try:
            if not self._greeted:
                if not data.startswith(PREFACE):
                    if not PREFACE.startswith(data):
                        raise H2Error(PROTOCOL_ERROR, "this port speaks gRPC: HTTP/2 without TLS, with prior knowledge")
                    self._input = data
                    return
                self._greeted = True
                at = len(PREFACE)
            self._input = data[self._frames(data, at) :]
        except H2Error as error:
            self._ending = True
            last = self._newest.to_bytes(4, "big")
            self._send(frame(GOAWAY, 0, 0, last + error.code.to_bytes(4, "big") + str(error).encode()))
            self._flush()
            self._transport.close()

    def _frames(self, data: bytes, at: int) -> int:
        """Where the first one begins that is not whole. Raises H2Error."""
        end = len(data)
        while end - at >= 9:
            size = data[at] << 16 | data[at + 1] << 8 | data[at + 2]
            if size > MAX_FRAME_BYTES:
                raise H2Error(FRAME_SIZE_ERROR, f"a frame of {size} bytes; at most {MAX_FRAME_BYTES} are taken")
            stop = at + 9 + size
            if stop > end:
                break
            kind, flags = data[at + 3], data[at + 4]
            stream = int.from_bytes(data[at + 5 : at + 9], "big") & _MOST
            if self._block is not None and (kind != CONTINUATION or stream != self._block[0]):
                raise H2Error(PROTOCOL_ERROR, "a header block was not ended")
            if kind == HEADERS:
                self._on_headers(stream, flags, unpadded(data, at + 9, stop, flags))
            elif kind == DATA:
                self._taken += size
                self._on_data(stream, flags, data, at + 9, stop)
            else:
                self._on_other(kind, stream, flags, data[at + 9 : stop])
            at = stop
        if self._taken > _WINDOW // 2:
            self._send(frame(WINDOW_UPDATE, 0, 0, self._taken.to_bytes(4, "big")))
            self._taken = 0
        return at

    def _on_headers(self, stream: int, flags: int, block: bytes) -> None:
        if flags & PRIORITISED:
            block = block[5:]
        if flags & END_HEADERS:
            self._on_block(stream, flags, block)
        else:
            self._block = (stream, flags, bytearray(block))

    def _is_idle(self, number: int) -> bool:
        """A stream that has not begun, and is none that we do not take any more."""
        return self._newest < number <= self._refuse_above

    def _on_other(self, kind: int, number: int, flags: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._on_window(number, payload)
        elif kind == PING:
            _check(len(payload) == 8 and number == 0, "PING")
            if not flags & ACK:
                self._send(frame(PING, ACK, 0, payload))
        elif kind == RST_STREAM:
            _check(len(payload) == 4 and number > 0 and not self._is_idle(number), "RST_STREAM")
            stream = self._streams.get(number)
            if stream is not None:
                self._forget(stream)
        elif kind == SETTINGS:
            _check(len(payload) % 6 == 0 and number == 0, "SETTINGS")
            if not flags & ACK:
                self._on_settings(payload)
        elif kind == CONTINUATION:
            self._on_continuation(number, flags, payload)
        elif kind == GOAWAY:
            _check(number == 0, "GOAWAY")
            self._take_no_more()
        elif kind == PUSH_PROMISE:
            raise H2Error(PROTOCOL_ERROR, "a client does not push")
        # PRIORITY, and kinds that others know: of no use here.

    def _on_continuation(self, number: int, flags: int, payload: bytes) -> None:
        if self._block is None:
            raise H2Error(PROTOCOL_ERROR, "CONTINUATION of nothing")
        _, first_flags, block = self._block
        block += payload
        if len(block) > MAX_BLOCK_BYTES or not payload:
            raise H2Error(ENHANCE_YOUR_CALM, f"a header block of more than {MAX_BLOCK_BYTES} bytes, or of many pieces")
        if flags & END_HEADERS:
            self._block = None
            self._on_block(number, first_flags, bytes(block))

    def _on_settings(self, payload: bytes) -> None:
        for at in range(0, len(payload), 6):
            name, value = int.from_bytes(payload[at : at + 2], "big"), int.from_bytes(payload[at + 2 : at + 6], "big")
            if name == 4:  # INITIAL_WINDOW_SIZE
                if value > _MOST:
                    raise H2Error(FLOW_CONTROL_ERROR, f"a window of {value}")
                for stream in self._streams.values():
                    stream.window += value - self._first_window
                self._first_window = value
            elif name == 5:  # MAX_FRAME_SIZE
                if not 16384 <= value < 1 << 24:
                    raise H2Error(PROTOCOL_ERROR, f"frames of {value} bytes")
                self._max_frame = value
        self._send(frame(SETTINGS, ACK, 0))
        self._pump()

    def _on_window(self, number: int, payload: bytes) -> None:
        _check(len(payload) == 4, "WINDOW_UPDATE")
        more = int.from_bytes(payload, "big") & _MOST
        stream = self._streams.get(number)
        if not more or (self._window if number == 0 else stream.window if stream else 0) + more > _MOST:
            raise H2Error(FLOW_CONTROL_ERROR, f"a window that grows by {more} on stream {number}")
        if number == 0:
            self._window += more
            self._pump()
        elif stream is not None:
            stream.window += more
            self._push(stream)

    # ---- out

    def _send_answer(self, stream: S, headers: bytes, data: bytes, trailers: bytes) -> None:
        """All of it in one write if the windows permit; both blocks come as frames."""
        size = len(data)
        if size <= self._max_frame and size <= self._window and size <= stream.window:
            self._window -= size
            prefix = size.to_bytes(3, "big") + b"\0\0"
            self._send(b"".join((headers, prefix, stream.id.to_bytes(4, "big"), data, trailers)))
            self._done(stream)
            return
        self._send(headers)
        stream.rest, stream.last = memoryview(data), trailers
        self._push(stream)

    def _push(self, stream: S) -> None:
        """Send what its windows permit of an answer that is larger than they were."""
        rest = stream.rest
        while rest is not None and rest.nbytes:
            size = min(rest.nbytes, self._max_frame, self._window, stream.window)
            if size <= 0:
                stream.rest = rest
                return
            self._send(frame(DATA, 0, stream.id, bytes(rest[:size])))
            self._window -= size
            stream.window -= size
            rest = rest[size:]
        if rest is not None:
            self._send(stream.last)
            self._done(stream)

    def _pump(self) -> None:
        for stream in [stream for stream in self._streams.values() if stream.rest is not None]:
            self._push(stream)

    def _done(self, stream: S) -> None:
        """Nothing of it is left to do."""
        stream.rest = None
        self._streams.pop(stream.id, None)
        self._end_if_done()


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise H2Error(PROTOCOL_ERROR, f"{what} with a wrong length, or on a wrong stream")


def unpadded(data: bytes, at: int, stop: int, flags: int) -> bytes:
    if not flags & PADDED:
        return data[at:stop]
    if at >= stop or at + 1 + data[at] > stop:
        raise H2Error(PROTOCOL_ERROR, "more padding than frame")
    return data[at + 1 : stop - data[at]]
