"""A server that misbehaves by path, written on asyncio streams: nothing here is shared with the client under test."""

from __future__ import annotations

import asyncio
import sys

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"


async def answer(path: str, writer: asyncio.StreamWriter) -> bool:
    """Write the answer; False ends the connection."""
    if path == "/ok":
        writer.write(OK)
    elif path == "/503":
        writer.write(b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Length: 4\r\n\r\nfull")
    elif path == "/cut":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nhel")
        await writer.drain()
        return False
    elif path == "/slow":
        await asyncio.sleep(0.1)
        writer.write(OK)
    elif path == "/hang":
        await asyncio.sleep(60)
    elif path == "/pieces":  # head and body split at awkward places
        for piece in (OK[:9], OK[9:30], OK[30:-2], OK[-2:]):
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(0.002)
    elif path == "/chunked":
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n")
        await writer.drain()
        await asyncio.sleep(0.002)
        writer.write(b"2;ext=1\r\nlo\r\n0\r\nTrailer: x\r\n\r\n")
    elif path == "/close":
        writer.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\nhello")
        await writer.drain()
        return False
    elif path == "/until-close":
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await writer.drain()
        return False
    elif path == "/garbage":
        writer.write(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")
    else:
        writer.write(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
    await writer.drain()
    return True


async def session(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    await reader.readexactly(int(line.split(b":")[1]))
            if not await answer(head.split(b" ")[1].decode(), writer):
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass
    finally:
        writer.close()


async def main() -> None:
    server = await asyncio.start_server(session, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
