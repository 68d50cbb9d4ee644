"""Serve's gRPC port in each replica -> GrpcService, past Serve's wrapper around each request.

Two ways, with the same answers. `listen` takes the place of what Serve starts behind its HAProxy, and has a
GrpcProtocol for each connection. Where it could not (another Ray), Serve starts a server of gRPC's own, and
`add_to_server` gives it the same methods; Serve calls that also in the proxy that stands in where no replica is up, and
from there calls take Serve's own way to a replica (front/grpc_methods.py).

Health checks are answered as Serve answers them, so HAProxy takes a replica that drains out of its list, and Serve is
told of each call, so that it waits for those under way before it stops a replica (front/serve_hook.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

import grpc

from serve_apps.front import serve_hook
from serve_apps.front.endpoint import Ledger
from serve_apps.front.grpc_listener import GrpcListener
from serve_apps.front.grpc_protocol import RpcEndpoint
from serve_apps.oip.grpc_service import HEALTH, SERVICE, GrpcService, Pending, Reply
from serve_apps.oip.grpc_status import FINE, RETRY_AFTER, UNAVAILABLE, Status

_CODES = {code.value[0]: code for code in grpc.StatusCode}
_WISH = "sluice-"
_HEALTHZ = "/ray.serve.RayServeAPIService/Healthz"
Handler = Callable[[bytes, Any], Awaitable[bytes]]


def add_to_server(servicer: object, server: Any) -> None:
    """What Serve calls, in a replica and in its proxy."""
    for handler in handlers(GrpcService(serve_hook.servable), serve_hook.grpc_ledger()):
        if serve_hook.is_replica():
            server.add_passthrough_service(handler.service_name())  # else Serve puts its own way in place of ours
        server.add_generic_rpc_handlers((handler,))


async def listen(
    service_handler_factory: object, grpc_options: Any, *, event_loop: asyncio.AbstractEventLoop,
    enable_so_reuseport: bool = False,
) -> tuple[asyncio.Task[None], GrpcListener]:  # fmt: skip
    """In place of Serve's start_grpc_server, in a replica."""
    endpoint = _WithHealthz(GrpcService(serve_hook.servable), serve_hook.dataplane_health)
    listener = GrpcListener(endpoint, ledger=serve_hook.grpc_ledger())
    try:
        await listener.start(port=grpc_options.port)
    except OSError as error:
        # Serve asks for another port then.
        raise RuntimeError(f"gRPC cannot listen on port {grpc_options.port}: {error}") from error
    return event_loop.create_task(listener.wait_until_stopped()), listener


class _WithHealthz:
    """Answers Serve's health checks, and leaves the rest to another."""

    def __init__(self, behind: RpcEndpoint, health: Callable[[], Awaitable[tuple[bool, str]]]) -> None:
        self._behind = behind
        self._health = health
        self._checks: set[asyncio.Task[None]] = set()

    def begin(
        self, path: str, body: bytes, reply: Reply, *, timeout_s: float | None = None,
        headers: Mapping[bytes, bytes] | None = None,
    ) -> Pending | None:  # fmt: skip
        if path != _HEALTHZ:
            return self._behind.begin(path, body, reply, timeout_s=timeout_s, headers=headers)
        check = asyncio.get_running_loop().create_task(self._check(reply))
        self._checks.add(check)
        check.add_done_callback(self._checks.discard)
        return _Checking(check)

    async def _check(self, reply: Reply) -> None:
        from ray.serve.generated.serve_pb2 import HealthzResponse

        healthy, message = await self._health()
        if healthy:
            reply(FINE, HealthzResponse(message=message).SerializeToString())
        else:
            reply(Status(UNAVAILABLE, message), b"")


class _Checking:
    """A check on its way."""

    def __init__(self, check: asyncio.Task[None]) -> None:
        self._check = check

    def cancel(self) -> None:
        self._check.cancel()


def handlers(service: GrpcService, ledger: Ledger | None = None) -> list[Any]:
    """For a server of grpc.aio. Messages come and go as bytes: who reads them says what is wrong with them."""
    tables: dict[str, dict[str, Any]] = {SERVICE: {}, HEALTH: {}}
    for path in service.paths:
        _, name, method = path.split("/")
        tables[name][method] = grpc.unary_unary_rpc_method_handler(_handler(service, path, ledger))
    return [grpc.method_handlers_generic_handler(name, table) for name, table in tables.items()]


def _handler(service: GrpcService, path: str, ledger: Ledger | None) -> Handler:
    async def handle(body: bytes, context: Any) -> bytes:
        began = time.monotonic()
        if ledger is not None:
            ledger.began()
        http_status = 499
        try:
            status, answer = await _answer(service, path, body, context)
            http_status = status.counts_as
        finally:
            if ledger is not None:
                ledger.ended(http_status, time.monotonic() - began)
        if status.code:
            await context.abort(code_of(status), status.details, metadata_of(status))
        return answer

    return handle


async def _answer(service: GrpcService, path: str, body: bytes, context: Any) -> tuple[Status, bytes]:
    return await answered(
        service, path, body, context.invocation_metadata() or (), timeout_s=context.time_remaining()
    )


async def answered(
    service: GrpcService, path: str, body: bytes, metadata: Iterable[tuple[str, str | bytes]], *,
    timeout_s: float | None = None,
) -> tuple[Status, bytes]:  # fmt: skip
    """A call that nobody waits for any more is cancelled, and so in the batcher."""
    answer: asyncio.Future[tuple[Status, bytes]] = asyncio.get_running_loop().create_future()
    headers = {
        key.encode(): value.encode() if isinstance(value, str) else value
        for key, value in metadata
        if key.startswith(_WISH)
    }

    def reply(status: Status, message: bytes) -> None:
        if not answer.done():  # a change of the repository goes on when its client has left
            answer.set_result((status, message))

    pending = service.begin(path, body, reply, timeout_s=timeout_s, headers=headers)
    try:
        return await answer
    except asyncio.CancelledError:
        if pending is not None and answer.cancelled():
            pending.cancel()
        raise


def code_of(status: Status) -> grpc.StatusCode:
    return _CODES[status.code]


def metadata_of(status: Status) -> tuple[tuple[str, str], ...]:
    """What goes with it in the trailing metadata."""
    return () if status.retry_after_s is None else ((RETRY_AFTER, str(status.retry_after_s)),)
