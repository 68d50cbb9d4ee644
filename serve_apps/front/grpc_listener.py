"""A port -> a GrpcProtocol for each connection; it ends without losing a call.

To stop: the port is closed, each client is told to take its next calls elsewhere (GOAWAY), and what is on its way is
answered. A call that comes behind that word is not begun, and gRPC's clients know so: they send it again by themselves.
"""

from __future__ import annotations

import asyncio
import socket
from typing import Any

from serve_apps.front.endpoint import Ledger
from serve_apps.front.grpc_protocol import GrpcProtocol, RpcEndpoint

_BACKLOG = 2048
_LOOK_S = 0.02


class GrpcListener:
    """All methods belong to one event loop."""

    def __init__(self, endpoint: RpcEndpoint, *, ledger: Ledger | None = None) -> None:
        self._endpoint = endpoint
        self._ledger = ledger
        self._connections: set[Any] = set()
        self._server: asyncio.Server | None = None
        self._stopped = asyncio.Event()

    @property
    def connections(self) -> int:
        """That are open."""
        return len(self._connections)

    async def start(
        self, *, port: int = 0, host: str | None = None, sock: socket.socket | None = None
    ) -> int:
        """Listen, on every address if no host is named; the port. Raises OSError."""
        loop = asyncio.get_running_loop()
        if sock is not None:
            self._server = await loop.create_server(self._protocol, sock=sock, backlog=_BACKLOG)
        else:
            self._server = await loop.create_server(self._protocol, host, port, backlog=_BACKLOG)
        taken: int = self._server.sockets[0].getsockname()[1]
        return taken

    def _protocol(self) -> GrpcProtocol:
        return GrpcProtocol(self._endpoint, ledger=self._ledger, connections=self._connections)

    async def wait_until_stopped(self) -> None:
        await self._stopped.wait()

    async def stop(self, grace: float | None) -> None:
        """Take nothing new, answer what is on its way within `grace` seconds, end. A second call does nothing."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        for connection in self._connections:
            connection.leave()
        end = asyncio.get_running_loop().time() + (grace or 0.0)
        while self._connections and asyncio.get_running_loop().time() < end:
            await asyncio.sleep(_LOOK_S)
        for connection in list(self._connections):
            connection.abort()
        self._stopped.set()
