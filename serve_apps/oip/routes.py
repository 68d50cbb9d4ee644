"""Open Inference Protocol v2 REST as a bare ASGI application: path -> answer.

No framework: the request path is a set look-up, one decode, one await. Errors are `{"error": ...}` with the status
that the error class carries.

A client that leaves is Serve's to notice: it watches the connection and cancels the task that runs this application
(`_direct_ingress_asgi` in Serve's replica). The cancellation goes on to the awaited future, and the batcher drops the
request. A second watcher here would cost each request a task and find nothing. (A client may ask Serve not to watch,
with `x-request-disconnect-disabled: ?1`; what it asked is then executed whether it waits or not.)
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import unquote

import orjson

from cluster.errors import InvalidRequest, PayloadTooLarge, SluiceError, UnknownModel
from serve_apps.front.head import Head
from serve_apps.oip import answers, openapi
from serve_apps.oip.answers import ModelHost
from serve_apps.oip.codec import HEADER_LENGTH, check_json_size
from serve_apps.oip.compression import compress, decompress
from serve_apps.oip.exchange import MAX_BODY_BYTES, Exchange, refusal, unexpected
from serve_apps.oip.page import PAGE, POLICY

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]

_JSON = (b"content-type", b"application/json")
_RETRY = (b"retry-after", b"1")
_PAGE_HEADERS = [
    (b"content-type", b"text/html; charset=utf-8"), (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-cache"),
]  # fmt: skip
_HEADER_LENGTH = HEADER_LENGTH.encode()


class ClientGone(Exception):
    """The client left before its request was whole; there is nobody to answer."""


class OipApp:
    """The ASGI application. `host` is looked up at the first request: Serve makes the app before the replica."""

    def __init__(self, host: Callable[[], ModelHost], *, max_body_bytes: int = MAX_BODY_BYTES) -> None:
        self._host = host
        self._max_body_bytes = max_body_bytes
        self.exchange = Exchange(host, max_body_bytes=max_body_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await _not_http(scope["type"], receive, send)
            return
        try:
            answer = await self._answer(scope, receive)
        except ClientGone:
            return
        except SluiceError as error:
            answer = _split(*refusal(error))
        except Exception:
            answer = _split(*unexpected(f"{scope['method']} {scope['path']}"))
        status, headers, body = answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        """Raises SluiceError: UnknownModel for what is not here."""
        method = scope["method"]
        match _segments(scope):
            case ["v2"]:
                return _get(method, answers.SERVER)
            case ["v2", "health", "live"]:
                return _get(method, {"live": True})
            case ["v2", "health", "ready"] | ["healthz"]:
                # The protocol's text and its examples differ in the field's name; both are there.
                ready = self._host().is_ready()
                return _health(method, ready, {"live": True, "ready": ready})
            case ["v2", "models", "stats"] if self._host().model_name != "stats":
                return _get(method, answers.statistics(self._host()))
            case ["v2", "models", name, *rest]:
                return await self._model(scope, name, rest, receive)
            case ["v2", "openapi.json"]:
                return _get(method, openapi.describe(self._host(), scope.get("root_path", "")))
            case ["v2", "docs"]:
                return _page(method)
            case ["v2", "repository", "index"]:
                return await self._index(scope, receive)
            case ["v2", "repository", "models", name, "load" | "unload" as what]:
                return await self._change(scope, name, what, receive)
        raise UnknownModel(
            f"{scope['path'][:200]!r} is not here; see /v2, /v2/health/ready, /v2/models/NAME and /v2/docs"
        )

    async def _model(self, scope: Scope, name: str, rest: list[str], receive: Receive) -> Answer:
        host, method = self._host(), scope["method"]
        target = f"/v2/models/{name}"
        version: str | None = None
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
            target = f"{target}/versions/{version}"
        if rest == ["ready"]:
            ready = answers.model_ready(host, name, version)
            return _health(method, ready, {"name": name, "ready": ready})
        answers.check_model(host, name, version)
        match rest:
            case []:
                return _get(method, answers.metadata(host))
            case ["config"]:
                return _get(method, answers.configuration(host))
            case ["stats"]:
                return _get(method, answers.statistics(host, version))
            case ["infer"]:
                return _other_than_post(method) or await self._infer(scope, f"{target}/infer".encode(), receive)
        raise UnknownModel(f"{'/'.join(rest)[:200]!r} is not here; a model has /ready, /config, /stats and /infer")

    async def _index(self, scope: Scope, receive: Receive) -> Answer:
        refused = _other_than_post(scope["method"])
        if refused is not None:
            return refused
        ready = (await self._json_body(scope, receive)).get("ready", False)
        if type(ready) is not bool:
            raise InvalidRequest(f"ready={str(ready)[:80]!r} must be true or false")
        return _json(200, answers.index(self._host(), ready=ready))

    async def _change(self, scope: Scope, name: str, what: str, receive: Receive) -> Answer:
        """Load or unload."""
        refused = _other_than_post(scope["method"])
        if refused is not None:
            return refused
        host = self._host()
        answers.check_model(host, name)
        parameters = (await self._json_body(scope, receive)).get("parameters") or {}
        if type(parameters) is not dict:
            raise InvalidRequest(f"parameters={str(parameters)[:80]!r} must be an object")
        await (host.load(parameters) if what == "load" else host.unload(parameters))
        return _json(200, answers.index(host))

    async def _json_body(self, scope: Scope, receive: Receive) -> dict[str, Any]:
        """The request's object; none is an empty one. Raises InvalidRequest."""
        body = await self._body(dict(scope["headers"]), receive)
        try:
            value = orjson.loads(body) if body else {}
        except orjson.JSONDecodeError as error:
            raise InvalidRequest(f"the request is no JSON: {error}") from error
        if type(value) is not dict:
            raise InvalidRequest(f"the body is a JSON {type(value).__name__}; it must be an object, or empty")
        return value

    async def _infer(self, scope: Scope, target: bytes, receive: Receive) -> Answer:
        headers = dict(scope["headers"])
        body = await self._body(headers, receive)
        status, said, content = _split(*await self.exchange.answer(Head(target, headers, len(body)), body))
        accept = headers.get(b"accept-encoding")
        if accept is None or _JSON not in said:
            return status, said, content
        content, encoding = compress(content, accept.decode("latin-1"))
        said = [(name, value) for name, value in said if name != b"content-length"]
        if encoding is not None:
            said.append((b"content-encoding", encoding.encode()))
        return status, [*said, (b"vary", b"accept-encoding"), (b"content-length", b"%d" % len(content))], content

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        # What is too large is refused before it is here, if it says so.
        tensors = _HEADER_LENGTH in headers or not _says_json(headers)
        check_size = self._check_size if tensors else self._check_json_size
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
        encoding = headers.get(b"content-encoding")
        if encoding is not None:
            body = decompress(body, encoding.decode("latin-1"), max_bytes=self._max_body_bytes)
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


def _get(method: str, value: Any, status: int = 200) -> Answer:
    if method not in ("GET", "HEAD"):
        return _not_allowed(method, "GET, HEAD, OPTIONS")
    return _json(status, value)


def _page(method: str) -> Answer:
    if method not in ("GET", "HEAD"):
        return _not_allowed(method, "GET, HEAD, OPTIONS")
    return 200, [*_PAGE_HEADERS, (b"content-length", b"%d" % len(PAGE))], PAGE


def _health(method: str, ready: bool, value: dict[str, Any]) -> Answer:
    status, headers, body = _get(method, value, 200 if ready else 503)
    return status, [*headers, _RETRY] if status == 503 else headers, body


def _other_than_post(method: str) -> Answer | None:
    return None if method == "POST" else _not_allowed(method, "POST, OPTIONS")


def _not_allowed(method: str, allowed: str) -> Answer:
    """The answer to OPTIONS, too, which asks for no more than that."""
    allow = (b"allow", allowed.encode())
    if method == "OPTIONS":
        return 204, [allow], b""
    return _json(405, {"error": f"{method[:20]} is not allowed here; use {allowed}"}, allow)


def _json(status: int, value: Any, *headers: tuple[bytes, bytes]) -> Answer:
    body = orjson.dumps(value)
    return status, [_JSON, *headers, (b"content-length", b"%d" % len(body))], body


def _says_json(headers: dict[bytes, bytes]) -> bool:
    kind = headers.get(b"content-type", b"")
    return kind != b"application/octet-stream" and not kind.startswith(b"image/")


def _split(status: int, lines: bytes, body: bytes) -> Answer:
    """Header lines as ASGI has them."""
    headers = [line.split(b": ", 1) for line in lines.split(b"\r\n")[:-1]]
    return status, [(name, value) for name, value in headers], body
