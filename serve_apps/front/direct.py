"""A port of the replica's own: clients reach it without a proxy in between, if the deployment asks for one.

Each replica of a node listens on the same port and the kernel deals new connections out among them (SO_REUSEPORT); a
Kubernetes Service does it between nodes. One hop less costs half of a small request's time (docs/results/
request-path.md). What a proxy did is then for the client and the Service: a connection stays with its replica, so a
client that keeps few of them is balanced less evenly.

A replica that is told to stop goes on answering for a while, and with each answer asks the client to come back on a new
connection, which a replica that stays may take; then it stops to listen, answers what is under way, and ends.

A socket that stops to listen takes with it what the kernel has accepted for it already, and a connection that is closed
takes with it the request that is on its way: those clients would see a reset. So the former are taken in first, and a
connection without a request is given a moment for one. (What is left is a handshake that is half done at that moment:
the kernel hands it on to another replica if net.ipv4.tcp_migrate_req is 1, else that client's connect is refused.)
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import uvicorn

from cluster.errors import ClusterError
from serve_apps.front.protocol import LeanProtocol

_LOOK_S = 0.1
_KEEP_ALIVE_S = 90
_BACKLOG = 2048
_LAST_REQUEST_S = 0.5
"""How long a client may take from its connect to its request, to be heard by a replica that ends."""


class DirectProtocol(LeanProtocol):
    """Connections of the direct port."""

    def shutdown(self) -> None:
        """A request that is on its way is answered: `leaving` makes it the last."""
        self.loop.call_later(_LAST_REQUEST_S, super().shutdown)


class DirectListener:
    """One for a replica. All methods belong to one event loop."""

    def __init__(self, app: Callable[..., Any], *, port: int, host: str = "0.0.0.0") -> None:
        """Raises ClusterError if something that is no replica listens there."""
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        try:
            self._socket.bind((host, port))
        except OSError as error:
            self._socket.close()
            raise ClusterError(
                f"direct_port={port} cannot be listened on ({error.strerror}); another program has it: choose another "
                "direct_port, or leave it out and use Serve's port alone"
            ) from error
        self.port: int = self._socket.getsockname()[1]
        self._server = uvicorn.Server(
            uvicorn.Config(
                app, http=DirectProtocol, lifespan="off", access_log=False, log_level=None, log_config=None,
                timeout_keep_alive=_KEEP_ALIVE_S, backlog=_BACKLOG, proxy_headers=False,
            )
        )  # fmt: skip
        self._serving: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None

    async def start(self, is_leaving: Callable[[], bool] = lambda: False) -> None:
        """Listen; from when `is_leaving` says so, ask clients to go elsewhere."""
        DirectProtocol.leaving = False
        loop = asyncio.get_running_loop()
        self._serving = loop.create_task(self._server.serve(sockets=[self._socket]))
        while not self._server.started:
            if self._serving.done():
                await self._serving  # raises what it ended with
                raise ClusterError(f"direct_port={self.port}: the server ended before it began")
            await asyncio.sleep(0.005)
        self._watching = loop.create_task(self._watch(is_leaving))

    async def _watch(self, is_leaving: Callable[[], bool]) -> None:
        while not is_leaving():
            await asyncio.sleep(_LOOK_S)
        DirectProtocol.leaving = True

    async def stop(self, timeout_s: float) -> None:
        """Take no new connection, answer what is under way, end. A second call does nothing."""
        DirectProtocol.leaving = True
        if self._watching is not None:
            self._watching.cancel()
        if self._serving is not None:
            await self._stop_listening()
            self._server.should_exit = True
            done, _ = await asyncio.wait([self._serving], timeout=timeout_s)
            if not done:
                self._server.force_exit = True
                await asyncio.wait([self._serving], timeout=1.0)
            self._serving = None
        self._socket.close()

    async def _stop_listening(self) -> None:
        """What the kernel has accepted for this socket is still ours."""
        accepted = []
        with suppress(BlockingIOError):
            while True:
                accepted.append(self._socket.accept()[0])
        for server in self._server.servers:  # nothing was awaited since: what comes now comes to another replica
            server.close()
        config, state = self._server.config, self._server.server_state
        for connection in accepted:
            with suppress(OSError):  # its client left
                await asyncio.get_running_loop().connect_accepted_socket(
                    lambda: DirectProtocol(config=config, server_state=state, app_state={}), connection
                )
