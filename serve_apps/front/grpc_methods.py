"""Calls that Serve's own proxy took -> the replica's GrpcService, by the deployment's handle.

Serve's proxy stands behind HAProxy's gRPC port while an application is built anew (Serve 2.60 takes its replicas out of
the list meanwhile, 1.5 s at each deployment that changes more than a user_config) and while no replica is up. It makes
of each call a method of the deployment that is named like it, and waits for a replica if there is none. A call's own
deadline ends at the proxy: past it Serve cancels the method.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from serve_apps.front import serve_hook
from serve_apps.front.grpc_ingress import answered, code_of, metadata_of
from serve_apps.oip.grpc_service import GrpcService


class GrpcMethods:
    """A deployment's methods, one for each call that there is."""


class _Message:
    """As Serve asks for an answer."""

    def __init__(self, content: bytes) -> None:
        self._content = content

    def SerializeToString(self) -> bytes:  # noqa: N802
        return self._content


def _method(service: GrpcService, path: str) -> Callable[..., Awaitable[_Message]]:
    async def method(self: object, body: bytes, grpc_context: Any) -> _Message:
        status, content = await answered(service, path, body, grpc_context.invocation_metadata())
        if status.code:
            grpc_context.set_code(code_of(status))
            grpc_context.set_details(status.details)
            grpc_context.set_trailing_metadata([*grpc_context.trailing_metadata(), *metadata_of(status)])
        return _Message(content)

    method.__name__ = path.rsplit("/", 1)[1]
    return method


def _add_methods() -> None:
    service = GrpcService(serve_hook.servable)
    for path in service.paths:
        method = _method(service, path)
        setattr(GrpcMethods, method.__name__, method)


_add_methods()
