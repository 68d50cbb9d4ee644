"""Open Inference Protocol v2 REST as a bare ASGI application: path -> answer.

No framework: the request path is a dict look-up, one decode, one await. Errors are `{"error": ...}` with the status
that the error class carries.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol

import numpy as np
import orjson
from numpy.typing import NDArray

from cluster.errors import InvalidRequest, PayloadTooLarge, SluiceError, UnknownModel
from cluster.tensors import check_inputs
from cluster.variants import Variant
from serve_apps.oip.codec import HEADER_LENGTH, decode, encode_response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Arrays = dict[str, NDArray[np.generic]]

MAX_BODY_BYTES = 16 << 20
_log = logging.getLogger("ray.serve")


class ModelHost(Protocol):
    """What the routes need of a deployment."""

    model_name: str

    @property
    def variant(self) -> Variant: ...

    def is_ready(self) -> bool: ...

    def submit(self, inputs: Arrays, *, timeout_s: float | None, priority: int) -> asyncio.Future[Arrays]: ...


class ClientGone(Exception):
    """The client left before its request was whole; there is nobody to answer."""


class OipApp:
    """The ASGI application. `host` is looked up at the first request: Serve makes the app before the replica is whole."""

    def __init__(self, host: Callable[[], ModelHost], *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._host = host
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        if scope["type"] != "http":
            return
        try:
            status, body, headers = await self._answer(scope, receive)
        except ClientGone:
            return
        except SluiceError as error:
            status, body, headers = _error(error)
        except asyncio.CancelledError:
            raise
        except Exception:
            _log.exception("request %s %s failed", scope["method"], scope["path"])
            status, body, headers = _error(SluiceError("internal error; the replica's log has the details"))
        raw = [(b"content-length", str(len(body)).encode())]
        raw += [(name.encode(), value.encode()) for name, value in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": raw})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, bytes, dict[str, str]]:
        host = self._host()
        parts = scope["path"].strip("/").split("/")
        method = scope["method"]
        if parts[0] != "v2":
            raise UnknownModel(f"{scope['path'][:200]!r} is not here; the protocol starts at /v2")
        match parts[1:]:
            case ["models", name, *rest]:
                return await self._model(host, name, rest, method, scope, receive)
            case []:
                return _allow(method, "GET") or _ok(
                    {"name": "sluice", "version": "0.1.0", "extensions": ["binary_tensor_data"]}
                )
            case ["health", "live"]:
                return _allow(method, "GET") or _ok({"live": True})
            case ["health", "ready"]:
                return _allow(method, "GET") or _ok({"ready": host.is_ready()}, 200 if host.is_ready() else 503)
        raise UnknownModel(f"{scope['path'][:200]!r} is not here; see /v2")

    async def _model(
        self, host: ModelHost, name: str, rest: list[str], method: str, scope: Scope, receive: Receive
    ) -> tuple[int, bytes, dict[str, str]]:
        variant = host.variant
        if name != host.model_name:
            raise UnknownModel(f"model {name[:100]!r} is unknown; this deployment serves {host.model_name!r}")
        if rest[:1] == ["versions"] and len(rest) >= 2:
            if rest[1] != variant.id:
                raise UnknownModel(f"version {rest[1][:100]!r} of {name!r} is unknown; served: {variant.id}")
            rest = rest[2:]
        match rest:
            case []:
                return _allow(method, "GET") or _ok(_metadata(name, variant))
            case ["ready"]:
                ready = host.is_ready()
                return _allow(method, "GET") or _ok({"name": name, "ready": ready}, 200 if ready else 503)
            case ["infer"]:
                return _allow(method, "POST") or await self._infer(host, variant, scope, receive)
        raise UnknownModel(f"{scope['path'][:200]!r} is not here; a model has /ready and /infer")

    async def _infer(
        self, host: ModelHost, variant: Variant, scope: Scope, receive: Receive
    ) -> tuple[int, bytes, dict[str, str]]:
        headers: dict[str, str] = {}
        for key, value in scope["headers"]:
            if key in (b"content-length", HEADER_LENGTH.encode()):
                headers[key.decode()] = value.decode("latin-1")
        body = await self._body(headers.get("content-length", ""), receive)
        request = decode(body, headers, variant.outputs)
        check_inputs(variant.inputs, request.inputs)
        rows = {array.shape[0] for array in request.inputs.values()}
        if len(rows) != 1:
            raise InvalidRequest(f"the inputs have batch sizes {sorted(rows)}; they must be the same")
        # A client that leaves is noticed by Serve, which cancels this task; awaiting the future passes that on, and
        # the batcher drops the request before it is executed.
        results = await host.submit(request.inputs, timeout_s=request.timeout_s, priority=request.priority)
        return (200, *encode_response(host.model_name, variant.id, request, results))

    async def _body(self, length: str, receive: Receive) -> bytes:
        if length.isdigit() and int(length) > self._max_body_bytes:
            raise PayloadTooLarge(f"the body has {length} bytes; at most {self._max_body_bytes} are taken")
        chunks: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGone
            chunk = message.get("body", b"")
            size += len(chunk)
            if size > self._max_body_bytes:
                raise PayloadTooLarge(f"the body has more than {self._max_body_bytes} bytes, the most that is taken")
            if not message.get("more_body"):
                return b"".join([*chunks, chunk]) if chunks else chunk
            chunks.append(chunk)


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def _metadata(name: str, variant: Variant) -> dict[str, Any]:
    return {
        "name": name,
        "versions": [variant.id],
        "platform": "onnx" if variant.format == "onnx" else "pytorch",
        "inputs": [spec.model_dump(mode="json") for spec in variant.inputs],
        "outputs": [spec.model_dump(mode="json") for spec in variant.outputs],
    }


def _ok(value: dict[str, Any], status: int = 200) -> tuple[int, bytes, dict[str, str]]:
    return status, orjson.dumps(value), {"content-type": "application/json"}


def _allow(method: str, allowed: str) -> tuple[int, bytes, dict[str, str]] | None:
    if method == allowed:
        return None
    body = orjson.dumps({"error": f"{method} is not allowed here; use {allowed}"})
    return 405, body, {"content-type": "application/json", "allow": allowed}


def _error(error: SluiceError) -> tuple[int, bytes, dict[str, str]]:
    headers = {"content-type": "application/json"}
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers["retry-after"] = f"{retry_after_s:.0f}"
    return error.http_status, orjson.dumps({"error": str(error)}), headers
