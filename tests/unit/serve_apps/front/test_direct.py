"""A port that replicas share, over real sockets: who stops sends its clients on, and loses none of their requests."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import pytest

from cluster.errors import ClusterError
from serve_apps.front.direct import DirectListener, DirectProtocol
from tests.unit.serve_apps.front.test_protocol import Held, answer, app, infer, run, until


@pytest.fixture
def endpoint() -> Any:
    held = Held()
    DirectProtocol.endpoint = held
    yield held
    DirectProtocol.endpoint = None
    DirectProtocol.leaving = False


def test_it_answers_both_ways_and_ends(endpoint: Held) -> None:
    async def test() -> None:
        listener = DirectListener(app, port=0, host="127.0.0.1")
        await listener.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(infer(b"a"))
        assert (await answer(reader))[1] == b"a"
        writer.write(b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n")
        assert (await answer(reader))[1] == b"long GET /x 0"
        assert endpoint.begun == 1
        await listener.stop(5.0)
        await listener.stop(5.0)
        assert await reader.read() == b""
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", listener.port)

    run(test())


def test_two_listen_on_one_port_and_what_one_leaves_the_other_takes(endpoint: Held) -> None:
    async def test() -> None:
        first = DirectListener(app, port=0, host="127.0.0.1")
        await first.start()
        second = DirectListener(app, port=first.port, host="127.0.0.1")
        await second.start()

        async def ask() -> bytes:
            reader, writer = await asyncio.open_connection("127.0.0.1", first.port)
            writer.write(infer(b"a"))
            _, body = await answer(reader)
            writer.close()
            return body

        assert await asyncio.gather(*(ask() for _ in range(50))) == [b"a"] * 50
        await first.stop(5.0)
        assert await asyncio.gather(*(ask() for _ in range(50))) == [b"a"] * 50
        await second.stop(5.0)

    run(test())


@pytest.mark.parametrize("request_bytes", [infer(b"a"), b"GET /x HTTP/1.1\r\nhost: h\r\n\r\n"])
def test_who_leaves_answers_and_asks_to_come_back_elsewhere(endpoint: Held, request_bytes: bytes) -> None:
    async def test() -> None:
        leaving = False
        listener = DirectListener(app, port=0, host="127.0.0.1")
        await listener.start(lambda: leaving)
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(request_bytes)
        assert b"connection: close" not in (await answer(reader))[0]
        leaving = True
        await until(lambda: DirectProtocol.leaving)
        for _ in range(2):  # the old connection, then a new one: it still listens
            writer.write(request_bytes)
            assert b"connection: close\r\n" in (await answer(reader))[0]
            assert await reader.read() == b""
            writer.close()
            reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        await listener.stop(5.0)
        writer.close()

    run(test())


def test_what_is_under_way_is_answered_before_it_ends(endpoint: Held) -> None:
    async def test() -> None:
        endpoint.at_once = False
        listener = DirectListener(app, port=0, host="127.0.0.1")
        await listener.start()
        reader, writer = await asyncio.open_connection("127.0.0.1", listener.port)
        writer.write(infer(b"a"))
        await until(lambda: endpoint.waiting)
        stopping = asyncio.create_task(listener.stop(20.0))
        await asyncio.sleep(0.3)
        assert not stopping.done()
        endpoint.waiting[0].answer()
        assert (await answer(reader))[1] == b"a"
        await stopping
        writer.close()

    run(test())


def test_who_is_connected_when_it_ends_is_still_heard(endpoint: Held) -> None:
    """Half of them wait in the kernel for a listener that will not take another connection, none has sent anything."""

    async def test() -> None:
        first = DirectListener(app, port=0, host="127.0.0.1")
        await first.start()
        second = DirectListener(app, port=first.port, host="127.0.0.1")
        await second.start()
        early = [socket.create_connection(("127.0.0.1", first.port)) for _ in range(20)]
        await asyncio.sleep(0.05)
        late = [socket.create_connection(("127.0.0.1", first.port)) for _ in range(20)]
        stopping = asyncio.create_task(first.stop(5.0))
        await asyncio.sleep(0.2)
        clients = [await asyncio.open_connection(sock=each) for each in early + late]
        for _, writer in clients:
            writer.write(infer(b"a"))
        answers = [await answer(reader) for reader, _ in clients]
        assert [body for _, body in answers] == [b"a"] * 40
        await stopping
        for _, writer in clients:
            writer.close()
        await second.stop(5.0)

    run(test())


def test_a_port_that_another_program_has_is_refused_by_name() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ClusterError, match=f"direct_port={port} cannot be listened on"):
            DirectListener(app, port=port, host="127.0.0.1")
