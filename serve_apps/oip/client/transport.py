"""httpx's transports, held to one deadline for a whole attempt, and able to tell whether any answer was heard.

httpx bounds each read by itself, so a server that sends a byte a second would hold a call for as long as it likes. Here
each read and write on the socket gets what is left of the attempt, and no more. (Looking up a host's name is the
system's, and not bounded where it blocks.)

The hook is httpcore's `network_backend`, which is public; httpx hands it on to nobody, so it is put into the pool that
its transport has made.
"""

from __future__ import annotations

import queue
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import httpcore
import httpx

SocketOption = tuple[int, int, int] | tuple[int, int, bytes | bytearray] | tuple[int, int, None, int]


class Attempt:
    """What is known of a message on its way."""

    def __init__(self, left_s: float | None) -> None:
        self._end = None if left_s is None else time.monotonic() + left_s
        self.heard = False
        """Has any byte of an answer come?"""

    def bound(self, timeout: float | None, late: type[Exception]) -> float | None:
        """`timeout`, or what is left if that is less. Raises `late` if nothing is."""
        if self._end is None:
            return timeout
        left = self._end - time.monotonic()
        if left <= 0:
            raise late("the deadline has passed")
        return left if timeout is None else min(timeout, left)


_attempt: ContextVar[Attempt | None] = ContextVar("attempt", default=None)


@contextmanager
def attempt(left_s: float | None) -> Iterator[Attempt]:
    """What this thread or task sends and hears meanwhile belongs to the attempt."""
    made = Attempt(left_s)
    token = _attempt.set(made)
    try:
        yield made
    finally:
        _attempt.reset(token)


def _bound(timeout: float | None, late: type[Exception]) -> float | None:
    now = _attempt.get()
    return timeout if now is None else now.bound(timeout, late)


def _hear(data: bytes) -> bytes:
    now = _attempt.get()
    if data and now is not None:
        now.heard = True
    return data


class _Stream(httpcore.NetworkStream):
    def __init__(self, inner: httpcore.NetworkStream) -> None:
        self._inner = inner

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return _hear(self._inner.read(max_bytes, _bound(timeout, httpcore.ReadTimeout)))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._inner.write(buffer, _bound(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        bound = _bound(timeout, httpcore.ConnectTimeout)
        return _Stream(self._inner.start_tls(ssl_context, server_hostname, bound))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _Backend(httpcore.SyncBackend):
    def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.NetworkStream:  # fmt: skip
        bound = _bound(timeout, httpcore.ConnectTimeout)
        return _Stream(super().connect_tcp(host, port, bound, local_address, socket_options))


class _AsyncStream(httpcore.AsyncNetworkStream):
    def __init__(self, inner: httpcore.AsyncNetworkStream) -> None:
        self._inner = inner

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return _hear(await self._inner.read(max_bytes, _bound(timeout, httpcore.ReadTimeout)))

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        await self._inner.write(buffer, _bound(timeout, httpcore.WriteTimeout))

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        bound = _bound(timeout, httpcore.ConnectTimeout)
        return _AsyncStream(await self._inner.start_tls(ssl_context, server_hostname, bound))

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)


class _AsyncBackend(httpcore.AnyIOBackend):
    async def connect_tcp(
        self, host: str, port: int, timeout: float | None = None, local_address: str | None = None,
        socket_options: Iterable[SocketOption] | None = None,
    ) -> httpcore.AsyncNetworkStream:  # fmt: skip
        bound = _bound(timeout, httpcore.ConnectTimeout)
        return _AsyncStream(await super().connect_tcp(host, port, bound, local_address, socket_options))


class _Body(httpx.SyncByteStream):
    """An answer's, and what to do when it is read."""

    def __init__(self, inner: httpx.SyncByteStream, done: Callable[[], None]) -> None:
        self._inner = inner
        self._done: Callable[[], None] | None = done

    def __iter__(self) -> Iterator[bytes]:
        return iter(self._inner)

    def close(self) -> None:
        try:
            self._inner.close()
        finally:
            done, self._done = self._done, None
            if done is not None:  # a second time it is somebody else's connection
                done()


class Lanes(httpx.BaseTransport):
    """As many connections as threads want at once, up to a bound; each is one thread's until its answer is read.

    Not one pool for all, as httpx has it: httpcore 1.0.9 looks whether an idle connection is readable, as one that the
    server closed is. One that another thread has just begun to use is too, once its answer comes, and is closed under
    that thread's hands (a test with sixty calls at once found it).
    """

    def __init__(self, limits: httpx.Limits, verify: ssl.SSLContext | bool) -> None:
        self._one = httpx.Limits(
            max_connections=1, max_keepalive_connections=1, keepalive_expiry=limits.keepalive_expiry
        )
        self._verify = verify
        self._lock = threading.Lock()
        self._made: list[httpx.HTTPTransport] = []
        self._most = limits.max_connections or 1
        self._free: queue.LifoQueue[httpx.HTTPTransport] = queue.LifoQueue()

    @property
    def connections(self) -> int:
        """That were opened and are kept or in use."""
        return len(self._made)

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Raises PoolTimeout if all are in use for as long as the request may wait."""
        lane = self._take(request.extensions.get("timeout", {}).get("pool"))
        try:
            response = lane.handle_request(request)
        except BaseException:
            self._free.put(lane)
            raise
        assert isinstance(response.stream, httpx.SyncByteStream)
        response.stream = _Body(response.stream, lambda: self._free.put(lane))
        return response

    def _take(self, timeout_s: float | None) -> httpx.HTTPTransport:
        try:
            return self._free.get_nowait()
        except queue.Empty:
            pass
        with self._lock:
            if len(self._made) < self._most:
                lane = httpx.HTTPTransport(limits=self._one, verify=self._verify)
                lane._pool._network_backend = _Backend()
                self._made.append(lane)
                return lane
        try:
            return self._free.get(timeout=timeout_s)
        except queue.Empty:
            raise httpx.PoolTimeout(f"all {self._most} connections are in use") from None

    def close(self) -> None:
        """End those that are open."""
        for lane in self._made:
            lane.close()


def transport(limits: httpx.Limits, verify: ssl.SSLContext | bool) -> Lanes:
    return Lanes(limits, verify)


def async_transport(limits: httpx.Limits, verify: ssl.SSLContext | bool) -> httpx.AsyncHTTPTransport:
    made = httpx.AsyncHTTPTransport(limits=limits, verify=verify)
    made._pool._network_backend = _AsyncBackend()
    return made
