"""HTTP/2 as it comes: by gRPC's own client under flow control and by hand where it breaks the rules."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_apps.front import h2
from serve_apps.front.grpc_listener import GrpcListener
from serve_apps.front.hpack import Decoder, literal
from serve_apps.oip.grpc_service import Reply
from serve_apps.oip.grpc_status import FINE

PATH = "/a.Service/Echo"
HEADERS = b"".join(
    literal(name, value)
    for name, value in (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", PATH.encode()), (b":authority", b"x"),
        (b"content-type", b"application/grpc"), (b"te", b"trailers"),
    )
)  # fmt: skip
HELLO = h2.PREFACE + h2.frame(h2.SETTINGS, 0, 0)


class Echo:
    """Answers with what came; what begins with "wait" waits."""

    def __init__(self) -> None:
        self.waiting: list[tuple[bytes, Reply]] = []
        self.cancelled = 0
        self.times: list[float | None] = []

    def begin(
        self, path: str, body: bytes, reply: Reply, *, timeout_s: float | None = None,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> Any:  # fmt: skip
        self.times.append(timeout_s)
        if body.startswith(b"wait"):
            self.waiting.append((body, reply))
            return self
        reply(FINE, body)
        return None

    def cancel(self) -> None:
        self.cancelled += 1


@asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[tuple[Echo, GrpcListener, int]]:
    echo = Echo()
    listener = GrpcListener(echo, **options)
    port = await listener.start(host="127.0.0.1")
    try:
        yield echo, listener, port
    finally:
        await listener.stop(0.0)


def run(test: Any) -> None:
    """On the loop that a replica has."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(asyncio.wait_for(test, 60.0))


def echo(channel: grpc.aio.Channel, body: bytes, **options: Any) -> Any:
    return channel.unary_unary(PATH)(body, **options)


def channel_to(port: int) -> grpc.aio.Channel:
    return grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=[("grpc.max_receive_message_length", -1)])


async def said(port: int, *parts: bytes) -> list[tuple[int, int, int, bytes]]:
    """Frames (kind, flags, stream, payload) that come back for these bytes until the server closes, or says nothing
    for a moment."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(0.005)
    got = b""
    while True:
        try:
            more = await asyncio.wait_for(reader.read(65536), 0.3)
        except (TimeoutError, ConnectionError):
            break
        if not more:
            break
        got += more
    writer.close()
    frames, at = [], 0
    while at + 9 <= len(got):
        size = int.from_bytes(got[at : at + 3], "big")
        frames.append(
            (got[at + 3], got[at + 4], int.from_bytes(got[at + 5 : at + 9], "big"), got[at + 9 : at + 9 + size])
        )
        at += 9 + size
    return frames


def gone_for(frames: list[tuple[int, int, int, bytes]]) -> int | None:
    """The error that the connection was ended with."""
    codes = [int.from_bytes(payload[4:8], "big") for kind, _, _, payload in frames if kind == h2.GOAWAY]
    return codes[0] if codes else None


def trailers(frames: list[tuple[int, int, int, bytes]], stream: int) -> dict[bytes, bytes]:
    (block,) = [p for kind, flags, number, p in frames if kind == h2.HEADERS and flags & 1 and number == stream]
    return dict(Decoder().decode(block))


def message(body: bytes) -> bytes:
    return b"\0" + len(body).to_bytes(4, "big") + body


@pytest.mark.parametrize("size", [0, 1, 16_379, 16_380, 70_000, 3_000_000, 16 << 20])
def test_messages_of_any_size_go_there_and_back(size: int) -> None:
    async def test() -> None:
        body = bytes(range(256)) * (size // 256) + bytes(size % 256)
        async with listening() as (_, _, port), channel_to(port) as channel:
            assert await echo(channel, body) == body

    run(test())


def test_many_calls_at_once_on_one_connection() -> None:
    async def test() -> None:
        async with listening() as (_, listener, port), channel_to(port) as channel:
            bodies = [b"%d" % n * (n * 37 % 5000) for n in range(500)]
            assert await asyncio.gather(*(echo(channel, body, timeout=30) for body in bodies)) == bodies
            assert listener.connections == 1

    run(test())


def test_more_streams_than_the_bound_wait_at_the_client() -> None:
    async def test() -> None:
        async with listening() as (server, _, port), channel_to(port) as channel:
            calls = [asyncio.ensure_future(echo(channel, b"wait%d" % n)) for n in range(h2.MAX_STREAMS + 100)]
            while len(server.waiting) < h2.MAX_STREAMS:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)
            assert len(server.waiting) == h2.MAX_STREAMS
            answered = 0
            while answered < len(calls):
                for body, reply in server.waiting[answered:]:
                    reply(FINE, body)
                    answered += 1
                await asyncio.sleep(0.005)
            assert sorted(await asyncio.gather(*calls)) == sorted(b"wait%d" % n for n in range(len(calls)))

    run(test())


def test_who_leaves_is_forgotten() -> None:
    async def test() -> None:
        async with listening() as (server, listener, port):
            async with channel_to(port) as channel:
                call = echo(channel, b"wait")
                other = asyncio.ensure_future(echo(channel, b"wait, too"))
                code = asyncio.ensure_future(call.code())
                while len(server.waiting) < 2:
                    await asyncio.sleep(0.005)
                call.cancel()
                assert await code == grpc.StatusCode.CANCELLED
                while server.cancelled < 1:
                    await asyncio.sleep(0.005)
            with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError)):
                await other
            del call, other, code, channel  # gRPC keeps a closed channel's connection while anything of it is alive
            gc.collect()
            while server.cancelled < 2 or listener.connections:
                await asyncio.sleep(0.005)

    run(test())


def test_a_stop_answers_what_is_on_its_way_and_loses_no_call() -> None:
    """Clients go on as before; while one listener stops, another has the port."""

    async def test() -> None:
        async with listening() as (server, first, port), channel_to(port) as channel:
            waiting = asyncio.ensure_future(echo(channel, b"wait"))
            while not server.waiting:
                await asyncio.sleep(0.005)
            stopping = asyncio.ensure_future(first.stop(10.0))
            await asyncio.sleep(0.01)
            second = GrpcListener(Echo())
            await second.start(port=port, host="127.0.0.1")
            for number in range(200):
                assert await echo(channel, b"%d" % number, wait_for_ready=True) == b"%d" % number
                await asyncio.sleep(0.005)
            [(body, reply)] = server.waiting
            reply(FINE, body)
            assert await waiting == b"wait"
            await stopping
            assert first.connections == 0
            await second.stop(1.0)

    run(test())


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (b"GET / HTTP/1.1\r\nhost: x\r\n\r\n", h2.PROTOCOL_ERROR),
        (HELLO + h2.frame(h2.DATA, 1, 1, message(b"x")), h2.PROTOCOL_ERROR),
        (HELLO + h2.frame(h2.HEADERS, 5, 2, HEADERS), h2.PROTOCOL_ERROR),
        (HELLO + h2.frame(h2.HEADERS, 4, 3, HEADERS) + h2.frame(h2.HEADERS, 4, 1, HEADERS), h2.PROTOCOL_ERROR),
        (HELLO + h2.frame(h2.HEADERS, 4, 1, b"\xff\xff\xff"), h2.COMPRESSION_ERROR),
        (HELLO + h2.frame(h2.HEADERS, 0, 1, HEADERS) + h2.frame(h2.PING, 0, 0, bytes(8)), h2.PROTOCOL_ERROR),
        (HELLO + h2.frame(h2.HEADERS, 0, 1) + h2.frame(h2.CONTINUATION, 0, 1, b"a" * 9000) * 2, h2.ENHANCE_YOUR_CALM),
        (HELLO + h2.frame(h2.HEADERS, 0, 1) + h2.frame(h2.CONTINUATION, 0, 1) * 2, h2.ENHANCE_YOUR_CALM),
        (HELLO + h2.frame(h2.CONTINUATION, 4, 1, HEADERS), h2.PROTOCOL_ERROR),
        (HELLO + h2.frame(h2.PUSH_PROMISE, 4, 1, HEADERS), h2.PROTOCOL_ERROR),
        (HELLO + h2.frame(h2.PING, 0, 0, bytes(7)), h2.PROTOCOL_ERROR),
        (HELLO + h2.frame(h2.SETTINGS, 0, 0, bytes(5)), h2.PROTOCOL_ERROR),
        (HELLO + h2.frame(h2.SETTINGS, 0, 0, b"\0\4\xff\xff\xff\xff"), h2.FLOW_CONTROL_ERROR),
        (HELLO + h2.frame(h2.SETTINGS, 0, 0, b"\0\5\0\0\0\1"), h2.PROTOCOL_ERROR),
        (HELLO + h2.frame(h2.WINDOW_UPDATE, 0, 0, b"\x7f\xff\xff\xff"), h2.FLOW_CONTROL_ERROR),
        (HELLO + h2.frame(h2.WINDOW_UPDATE, 0, 0, bytes(4)), h2.FLOW_CONTROL_ERROR),
        (HELLO + h2.frame(h2.RST_STREAM, 0, 1, bytes(4)), h2.PROTOCOL_ERROR),
        (HELLO + h2.frame(h2.HEADERS, 12, 1, b"\xff"), h2.PROTOCOL_ERROR),
        (HELLO + b"\xff\xff\xff\0\0\0\0\0\1", h2.FRAME_SIZE_ERROR),
    ],
)
def test_who_breaks_the_rules_is_told_and_left(sent: bytes, code: int) -> None:
    async def test() -> None:
        async with listening() as (_, listener, port), channel_to(port) as channel:
            assert gone_for(await said(port, sent)) == code
            assert await echo(channel, b"a neighbour") == b"a neighbour"
            assert listener.connections == 1

    run(test())


@pytest.mark.parametrize("pieces", [1, 7])
def test_frames_in_pieces_with_padding_and_priorities(pieces: int) -> None:
    async def test() -> None:
        padded = bytes((3,)) + message(b"hello") + bytes(3)
        sent = HELLO + h2.frame(h2.PRIORITY, 0, 1, bytes(5)) + h2.frame(200, 9, 0, b"what others know")
        sent += h2.frame(h2.HEADERS, h2.PRIORITISED, 1, bytes(5) + HEADERS[:30])
        sent += h2.frame(h2.CONTINUATION, h2.END_HEADERS, 1, HEADERS[30:])
        sent += h2.frame(h2.DATA, h2.PADDED, 1, padded) + h2.frame(h2.DATA, h2.END_STREAM, 1)
        step = -(-len(sent) // pieces)
        async with listening() as (_, _, port):
            frames = await said(port, *(sent[at : at + step] for at in range(0, len(sent), step)))
            assert [payload for kind, _, _, payload in frames if kind == h2.DATA] == [message(b"hello")]
            assert trailers(frames, 1) == {b"grpc-status": b"0"}
            assert gone_for(frames) is None

    run(test())


@pytest.mark.parametrize(
    ("headers", "data", "status", "says"),
    [
        (b"", b"\0\0\0\0\7abc", b"3", b"one message"),
        (b"", b"\1\0\0\0\3abc", b"3", b"grpc-encoding"),
        (literal(b"grpc-encoding", b"gzip"), b"\1\0\0\0\3abc", b"3", b"no gzip"),
        (literal(b"grpc-encoding", b"snappy"), message(b"x"), b"12", b"snappy"),
        (literal(b"grpc-timeout", b"soon"), message(b"x"), b"3", b"grpc-timeout"),
        (b"", b"\0\x7f\xff\xff\xff", b"8", b"at most"),
    ],
)
def test_a_call_that_is_none_is_answered_and_the_connection_stays(
    headers: bytes, data: bytes, status: bytes, says: bytes
) -> None:
    async def test() -> None:
        async with listening() as (_, _, port):
            sent = HELLO + h2.frame(h2.HEADERS, 4, 1, HEADERS + headers) + h2.frame(h2.DATA, 1, 1, data)
            sent += h2.frame(h2.HEADERS, 4, 3, HEADERS) + h2.frame(h2.DATA, 1, 3, message(b"next"))
            frames = await said(port, sent)
            told = trailers(frames, 1)
            assert told[b"grpc-status"] == status
            assert says in told[b"grpc-message"]
            assert trailers(frames, 3) == {b"grpc-status": b"0"}

    run(test())


def test_a_small_message_that_unpacks_to_too_much_is_refused() -> None:
    async def test() -> None:
        async with listening() as (_, _, port), channel_to(port) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await echo(channel, bytes(200 << 20), compression=grpc.Compression.Gzip)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
            assert await echo(channel, b"next") == b"next"

    run(test())


def test_the_time_that_is_left_arrives() -> None:
    async def test() -> None:
        async with listening() as (server, _, port), channel_to(port) as channel:
            for timeout in (None, 0.5, 30.0, 7200.0):
                await echo(channel, b"x", timeout=timeout)
            assert server.times[0] is None
            for got, want in zip(server.times[1:], (0.5, 30.0, 7200.0), strict=True):
                assert got == pytest.approx(want, rel=0.1)

    run(test())


def test_what_is_no_grpc_is_told_so() -> None:
    async def test() -> None:
        async with listening() as (_, _, port):
            block = literal(b":method", b"GET") + literal(b":path", b"/")
            frames = await said(port, HELLO + h2.frame(h2.HEADERS, 5, 1, block))
            assert trailers(frames, 1) == {b":status": b"415"}

    run(test())


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 255), st.integers(0, 5), st.binary(max_size=60))))
def test_any_frames_leave_the_server_well(frames: list[tuple[int, int, int, bytes]]) -> None:
    async def test() -> None:
        async with listening() as (_, listener, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HELLO + b"".join(h2.frame(*each) for each in frames))
            writer.write_eof()
            while await reader.read(65536):
                pass
            writer.close()
            async with channel_to(port) as channel:
                assert await echo(channel, b"a neighbour") == b"a neighbour"
            del channel
            gc.collect()
            while listener.connections:
                await asyncio.sleep(0.005)

    run(test())
