"""A port with GrpcProtocols, from start to stop; what Serve starts in place of its own, with Serve's health checks."""

from __future__ import annotations

import asyncio
import socket
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from ray.serve.generated.serve_pb2 import HealthzRequest, HealthzResponse

from serve_apps.front import grpc_ingress, serve_hook
from serve_apps.front.grpc_listener import GrpcListener
from tests.unit.serve_apps.front.test_grpc_protocol import Echo, channel_to, echo, run
from tests.unit.serve_apps.front.test_protocol import Book


def test_it_listens_on_a_socket_that_it_is_given_and_tells_of_each_call() -> None:
    async def test() -> None:
        with socket.create_server(("127.0.0.1", 0)) as sock:
            server, book = Echo(), Book()
            listener = GrpcListener(server, ledger=book)
            assert await listener.start(sock=sock.dup()) == sock.getsockname()[1]
        async with channel_to(sock_port := listener_port(listener)) as channel:
            assert await echo(channel, b"a") == b"a"
            call = echo(channel, b"wait")
            waited = asyncio.ensure_future(call.code())
            while not server.waiting:
                await asyncio.sleep(0.005)
            assert (book.under_way, book.statuses) == (1, [200])
            call.cancel()
            await waited
            while book.under_way:
                await asyncio.sleep(0.005)
            assert book.statuses == [200, 499]
        await listener.stop(1.0)
        await listener.stop(1.0)
        await listener.wait_until_stopped()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", sock_port)

    run(test())


def listener_port(listener: GrpcListener) -> int:
    assert listener._server is not None
    port: int = listener._server.sockets[0].getsockname()[1]
    return port


def test_a_stop_that_waited_long_enough_ends_what_is_on_its_way() -> None:
    async def test() -> None:
        server = Echo()
        listener = GrpcListener(server)
        port = await listener.start(host="127.0.0.1")
        async with channel_to(port) as channel:
            call = asyncio.ensure_future(echo(channel, b"wait"))
            while not server.waiting:
                await asyncio.sleep(0.005)
            await listener.stop(0.05)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await call
            assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
            assert server.cancelled == 1
            assert listener.connections == 0

    run(test())


class Replica:
    """What of Serve's replica is asked for its health."""

    def __init__(self) -> None:
        self.told = (True, "success")

    async def _dataplane_health_check(self) -> tuple[bool, str]:
        return self.told


@pytest.fixture
def replica(monkeypatch: pytest.MonkeyPatch) -> Replica:
    made = Replica()
    monkeypatch.setattr(serve_hook, "_replica", [made])
    return made


async def healthz(channel: grpc.aio.Channel) -> Any:
    path = "/ray.serve.RayServeAPIService/Healthz"
    return HealthzResponse.FromString(await channel.unary_unary(path)(HealthzRequest().SerializeToString())).message


def test_serve_starts_it_and_its_health_checks_hear_that_the_replica_leaves(replica: Replica) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()
        with socket.create_server(("", 0)) as taken:
            port = taken.getsockname()[1]
            with pytest.raises(RuntimeError, match=str(port)):  # as Serve expects it, to try another port
                await grpc_ingress.listen(None, SimpleNamespace(port=port), event_loop=loop)
        task, listener = await grpc_ingress.listen(None, SimpleNamespace(port=port), event_loop=loop)
        async with channel_to(port) as channel:
            assert await healthz(channel) == "success"
            replica.told = (False, "DRAINING")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await healthz(channel)
            assert (caught.value.code(), caught.value.details()) == (grpc.StatusCode.UNAVAILABLE, "DRAINING")
        await listener.stop(1.0)
        await task

    run(test())


def test_in_a_proxy_calls_take_serve_s_own_way_and_in_a_replica_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    class Server:
        def __init__(self) -> None:
            self.ours: list[str] = []
            self.all: list[str] = []

        def add_passthrough_service(self, name: str) -> None:
            self.ours.append(name)

        def add_generic_rpc_handlers(self, handlers: tuple[Any, ...]) -> None:
            self.all += [each.service_name() for each in handlers]

    monkeypatch.setattr(serve_hook, "_replica", [])
    proxy = Server()
    grpc_ingress.add_to_server(None, proxy)
    monkeypatch.setattr(serve_hook, "_replica", [object()])
    stock = Server()
    grpc_ingress.add_to_server(None, stock)
    assert proxy.all == stock.all == stock.ours == ["inference.GRPCInferenceService", "grpc.health.v1.Health"]
    assert proxy.ours == []
