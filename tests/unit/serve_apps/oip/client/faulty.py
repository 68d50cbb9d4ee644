"""A server that misbehaves by plan: each connection's requests are answered by the next steps of it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

RESET = object()
"""Close without a word, as a server does that dies."""


@dataclass
class Drip:
    """So many bytes, one each `every_s`."""

    data: bytes
    every_s: float


@dataclass
class Faulty:
    """What it does next, and what it got."""

    plan: list[object]
    port: int = 0
    connections: int = 0
    requests: list[bytes] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def answer(status: int, body: bytes = b"{}", *headers: bytes) -> bytes:
    lines = [b"HTTP/1.1 %d X" % status, b"content-length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


def _request(connection: socket.socket) -> bytes:
    """The next one, whole; empty if the client has gone."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(65536)
        if not more:
            return b""
        data += more
    head, _, body = data.partition(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    while len(body) < length:
        body += connection.recv(65536)
    return head + b"\r\n\r\n" + body


def _serve(connection: socket.socket, server: Faulty) -> None:
    with connection:
        while data := _request(connection):
            server.requests.append(data)
            step = server.plan.pop(0)
            if step is RESET:
                return
            if isinstance(step, Drip):
                for byte in step.data:
                    if server.stop.wait(step.every_s):
                        return
                    connection.sendall(bytes([byte]))
            elif isinstance(step, float):
                server.stop.wait(step)
                return
            elif isinstance(step, tuple):  # part of an answer, and the end
                connection.sendall(step[0])
                return
            else:
                assert isinstance(step, bytes)
                connection.sendall(step)


@contextmanager
def faulty(*plan: object) -> Iterator[Faulty]:
    """bytes: an answer; (bytes,): a part of one, then the end; RESET: the end; seconds: silence; Drip: slowly."""
    server = Faulty(list(plan))
    listener = socket.create_server(("127.0.0.1", 0))
    server.port = listener.getsockname()[1]
    threads: list[threading.Thread] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            server.connections += 1
            connection.settimeout(30)

            def serve(connection: socket.socket = connection) -> None:
                try:
                    _serve(connection, server)
                except OSError:
                    return  # the client has gone

            threads.append(threading.Thread(target=serve, daemon=True))
            threads[-1].start()

    acceptor = threading.Thread(target=accept, daemon=True)
    acceptor.start()
    try:
        yield server
    finally:
        server.stop.set()
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        acceptor.join(5)
        for thread in threads:
            thread.join(5)
