"""Connections over real sockets: a uvicorn with LeanProtocol, inferences that are answered when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
import uvicorn
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_apps.front.endpoint import Reply
from serve_apps.front.head import Head
from serve_apps.front.protocol import LeanProtocol


class Waiting:
    def __init__(self, endpoint: Held, body: bytes, reply: Reply) -> None:
        self.body, self._endpoint, self._reply = body, endpoint, reply

    def answer(self) -> None:
        self._endpoint.waiting.remove(self)
        self._reply(200, b"content-length: %d\r\n" % len(self.body), self.body)

    def cancel(self) -> None:
        self._endpoint.waiting.remove(self)
        self._endpoint.cancelled += 1


class Held:
    """Echoes each body, at once or when told."""

    def __init__(self, *, at_once: bool = True) -> None:
        self.at_once = at_once
        self.waiting: list[Waiting] = []
        self.cancelled = 0
        self.begun = 0

    def takes(self, head: Head) -> bool:
        return head.target == b"/infer" and head.length <= 1 << 20

    def begin(self, head: Head, body: bytes, reply: Reply) -> Waiting | None:
        self.begun += 1
        if self.at_once:
            reply(200, b"content-length: %d\r\n" % len(body), body)
            return None
        one = Waiting(self, body, reply)
        self.waiting.append(one)
        return one


class Book:
    def __init__(self) -> None:
        self.under_way = 0
        self.statuses: list[int] = []

    def began(self) -> None:
        self.under_way += 1

    def ended(self, status: int, took_s: float) -> None:
        assert took_s >= 0
        self.under_way -= 1
        self.statuses.append(status)


async def app(scope: Any, receive: Any, send: Any) -> None:
    """The long way: tells what it got, and answers an inference as the short way does."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    text = f"long {scope['method']} {scope['path']} {len(body)}".encode()
    if scope["path"] == "/names":
        text = b",".join(value for name, value in scope["headers"] if name in (b"x-request-id", b"x-other"))
    if scope["path"] == "/infer" and len(body) <= 1 << 20:
        text = body
    await send(
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(text))]}
    )
    await send({"type": "http.response.body", "body": text})


class Served:
    def __init__(self, server: uvicorn.Server, endpoint: Held, book: Book, address: tuple[str, int]) -> None:
        self.server, self.endpoint, self.book, self.address = server, endpoint, book, address


@asynccontextmanager
async def served(*, at_once: bool = True, keep_alive_s: int = 5) -> AsyncIterator[Served]:
    endpoint, book = Held(at_once=at_once), Book()

    class Mine(LeanProtocol):
        pass

    Mine.endpoint, Mine.ledger = endpoint, book
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="critical", lifespan="off", http=Mine,
        timeout_keep_alive=keep_alive_s,
    )  # fmt: skip
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.005)
    try:
        yield Served(server, endpoint, book, server.servers[0].sockets[0].getsockname())
    finally:
        server.should_exit = True
        await asyncio.wait_for(task, 20)


def infer(body: bytes, target: str = "/infer", more: str = "") -> bytes:
    return f"POST {target} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(body)}\r\n{more}\r\n".encode() + body


async def answer(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """(head, body)"""
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 20)
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    return head, await asyncio.wait_for(reader.readexactly(length), 20)


async def until(predicate: Callable[[], object]) -> None:
    for _ in range(4000):
        if predicate():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("the awaited state never came")


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def test_an_inference_is_answered_and_the_connection_goes_on() -> None:
    async def test() -> None:
        async with served() as s:
            reader, writer = await asyncio.open_connection(*s.address)
            for n in range(3):
                writer.write(infer(b"body %d" % n, more="x-request-id: r7\r\n"))
                head, body = await answer(reader)
                assert head.startswith(b"HTTP/1.1 200 OK\r\n")
                assert b"\r\nx-request-id: r7\r\n" in head
                assert b"\r\ndate: " in head
                assert body == b"body %d" % n
            assert (s.endpoint.begun, s.book.under_way, s.book.statuses) == (3, 0, [200] * 3)
            writer.close()

    run(test())


def test_everything_else_goes_the_long_way_and_the_two_take_turns() -> None:
    async def test() -> None:
        async with served() as s:
            reader, writer = await asyncio.open_connection(*s.address)
            said = [
                (infer(b"a"), b"a"), (b"GET /health HTTP/1.1\r\nhost: h\r\n\r\n", b"long GET /health 0"),
                (infer(b"bc"), b"bc"), (infer(b"def", "/other"), b"long POST /other 3"), (infer(b"g"), b"g"),
                (b"POST /infer HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
                 b"hi"),
                (infer(b"x" * (1 << 20) + b"x"), b"long POST /infer 1048577"), (infer(b""), b""),
            ]  # fmt: skip
            for sent, expected in said:
                writer.write(sent)
                assert (await answer(reader))[1] == expected
            assert s.endpoint.begun == 4
            writer.close()

    run(test())


REQUESTS = [
    (infer(b"one"), b"one"), (b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n", b"long GET /a 0"),
    (infer(b"two" * 50), b"two" * 50), (infer(b"12345", "/other"), b"long POST /other 5"),
]  # fmt: skip


@settings(max_examples=40, deadline=None)  # each starts a server
@given(st.data())
def test_however_a_stream_is_cut_it_is_answered_in_order(data: st.DataObject) -> None:
    chosen = data.draw(st.lists(st.sampled_from(REQUESTS), min_size=1, max_size=6))
    stream = b"".join(sent for sent, _ in chosen)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pauses = data.draw(st.lists(st.booleans(), min_size=len(cuts) + 1, max_size=len(cuts) + 1))
    at_once = data.draw(st.booleans())

    async def test() -> None:
        async with served(at_once=at_once) as s:
            reader, writer = await asyncio.open_connection(*s.address)

            async def free() -> None:
                while True:
                    for one in list(s.endpoint.waiting):
                        one.answer()
                    await asyncio.sleep(0)

            freeing = asyncio.create_task(free())
            for start, stop, pause in zip([0, *cuts], [*cuts, len(stream)], pauses, strict=True):
                writer.write(stream[start:stop])
                if pause:
                    await asyncio.sleep(0.002)
            for _, expected in chosen:
                assert (await answer(reader))[1] == expected
            freeing.cancel()
            writer.close()
            assert s.book.under_way == 0

    run(test())


def test_a_request_id_that_is_no_text_does_not_reach_serve_which_would_fail_on_it() -> None:
    async def test() -> None:
        async with served() as one:
            reader, writer = await asyncio.open_connection(*one.address)
            for name, reaches in ((b"caf\xe9", b"\xe9"), (b"plain", b"plain,\xe9")):
                writer.write(b"GET /names HTTP/1.1\r\nhost: h\r\nX-Request-Id: %s\r\nx-other: \xe9\r\n\r\n" % name)
                assert (await answer(reader))[1] == reaches
            writer.close()

    run(test())


def test_a_client_that_leaves_is_not_worked_for() -> None:
    async def test() -> None:
        async with served(at_once=False) as s:
            _, writer = await asyncio.open_connection(*s.address)
            writer.write(infer(b"a"))
            await until(lambda: s.endpoint.waiting)
            writer.close()
            await until(lambda: s.endpoint.cancelled == 1)
            assert (s.book.under_way, s.book.statuses) == (0, [499])

    run(test())


def test_a_server_that_stops_answers_what_is_under_way_and_says_that_it_closes() -> None:
    async def test() -> None:
        async with served(at_once=False) as s:
            reader, writer = await asyncio.open_connection(*s.address)
            idle, idle_writer = await asyncio.open_connection(*s.address)
            half, half_writer = await asyncio.open_connection(*s.address)
            writer.write(infer(b"a"))
            half_writer.write(infer(b"half")[:-2])
            await until(lambda: s.endpoint.waiting)
            await asyncio.sleep(0.05)
            s.server.should_exit = True
            assert await asyncio.wait_for(idle.read(), 20) == b""
            s.endpoint.waiting[0].answer()
            head, body = await answer(reader)
            assert b"connection: close\r\n" in head
            assert body == b"a"
            assert await asyncio.wait_for(reader.read(), 20) == b""
            half_writer.write(b"lf")
            await until(lambda: s.endpoint.waiting)
            s.endpoint.waiting[0].answer()
            assert (await answer(half))[1] == b"half"
            for each in (writer, idle_writer, half_writer):
                each.close()

    run(test())


def test_who_sends_ahead_is_read_no_further_than_a_bound_and_then_on() -> None:
    async def test() -> None:
        async with served(at_once=False) as s:
            reader, writer = await asyncio.open_connection(*s.address)
            body = b"z" * 50_000
            count = 200
            writer.write(infer(body) * count)  # 10 MB: more than sockets hold
            await until(lambda: s.endpoint.waiting)
            await asyncio.sleep(0.3)
            [connection] = s.server.server_state.connections
            assert isinstance(connection, LeanProtocol)
            assert len(connection._behind) < 1 << 20
            s.endpoint.at_once = True
            s.endpoint.waiting[0].answer()
            for _ in range(count):
                assert (await answer(reader))[1] == body
            writer.close()

    run(test())


@pytest.mark.parametrize(
    "begun",
    [b"", infer(b"abcdef")[:-3], b"GET /a HT", b"GET /a HTTP/1.1\r\nhost: h\r\n", infer(b"abcdef", "/other")[:-3]],
)
def test_a_connection_on_which_nothing_comes_is_closed(begun: bytes) -> None:
    async def test() -> None:
        async with served(keep_alive_s=1) as s:
            reader, writer = await asyncio.open_connection(*s.address)
            writer.write(begun)
            assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()

    run(test())


def test_a_connection_that_waits_for_its_answer_is_not_idle() -> None:
    async def test() -> None:
        async with served(at_once=False, keep_alive_s=1) as s:
            reader, writer = await asyncio.open_connection(*s.address)
            writer.write(b"GET /a HTTP/1.1\r\nhost: h\r\n\r\n")  # uvicorn's own timer runs from here
            await answer(reader)
            writer.write(infer(b"slow"))
            await until(lambda: s.endpoint.waiting)
            await asyncio.sleep(2.5)
            s.endpoint.waiting[0].answer()
            assert (await answer(reader))[1] == b"slow"
            writer.close()

    run(test())


def fields(count: int, size: int) -> bytes:
    return b"".join(b"x-%d: %s\r\n" % (number, b"v" * size) for number in range(count))


TOO_MUCH = {
    "one field": fields(1, 40_000), "one field without an end": b"x: " + b"v" * 50_000, "many": fields(200, 1),
    "many large": fields(100, 1000), "a name": b"x" * 40_000 + b": v\r\n",
}  # fmt: skip


@pytest.mark.parametrize("kind", TOO_MUCH)
@pytest.mark.parametrize("first", [b"GET /a HTTP/1.1\r\n", b"POST /infer HTTP/1.1\r\ncontent-length: 0\r\n"])
def test_a_head_that_is_too_large_is_refused_before_it_is_whole(first: bytes, kind: str) -> None:
    async def test() -> None:
        async with served() as s:
            reader, writer = await asyncio.open_connection(*s.address)
            writer.write(first + b"host: h\r\n" + TOO_MUCH[kind])
            if kind != "one field without an end":
                writer.write(b"\r\n")
            head, body = await answer(reader)
            assert head.startswith(b"HTTP/1.1 431 ")
            assert b"content-type: application/json\r\n" in head
            assert "at most 32768 bytes and 128 fields" in orjson.loads(body)["error"]
            writer.close()
            reader, writer = await asyncio.open_connection(*s.address)
            writer.write(infer(b"next"))
            assert (await answer(reader))[1] == b"next"
            writer.close()

    run(test())


def test_a_url_that_is_too_long_is_a_head_that_is_too_large() -> None:
    async def test() -> None:
        async with served() as s:
            reader, writer = await asyncio.open_connection(*s.address)
            writer.write(b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nhost: h\r\n\r\n")
            assert (await answer(reader))[0].startswith(b"HTTP/1.1 431 ")
            writer.close()

    run(test())


def test_a_head_within_the_bounds_is_read_and_so_is_the_next() -> None:
    async def test() -> None:
        async with served() as s:
            reader, writer = await asyncio.open_connection(*s.address)
            for _ in range(3):
                writer.write(b"GET /a HTTP/1.1\r\nhost: h\r\n" + fields(100, 200) + b"\r\n")
                assert (await answer(reader))[1] == b"long GET /a 0"
            writer.close()

    run(test())


@pytest.mark.parametrize(
    "sent",
    [b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"GET\r\n\r\n",
     b"POST /infer HTTP/1.1\r\nhost: h\r\ncontent-length: -1\r\n\r\n",
     b"GET /a HTTP/1.1\r\nno field\r\n\r\n",
     b"POST /other HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\nabc"],
)  # fmt: skip
def test_what_is_no_http_is_told_so_as_every_error_is(sent: bytes) -> None:
    async def test() -> None:
        async with served() as s:
            reader, writer = await asyncio.open_connection(*s.address)
            writer.write(sent)
            head, body = await answer(reader)
            assert head.startswith(b"HTTP/1.1 400 ")
            assert list(orjson.loads(body)) == ["error"]
            assert await asyncio.wait_for(reader.read(), 20) == b""
            writer.close()

    run(test())
