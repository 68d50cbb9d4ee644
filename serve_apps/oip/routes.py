"""Open Inference Protocol v2 REST as a bare ASGI application: path -> answer.

No framework: the request path is a set look-up, one decode, one await. Errors are `{"error": ...}` with the status
that the error class carries.

A client that leaves is Serve's to notice: it watches the connection and cancels the task that runs this application
(`_direct_ingress_asgi` in Serve's replica). The cancellation goes on to the awaited future, and the batcher drops the
request. A second watcher here would cost each request a task and find nothing. (A client may ask Serve not to watch,
with `x-request-disconnect-disabled: ?1`; what it asked is then executed whether it waits or not.)
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Protocol
from urllib.parse import unquote

import numpy as np
import orjson
from numpy.typing import NDArray

from cluster.errors import InvalidRequest, PayloadTooLarge, SluiceError, UnknownModel
from cluster.tensors import check_inputs
from cluster.variants import TensorSpec, Variant
from serve_apps.oip.codec import HEADER_LENGTH, check_json_size, decode, encode_response

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Arrays = dict[str, NDArray[np.generic]]
Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]

MAX_BODY_BYTES = 16 << 20
SERVER = {
    "name": "sluice",
    "version": "0.1.0",
    # schedule_policy: the parameters `priority` and `timeout`.
    "extensions": ["binary_tensor_data", "schedule_policy", "model_configuration"],
}
PLATFORMS = {"onnx": "onnx_onnxv1", "torch_export": "pytorch_export"}
_JSON = (b"content-type", b"application/json")
_BINARY = (b"content-type", b"application/octet-stream")
_HEADER_LENGTH = HEADER_LENGTH.encode()
_log = logging.getLogger("ray.serve")


class Result(Protocol):
    """What comes of a request."""

    @property
    def outputs(self) -> Arrays: ...


class ModelHost(Protocol):
    """What the routes need of a deployment."""

    model_name: str

    @property
    def variant(self) -> Variant: ...

    @property
    def config(self) -> dict[str, Any]: ...

    def is_ready(self) -> bool: ...

    def submit(self, inputs: Arrays, *, timeout_s: float | None, priority: int) -> asyncio.Future[Result]: ...


class ClientGone(Exception):
    """The client left before its request was whole; there is nobody to answer."""


class _Served:
    """What each request needs of the variant, read once: the id of a Variant is a hash made anew at each look."""

    def __init__(self, model_name: str, variant: Variant) -> None:
        self.variant = variant
        self.version = variant.id
        self.inputs = variant.inputs
        self.outputs = variant.outputs
        model = f"/v2/models/{model_name}"
        self.infer_paths = {f"{model}/infer".encode(), f"{model}/versions/{self.version}/infer".encode()}


class OipApp:
    """The ASGI application. `host` is looked up at the first request: Serve makes the app before the replica."""

    def __init__(self, host: Callable[[], ModelHost], *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._host = host
        self._max_body_bytes = max_body_bytes
        self._served: _Served | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _not_http(scope["type"], receive, send)
            return
        try:
            answer = self._look_up(scope)
            if answer is None:
                answer = await self._infer(scope, receive)
        except ClientGone:
            return
        except SluiceError as error:
            answer = _error(error)
        except Exception:
            _log.exception("request %s %s failed", scope["method"], scope["path"])
            answer = _error(SluiceError("internal error; the replica's log has the details"))
        status, headers, body = answer
        headers.append((b"content-length", b"%d" % len(body)))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _serving(self, host: ModelHost) -> _Served:
        """What answers now; `user_config` may switch the variant at any time."""
        served, variant = self._served, host.variant
        if served is None or served.variant is not variant:
            served = self._served = _Served(host.model_name, variant)
        return served

    def _look_up(self, scope: Scope) -> Answer | None:
        """The answer to everything but an inference, which is None. Raises UnknownModel for what is not here."""
        method = scope["method"]
        if method == "POST" and self._served and scope.get("raw_path") in self._serving(self._host()).infer_paths:
            return None
        match _segments(scope):
            case ["v2"]:
                return _get(method, SERVER)
            case ["v2", "health", "live"]:
                return _get(method, {"live": True})
            case ["v2", "health", "ready"]:
                # The protocol's text and its examples differ in the field's name; both are there.
                ready = self._host().is_ready()
                return _get(method, {"live": True, "ready": ready}, 200 if ready else 503)
            case ["v2", "models", name, *rest]:
                return self._look_up_model(method, name, rest)
        raise UnknownModel(f"{scope['path'][:200]!r} is not here; see /v2, /v2/health/ready and /v2/models/NAME")

    def _look_up_model(self, method: str, name: str, rest: list[str]) -> Answer | None:
        host = self._host()
        served = self._serving(host)
        if name != host.model_name:
            raise UnknownModel(f"model {name[:100]!r} is unknown; this deployment serves {host.model_name!r}")
        match rest:
            case ["versions", version, *_] if version != served.version:
                raise UnknownModel(f"version {version[:100]!r} of {name!r} is unknown; served: {served.version}")
            case ["versions", _, *after]:
                rest = after
        match rest:
            case []:
                return _get(method, _metadata(name, served))
            case ["ready"]:
                ready = host.is_ready()
                return _get(method, {"name": name, "ready": ready}, 200 if ready else 503)
            case ["config"]:
                return _get(method, _configuration(name, served, host.config))
            case ["infer"]:
                return None if method == "POST" else _not_allowed(method, "POST")
        raise UnknownModel(f"{'/'.join(rest)[:200]!r} is not here; a model has /ready, /config and /infer")

    async def _infer(self, scope: Scope, receive: Receive) -> Answer:
        headers = dict(scope["headers"])
        body = await self._body(headers, receive)
        host = self._host()
        served = self._serving(host)
        if scope.get("raw_path") not in served.infer_paths:
            self._look_up(scope)  # the version asked for may have gone while the body came
        header_length = headers.get(_HEADER_LENGTH)
        request = decode(
            body, {} if header_length is None else {HEADER_LENGTH: header_length.decode("latin-1")}, served.outputs
        )
        check_inputs(served.inputs, request.inputs)
        rows = {array.shape[0] for array in request.inputs.values()}
        if len(rows) != 1:
            raise InvalidRequest(f"the inputs have batch sizes {sorted(rows)}; they must be the same")
        # From `served` to here nothing was awaited: the variant that checked the inputs is the one that executes them.
        answer = await host.submit(request.inputs, timeout_s=request.timeout_s, priority=request.priority)
        content, json_length = encode_response(host.model_name, served.version, request, answer.outputs)
        if json_length is None:
            return 200, [_JSON], content
        return 200, [_BINARY, (_HEADER_LENGTH, b"%d" % json_length)], content

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        encoding = headers.get(b"content-encoding", b"identity")
        if encoding != b"identity":
            raise InvalidRequest(f"content-encoding {encoding[:40].decode('latin-1')!r} is not known; send it plain")
        # What is too large is refused before it is here, if it says so.
        check_size = self._check_size if _HEADER_LENGTH in headers else self._check_json_size
        length = headers.get(b"content-length", b"")
        if length.isdigit():
            check_size(int(length[:16]))
        message = await receive()
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            chunks, size = [body], len(body)
            while message.get("more_body"):
                check_size(size)
                message = await receive()
                chunks.append(message.get("body", b""))
                size += len(chunks[-1])
            body = b"".join(chunks)
        if message["type"] == "http.disconnect":
            raise ClientGone
        check_size(len(body))
        return body

    def _check_size(self, size: int) -> None:
        if size > self._max_body_bytes:
            raise PayloadTooLarge(
                f"the body has {size} bytes or more; at most {self._max_body_bytes} are taken: send fewer rows at once"
            )

    def _check_json_size(self, size: int) -> None:
        check_json_size(size)  # first: it names the better way out
        self._check_size(size)


async def _not_http(kind: str, receive: Receive, send: Send) -> None:
    """Lifespan: nothing to start or stop. Anything else, a WebSocket, is refused."""
    while True:
        message = await receive()
        if kind == "lifespan":
            await send({"type": f"{message['type']}.complete"})
            if message["type"] != "lifespan.startup":
                return
        else:
            await send({"type": "websocket.close", "code": 1008})
            return


def _segments(scope: Scope) -> list[str]:
    """The decoded parts of the path; an encoded slash stays inside its part. One slash at the end is let pass."""
    raw = scope.get("raw_path")
    path = scope["path"] if raw is None else raw.decode("latin-1")
    # Behind a route prefix the path begins with it, and root_path is what to take off.
    path = path.removeprefix(scope.get("root_path", "")).removesuffix("/")
    first, *parts = path.split("/")
    return [unquote(part) if raw is not None and "%" in part else part for part in parts] if not first else []


def _metadata(name: str, served: _Served) -> dict[str, Any]:
    return {
        "name": name,
        "versions": [served.version],
        "platform": PLATFORMS[served.variant.format],
        "inputs": [spec.model_dump(mode="json") for spec in served.inputs],
        "outputs": [spec.model_dump(mode="json") for spec in served.outputs],
    }


def _configuration(name: str, served: _Served, config: dict[str, Any]) -> dict[str, Any]:
    """How the model is served, in the form of Triton's model configuration extension: what it has no field for stands
    under `parameters`, as strings."""
    runtime = config["runtime"]
    rest = {
        "variant": served.variant.name,
        "precision": served.variant.precision,
        "max_queued_requests": config["max_queued_requests"],
        "default_timeout_s": config["default_timeout_s"],
        **{f"runtime.{field}": value for field, value in runtime.items()},
    }
    return {
        "name": name,
        "platform": PLATFORMS[served.variant.format],
        "backend": runtime["name"],
        "version_policy": {"specific": {"versions": [served.version]}},
        "max_batch_size": config["max_batch_size"],
        "input": [_tensor(spec) for spec in served.inputs],
        "output": [_tensor(spec) for spec in served.outputs],
        "instance_group": [{"kind": "KIND_CPU", "count": runtime["streams"]}],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
        "parameters": {key: {"string_value": str(value)} for key, value in rest.items() if value is not None},
    }


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    """As Triton's config has it: without the batch dimension."""
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(spec.shape[1:])}


def _get(method: str, value: dict[str, Any], status: int = 200) -> Answer:
    if method not in ("GET", "HEAD"):
        return _not_allowed(method, "GET, HEAD")
    return status, [_JSON], orjson.dumps(value)


def _not_allowed(method: str, allowed: str) -> Answer:
    body = orjson.dumps({"error": f"{method[:20]} is not allowed here; use {allowed}"})
    return 405, [_JSON, (b"allow", allowed.encode())], body


def _error(error: SluiceError) -> Answer:
    headers = [_JSON]
    retry_after_s = getattr(error, "retry_after_s", None)
    if retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(retry_after_s))))
    text = str(error).encode(errors="replace").decode()  # an executor may say what is no text
    return error.http_status, headers, orjson.dumps({"error": text})
