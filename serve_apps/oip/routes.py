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

from cluster.errors import PayloadTooLarge, SluiceError, UnknownModel
from serve_apps.front.head import Head
from serve_apps.oip import answers
from serve_apps.oip.answers import ModelHost
from serve_apps.oip.codec import HEADER_LENGTH, check_json_size
from serve_apps.oip.compression import compress, decompress
from serve_apps.oip.exchange import MAX_BODY_BYTES, Exchange, refusal, unexpected

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]
Answer = tuple[int, Headers, bytes]

_JSON = (b"content-type", b"application/json")
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
            answer = self._look_up(scope)
            if isinstance(answer, bytes):
                answer = await self._infer(scope, answer, receive)
        except ClientGone:
            return
        except SluiceError as error:
            answer = _split(*refusal(error))
        except Exception:
            answer = _split(*unexpected(f"{scope['method']} {scope['path']}"))
        status, headers, body = answer
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def _look_up(self, scope: Scope) -> Answer | bytes:
        """The answer to everything but an inference, which is the target that it is for. Raises UnknownModel for what
        is not here."""
        method = scope["method"]
        match _segments(scope):
            case ["v2"]:
                return _get(method, answers.SERVER)
            case ["v2", "health", "live"]:
                return _get(method, {"live": True})
            case ["v2", "health", "ready"]:
                # The protocol's text and its examples differ in the field's name; both are there.
                ready = self._host().is_ready()
                return _get(method, {"live": True, "ready": ready}, 200 if ready else 503)
            case ["v2", "models", name, *rest]:
                return self._look_up_model(method, name, rest)
        raise UnknownModel(f"{scope['path'][:200]!r} is not here; see /v2, /v2/health/ready and /v2/models/NAME")

    def _look_up_model(self, method: str, name: str, rest: list[str]) -> Answer | bytes:
        host = self._host()
        target = f"/v2/models/{name}"
        version: str | None = None
        if rest[:1] == ["versions"] and len(rest) > 1:
            version, rest = rest[1], rest[2:]
            target = f"{target}/versions/{version}"
        if rest == ["ready"]:
            ready = answers.model_ready(host, name, version)
            return _get(method, {"name": name, "ready": ready}, 200 if ready else 503)
        answers.check_model(host, name, version)
        match rest:
            case []:
                return _get(method, answers.metadata(host))
            case ["config"]:
                return _get(method, answers.configuration(host))
            case ["stats"]:
                return _get(method, answers.statistics(host, version))
            case ["infer"]:
                return f"{target}/infer".encode() if method == "POST" else _not_allowed(method, "POST")
        raise UnknownModel(f"{'/'.join(rest)[:200]!r} is not here; a model has /ready, /config, /stats and /infer")

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


def _get(method: str, value: dict[str, Any], status: int = 200) -> Answer:
    if method not in ("GET", "HEAD"):
        return _not_allowed(method, "GET, HEAD")
    return _json(status, value)


def _not_allowed(method: str, allowed: str) -> Answer:
    error = {"error": f"{method[:20]} is not allowed here; use {allowed}"}
    return _json(405, error, (b"allow", allowed.encode()))


def _json(status: int, value: dict[str, Any], *headers: tuple[bytes, bytes]) -> Answer:
    body = orjson.dumps(value)
    return status, [_JSON, *headers, (b"content-length", b"%d" % len(body))], body


def _says_json(headers: dict[bytes, bytes]) -> bool:
    kind = headers.get(b"content-type", b"")
    return kind != b"application/octet-stream" and not kind.startswith(b"image/")


def _split(status: int, lines: bytes, body: bytes) -> Answer:
    """Header lines as ASGI has them."""
    headers = [line.split(b": ", 1) for line in lines.split(b"\r\n")[:-1]]
    return status, [(name, value) for name, value in headers], body
