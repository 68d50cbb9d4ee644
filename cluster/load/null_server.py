"""The fastest server we can write, in a process of its own: what a client measures against it is the client.

It answers every request with the same 200 at once and understands Content-Length bodies, nothing else.
"""

from __future__ import annotations

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import cast

from cluster.errors import SluiceError

_BODY = b'{"outputs":[{"data":[7]}]}'
_ANSWER = (
    b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: "
    + str(len(_BODY)).encode()
    + b"\r\n\r\n"
    + _BODY
)
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)


@lru_cache(maxsize=256)
def _body_length(head: bytes) -> int:
    match = _LENGTH.search(head)
    return int(match[1]) if match else 0


class _Session(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        data = self._buffer + data if self._buffer else data
        while (end := data.find(b"\r\n\r\n")) >= 0:
            stop = end + 4 + _body_length(data[:end])
            if len(data) < stop:
                break
            self._transport.write(_ANSWER)
            data = data[stop:]
        self._buffer = data


async def _serve() -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(_Session, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    closed = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), closed.set)  # stdin closes when whoever started us is gone
    await closed.wait()


@contextmanager
def null_server(*, cpu: int | None = None) -> Iterator[tuple[str, int]]:
    """Run the null server, pinned to `cpu`; yields (host, port) and stops it at the end."""
    start = "from cluster.load.null_server import main; main()"
    command = [sys.executable, "-c", start, *([] if cpu is None else [str(cpu)])]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            raise SluiceError(f"the null server did not start (exit status {process.wait()}); its error is above.")
        yield "127.0.0.1", int(line)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


def main() -> None:
    import uvloop

    if len(sys.argv) > 1 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {int(sys.argv[1])})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve())
