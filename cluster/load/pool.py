"""Request index -> a free connection, or the client's queue -> outcome(index, outcome, response).

At most `size` connections, opened ahead by `warm_up` and again on demand. A request that finds none free waits in
arrival order. Idle connections are used in turn, so that servers which balance by connection see an even load.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from cluster.load.http1 import CONNECT_FAILED, RESET, TIMEOUT, UNSENT, Connection

OutcomeCallback = Callable[[int, int, bytes], None]
SentCallback = Callable[[int], None]


class Pool:
    """Requests go out as `requests[payload_of(index)]`; `on_sent` and `on_outcome` are called with the index."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        host: str,
        port: int,
        *,
        size: int,
        connect_timeout_s: float,
        payload: Callable[[int], bytes],
        on_sent: SentCallback,
        on_outcome: OutcomeCallback,
    ) -> None:
        self._loop, self._host, self._port = loop, host, port
        self._size, self._connect_timeout_s = size, connect_timeout_s
        self._payload, self._on_sent, self._on_outcome = payload, on_sent, on_outcome
        self._connecting: set[asyncio.Task[None]] = set()
        self._closed = False
        self.connections: set[Connection] = set()
        self.idle: deque[Connection] = deque()
        self.queue: deque[int] = deque()

    async def warm_up(self) -> None:
        """Open every connection; failures stay silent here and show as outcomes of the requests."""
        while len(self.connections) + len(self._connecting) < self._size:
            self._connect()
        await asyncio.gather(*self._connecting)

    def submit(self, index: int) -> None:
        """Send now if a connection is free, else queue."""
        while self.idle:
            connection = self.idle.popleft()
            if connection.open:
                connection.send(index, self._payload(index))
                self._on_sent(index)
                return
        self.queue.append(index)
        self._connect_for_queue()

    def expire(self, deadline_passed: Callable[[int], bool]) -> None:
        """Give up on requests past their deadline; a connection that still owes an answer is dropped."""
        while self.queue and deadline_passed(self.queue[0]):
            self._on_outcome(self.queue.popleft(), TIMEOUT, b"")
        late = [c for c in self.connections if c.index >= 0 and deadline_passed(c.index)]
        for connection in late:
            index = connection.index
            connection.abort()
            self.connections.discard(connection)
            self._on_outcome(index, TIMEOUT, b"")
        if late:
            self._connect_for_queue()

    def drop_queue(self) -> None:
        """The run is aborted: everything still waiting is recorded as unsent."""
        while self.queue:
            self._on_outcome(self.queue.popleft(), UNSENT, b"")

    def close(self) -> None:
        self._closed = True
        for task in self._connecting:
            task.cancel()
        for connection in self.connections:
            connection.abort()
        self.connections.clear()
        self.idle.clear()

    # Connections report here (http1.Owner).

    def answered(self, connection: Connection, index: int, outcome: int, response: bytes) -> None:
        if not connection.open:
            self.connections.discard(connection)
        self._on_outcome(index, outcome, response)
        if connection.open:
            self._serve(connection)
        else:
            self._connect_for_queue()

    def lost(self, connection: Connection) -> None:
        self.connections.discard(connection)
        # Servers close idle connections after some seconds; replace those, but never a connection that was closed
        # before it did any work: a server that does so would keep us reconnecting for ever.
        if connection.answers and not self._closed and len(self.connections) + len(self._connecting) < self._size:
            self._connect()

    def _serve(self, connection: Connection) -> None:
        if self.queue:
            index = self.queue.popleft()
            connection.send(index, self._payload(index))
            self._on_sent(index)
        else:
            self.idle.append(connection)

    def _connect_for_queue(self) -> None:
        while len(self._connecting) < len(self.queue) and len(self.connections) + len(self._connecting) < self._size:
            self._connect()

    def _connect(self) -> None:
        task = self._loop.create_task(self._open())
        self._connecting.add(task)

    async def _open(self) -> None:
        connection = Connection(self)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                await self._loop.create_connection(lambda: connection, self._host, self._port)
        except (OSError, TimeoutError):
            self._forget_current()
            if self.queue:
                self._on_outcome(self.queue.popleft(), CONNECT_FAILED, b"")
            self._connect_for_queue()
            return
        self._forget_current()
        if self._closed:
            connection.abort()
        elif connection.open:
            self.connections.add(connection)
            self._serve(connection)
        else:  # accepted and closed at once
            if self.queue:
                self._on_outcome(self.queue.popleft(), RESET, b"")
            self._connect_for_queue()

    def _forget_current(self) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connecting.discard(task)
