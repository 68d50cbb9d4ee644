"""Client and AsyncClient: methods -> calls.py -> course.py -> httpx, and back as values of answers.py."""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from cluster.errors import DeadlineExceeded, InvalidRequest, ProtocolError, ServerUnreachable
from cluster.scheduling import AccuracyWish
from serve_apps.oip.client import calls
from serve_apps.oip.client.answers import (
    InferAnswer,
    ModelConfig,
    ModelMetadata,
    ModelStatistics,
    RepositoryModel,
    ServerMetadata,
)
from serve_apps.oip.client.calls import Call, Reply, Wishes
from serve_apps.oip.client.course import Broken, Course, Send, SharedBudget, Wait, course
from serve_apps.oip.client.retries import USUAL, RetryPolicy
from serve_apps.oip.client.transport import Attempt, async_transport, attempt, transport

T = TypeVar("T")
Arrays = Mapping[str, NDArray[np.generic]]
_KEPT_S = 4.0
"""An idle connection is kept for less than uvicorn keeps one (5 s): the server does not close it under a request."""


class _Common:
    """What both have."""

    def __init__(
        self, url: str, *, timeout_s: float | None = 30.0, retries: RetryPolicy = USUAL, gzip: bool = False,
        max_connections: int = 64, headers: Mapping[str, str] | None = None, verify: ssl.SSLContext | bool = True,
    ) -> None:  # fmt: skip
        """`url` is where /v2 is, such as http://127.0.0.1:8000. `timeout_s` is the deadline of calls that name none of
        their own (None: none). `gzip`: pack requests, and take packed answers; pays where the network is slow and
        tensors are sent as text. `headers` go with every request. Raises InvalidRequest for a url that is none."""
        try:
            self._url = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise InvalidRequest(f"url={url!r} is none ({error}); give one such as http://127.0.0.1:8000") from error
        if self._url.scheme not in ("http", "https") or not self._url.host:
            raise InvalidRequest(f"url={url!r} names no http server; give one such as http://127.0.0.1:8000")
        self._timeout_s, self._gzip, self._max_connections = timeout_s, gzip, max_connections
        self._budget = SharedBudget(retries)
        self._limits = httpx.Limits(
            max_connections=max_connections, max_keepalive_connections=max_connections, keepalive_expiry=_KEPT_S
        )
        # A context reads the system's certificates, which takes longer than a request: not for plain http.
        self._verify = verify if self._url.scheme == "https" else False
        self._headers = dict(headers or {})

    def _course(self, call: Call[T], timeout_s: float | None) -> Course[T]:
        return course(call, self._budget, timeout_s=self._timeout_s if timeout_s is None else timeout_s)

    def _infer(
        self, model: str, inputs: Arrays, outputs: Sequence[str] | None, wishes: Wishes, version: str | None,
        request_id: str | None, binary: bool,
    ) -> Call[InferAnswer]:  # fmt: skip
        return calls.infer(
            model, inputs, outputs=outputs, wishes=wishes, version=version, request_id=request_id, binary=binary,
            gzip=self._gzip,
        )  # fmt: skip

    def _broken(self, error: httpx.HTTPError, send: Send, on_its_way: Attempt) -> Broken:
        """What went wrong, in our words."""
        what = f"{send.message.method} {str(self._url).rstrip('/')}{send.message.path}"
        if isinstance(error, httpx.PoolTimeout):
            return Broken(DeadlineExceeded(
                f"{what}: all {self._max_connections} connections were in use for {send.left_s:g} s; raise "
                "max_connections, or call less at once"
            ))  # fmt: skip
        if isinstance(error, httpx.TimeoutException):
            return Broken(DeadlineExceeded(f"{what}: no answer within the {send.left_s:.3g} s that were left"))
        if isinstance(error, httpx.ConnectError):
            return Broken(ServerUnreachable(f"{what}: nobody took the connection ({error})"), refused=True)
        if isinstance(error, httpx.TransportError):
            told = f"{what}: the connection broke ({error or type(error).__name__})"
            return Broken(ServerUnreachable(told), silent=not on_its_way.heard)
        return Broken(ProtocolError(f"{what}: {error}"))


def _plain(client: httpx.Client | httpx.AsyncClient, headers: Mapping[str, str]) -> None:
    """Say nothing of httpx's own accord: without it an answer is never packed but where it was asked for."""
    client.headers["user-agent"] = "sluice-client"
    for name in ("accept", "accept-encoding"):
        del client.headers[name]
    client.headers.update(headers)


def _reply(response: httpx.Response) -> Reply:
    return Reply(response.status_code, dict(response.headers), response.content)


class Client(_Common):
    """Asks an Open Inference Protocol v2 server; may be used from several threads at once.

        >>> with Client("http://127.0.0.1:8000") as client:
        ...     answer = client.infer("classifier", {"image": pictures}, timeout_s=0.1)
        ...     answer["logits"].argmax(1), answer.variant

    Every method raises the error that the server raised (InvalidRequest, UnknownModel, QuotaExceeded, Overloaded and so
    on), DeadlineExceeded if nothing came in time, ServerUnreachable if nobody is there, ProtocolError for what is no
    answer. 503 is tried again within the deadline and the retry budget; so is a connection that is not taken, or that
    breaks before any of the answer, if the call may be made twice.
    """

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self._http = httpx.Client(base_url=self._url, transport=transport(self._limits, self._verify))
        _plain(self._http, self._headers)

    def infer(
        self, model: str, inputs: Arrays, *, outputs: Sequence[str] | None = None, timeout_s: float | None = None,
        priority: int | None = None, accuracy: AccuracyWish | float | None = None, tenant: str | None = None,
        version: str | None = None, request_id: str | None = None, binary: bool = True,
    ) -> InferAnswer:  # fmt: skip
        """The model's outputs for the inputs by name, all of them or those in `outputs`. `timeout_s` is the deadline of
        the whole call, retries included. `binary=False` sends and asks for tensors as text. What the other wishes mean
        is in the README, "Under load"."""
        wishes = Wishes(priority, accuracy, tenant)
        return self._do(self._infer(model, inputs, outputs, wishes, version, request_id, binary), timeout_s)

    def infer_picture(
        self, model: str, picture: bytes, *, content_type: str | None = None, timeout_s: float | None = None,
        priority: int | None = None, accuracy: AccuracyWish | float | None = None, tenant: str | None = None,
        version: str | None = None,
    ) -> InferAnswer:  # fmt: skip
        """The same for a JPEG or PNG as it lies on disk, which the server decodes."""
        wishes = Wishes(priority, accuracy, tenant)
        call = calls.infer_picture(model, picture, content_type=content_type, wishes=wishes, version=version)
        return self._do(call, timeout_s)

    def is_live(self, *, timeout_s: float | None = None) -> bool:
        """False if nobody answers in time."""
        return self._ask(calls.is_live(), timeout_s)

    def is_ready(self, model: str | None = None, version: str | None = None, *, timeout_s: float | None = None) -> bool:
        """Of the server, or of a model. False if nobody answers in time."""
        return self._ask(calls.is_ready(model, version), timeout_s)

    def server_metadata(self, *, timeout_s: float | None = None) -> ServerMetadata:
        return self._do(calls.server_metadata(), timeout_s)

    def metadata(self, model: str, version: str | None = None, *, timeout_s: float | None = None) -> ModelMetadata:
        return self._do(calls.metadata(model, version), timeout_s)

    def config(self, model: str, version: str | None = None, *, timeout_s: float | None = None) -> ModelConfig:
        return self._do(calls.config(model, version), timeout_s)

    def statistics(
        self, model: str, version: str | None = None, *, timeout_s: float | None = None
    ) -> tuple[ModelStatistics, ...]:
        return self._do(calls.statistics(model, version), timeout_s)

    def repository_index(self, *, ready: bool = False, timeout_s: float | None = None) -> tuple[RepositoryModel, ...]:
        """What the server could serve; with `ready` what it does."""
        return self._do(calls.repository_index(ready=ready), timeout_s)

    def load_model(
        self, model: str, *, parameters: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> None:
        self._do(calls.repository_change(model, "load", parameters), timeout_s)

    def unload_model(
        self, model: str, *, parameters: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> None:
        self._do(calls.repository_change(model, "unload", parameters), timeout_s)

    def close(self) -> None:
        """Its connections; calls after that fail."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _ask(self, call: Call[bool], timeout_s: float | None) -> bool:
        try:
            return self._do(call, timeout_s)
        except (ServerUnreachable, DeadlineExceeded):
            return False

    def _do(self, call: Call[T], timeout_s: float | None) -> T:
        way = self._course(call, timeout_s)
        try:
            step = next(way)
            while True:
                if isinstance(step, Wait):
                    time.sleep(step.seconds)
                    step = way.send(None)
                else:
                    step = way.send(self._send(step))
        except StopIteration as end:
            answer: T = end.value
            return answer

    def _send(self, send: Send) -> Reply | Broken:
        method, path, headers, body = send.message
        with attempt(send.left_s) as on_its_way:
            try:
                request = self._http.build_request(
                    method, path, headers=headers, content=body or None, timeout=httpx.Timeout(send.left_s)
                )
                return _reply(self._http.send(request))
            except httpx.HTTPError as error:
                return self._broken(error, send, on_its_way)


class AsyncClient(_Common):
    """Client for asyncio; made, used and closed on one event loop. Its methods are Client's, to be awaited."""

    def __init__(self, url: str, **settings: Any) -> None:
        super().__init__(url, **settings)
        self._http = httpx.AsyncClient(base_url=self._url, transport=async_transport(self._limits, self._verify))
        _plain(self._http, self._headers)

    async def infer(
        self, model: str, inputs: Arrays, *, outputs: Sequence[str] | None = None, timeout_s: float | None = None,
        priority: int | None = None, accuracy: AccuracyWish | float | None = None, tenant: str | None = None,
        version: str | None = None, request_id: str | None = None, binary: bool = True,
    ) -> InferAnswer:  # fmt: skip
        """See Client.infer."""
        wishes = Wishes(priority, accuracy, tenant)
        return await self._do(self._infer(model, inputs, outputs, wishes, version, request_id, binary), timeout_s)

    async def infer_picture(
        self, model: str, picture: bytes, *, content_type: str | None = None, timeout_s: float | None = None,
        priority: int | None = None, accuracy: AccuracyWish | float | None = None, tenant: str | None = None,
        version: str | None = None,
    ) -> InferAnswer:  # fmt: skip
        """See Client.infer_picture."""
        wishes = Wishes(priority, accuracy, tenant)
        call = calls.infer_picture(model, picture, content_type=content_type, wishes=wishes, version=version)
        return await self._do(call, timeout_s)

    async def is_live(self, *, timeout_s: float | None = None) -> bool:
        """See Client.is_live."""
        return await self._ask(calls.is_live(), timeout_s)

    async def is_ready(
        self, model: str | None = None, version: str | None = None, *, timeout_s: float | None = None
    ) -> bool:
        """See Client.is_ready."""
        return await self._ask(calls.is_ready(model, version), timeout_s)

    async def server_metadata(self, *, timeout_s: float | None = None) -> ServerMetadata:
        return await self._do(calls.server_metadata(), timeout_s)

    async def metadata(
        self, model: str, version: str | None = None, *, timeout_s: float | None = None
    ) -> ModelMetadata:
        return await self._do(calls.metadata(model, version), timeout_s)

    async def config(self, model: str, version: str | None = None, *, timeout_s: float | None = None) -> ModelConfig:
        return await self._do(calls.config(model, version), timeout_s)

    async def statistics(
        self, model: str, version: str | None = None, *, timeout_s: float | None = None
    ) -> tuple[ModelStatistics, ...]:
        return await self._do(calls.statistics(model, version), timeout_s)

    async def repository_index(
        self, *, ready: bool = False, timeout_s: float | None = None
    ) -> tuple[RepositoryModel, ...]:
        """See Client.repository_index."""
        return await self._do(calls.repository_index(ready=ready), timeout_s)

    async def load_model(
        self, model: str, *, parameters: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> None:
        await self._do(calls.repository_change(model, "load", parameters), timeout_s)

    async def unload_model(
        self, model: str, *, parameters: Mapping[str, Any] | None = None, timeout_s: float | None = None
    ) -> None:
        await self._do(calls.repository_change(model, "unload", parameters), timeout_s)

    async def aclose(self) -> None:
        """See Client.close."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def _ask(self, call: Call[bool], timeout_s: float | None) -> bool:
        try:
            return await self._do(call, timeout_s)
        except (ServerUnreachable, DeadlineExceeded):
            return False

    async def _do(self, call: Call[T], timeout_s: float | None) -> T:
        way = self._course(call, timeout_s)
        try:
            step = next(way)
            while True:
                if isinstance(step, Wait):
                    await asyncio.sleep(step.seconds)
                    step = way.send(None)
                else:
                    step = way.send(await self._send(step))
        except StopIteration as end:
            answer: T = end.value
            return answer

    async def _send(self, send: Send) -> Reply | Broken:
        method, path, headers, body = send.message
        with attempt(send.left_s) as on_its_way:
            try:
                request = self._http.build_request(
                    method, path, headers=headers, content=body or None, timeout=httpx.Timeout(send.left_s)
                )
                return _reply(await self._http.send(request))
            except httpx.HTTPError as error:
                return self._broken(error, send, on_its_way)
