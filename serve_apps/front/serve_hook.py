"""Serve's callback -> inferences take the short way on the replica's own port; all else stays Serve's.

Serve calls `install` in the replica before it opens the port that its HAProxy forwards to
(RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH; cluster/control/serve_env.py sets it). uvicorn then makes a LeanProtocol for
each connection. Health checks, metadata and whatever is no inference go through uvicorn and Serve as ever, so rolling
updates, draining, health and scaling are Serve's own; it is told of each inference that goes past it, because it waits
for those under way before it stops a replica, and scales by their number.

Serve has no public place for that: `_Books` writes into the replica's metrics by their names in Ray 2.60. Where they
are not there, the port is left as it is and the log says so: every request then takes the long way, and is answered
alike.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import uvicorn.config
from starlette.middleware import Middleware

from cluster.errors import NotReady
from serve_apps.front.endpoint import Ledger
from serve_apps.front.protocol import LeanProtocol

_PROTOCOL = "serve_apps.front.protocol:LeanProtocol"
_FLUSH_S = 1.0
_LATENCIES_PER_FLUSH = 500
"""Serve puts each one into a histogram by itself, at microseconds each: of more, these many are taken, evenly spread.
Counts are exact."""
_replica: list[Any] = []
_log = logging.getLogger("ray.serve")


def install() -> list[Middleware]:
    """What Serve calls: once in each replica, and in each proxy that is not HAProxy, where nothing is to be done."""
    return [Middleware(_look_behind)]  # a function that returns the application serves too


def is_replica() -> bool:
    """Is there one in this process? Else it is one of Serve's proxies."""
    return bool(_replica)


def is_leaving() -> bool:
    """Has Serve told this replica to stop? (It then waits before it does.) False where nobody can say."""
    return bool(getattr(_replica[0], "_shutting_down", False)) if _replica else False


async def dataplane_health() -> tuple[bool, str]:
    """What Serve tells its HAProxy of this replica."""
    healthy, message = await _replica[0]._dataplane_health_check()
    return bool(healthy), str(message)


def servable() -> Any:
    """What Serve made of the deployment in this process. Raises NotReady where that is not there yet, or no replica
    is."""
    from ray import serve
    from ray.serve.exceptions import RayServeException

    try:
        found = serve.get_replica_context().servable_object
    except RayServeException as error:
        raise NotReady("no replica is up yet; send the request again in a moment") from error
    if found is None:
        raise NotReady("this replica is still starting; send the request again, another one will take it")
    return found


def grpc_ledger() -> Ledger | None:
    """Who is told of inferences over gRPC; None where nobody is: Serve's own proxy, or a Ray that keeps its books
    otherwise."""
    try:
        return _Books(_replica[0], "GRPC") if _replica else None
    except (AttributeError, TypeError, ImportError, KeyError) as error:
        _log.warning("this Ray keeps its books otherwise (%s); it will not wait for calls over gRPC", error)
        return None


def _look_behind(app: Any) -> Any:
    """Find the replica behind the application, and give the application back as it is."""
    replica = getattr(getattr(app, "_app", None), "__self__", None)
    if replica is None or not hasattr(replica, "_direct_ingress_asgi"):
        return app
    _replica[:] = [replica]
    try:
        LeanProtocol.ledger = _Books(replica)
    except (AttributeError, TypeError, ImportError) as error:
        _log.warning("this Ray keeps its books otherwise (%s); requests take the long way", error)
        return app
    uvicorn.config.HTTP_PROTOCOLS["auto"] = _PROTOCOL
    _take_grpc_port(replica)
    return app


def _take_grpc_port(replica: Any) -> None:
    """The replica starts its gRPC server after this one, by a name of its module."""
    from ray.serve._private import replica as module

    from serve_apps.front import grpc_ingress

    if hasattr(module, "start_grpc_server") and hasattr(replica, "_dataplane_health_check"):
        module.start_grpc_server = grpc_ingress.listen
    else:
        _log.warning("this Ray starts its gRPC server otherwise; calls take the long way")


class _Books:
    """What Serve is told: how many inferences are under way, at once; how many ended and how long they took, once a
    second. Raises AttributeError or TypeError where Ray's own records are called otherwise."""

    def __init__(self, replica: Any, protocol: str = "HTTP") -> None:
        from ray.serve._private.common import RequestProtocol

        self._metrics = metrics = replica._metrics_manager
        self._route: str = replica._route_prefix or "/"
        self._protocol = RequestProtocol[protocol]
        self._by_protocol: dict[Any, int] = metrics._ingress_ongoing_requests
        metrics._num_ongoing_requests += 0
        if not metrics._cached_metrics_enabled:
            raise TypeError("its metrics are not gathered before they are sent")
        for name in (
            "_user_code_time_accumulator", "_max_processing_latency_trackers", "_cached_latencies",
            "_cached_request_counter", "_cached_error_counter",
        ):  # fmt: skip
            getattr(metrics, name)
        self._latencies_ms: list[float] = []
        self._failed: dict[int, int] = {}
        self._timer: asyncio.TimerHandle | None = None

    def began(self) -> None:
        # As inc_num_ongoing_requests does, at a third of its time.
        self._metrics._num_ongoing_requests += 1
        self._by_protocol[self._protocol] = self._by_protocol.get(self._protocol, 0) + 1

    def ended(self, status: int, took_s: float) -> None:
        self._metrics._num_ongoing_requests -= 1
        self._by_protocol[self._protocol] -= 1
        self._latencies_ms.append(took_s * 1e3)
        if status >= 400:
            self._failed[status] = self._failed.get(status, 0) + 1
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(_FLUSH_S, self._flush)

    def _flush(self) -> None:
        self._timer = None
        metrics, route, latencies, failed = self._metrics, self._route, self._latencies_ms, self._failed
        self._latencies_ms, self._failed = [], {}
        metrics._user_code_time_accumulator.add(sum(latencies))
        metrics._max_processing_latency_trackers[route].add(max(latencies))
        metrics._cached_latencies[route].extend(latencies[:: 1 + len(latencies) // _LATENCIES_PER_FLUSH])
        # As Serve counts: what a client did wrong, or the server refused, is an answer; 5xx are errors.
        errors = {status: count for status, count in failed.items() if status >= 500}
        metrics._cached_request_counter[route] += len(latencies) - sum(errors.values())
        for status, count in errors.items():
            metrics._cached_error_counter[(route, str(status))] += count
