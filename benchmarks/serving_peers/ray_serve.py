"""Stock Ray Serve, from this project's own environment: default proxy, raw body in, raw logits out, one replica.

`build_batched` uses @serve.batch, with room for several batches in the replica, as its documentation asks;
`build_single` has neither batching nor any setting.
"""

from __future__ import annotations

from typing import Any

from ray import serve
from ray.serve import Application
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

_BINARY = "application/octet-stream"


@serve.deployment(name="Single")
class Single:
    """A request, an inference."""

    def __init__(self, job: dict[str, Any]) -> None:
        from benchmarks.serving_peers.served import Served

        self._served = Served(job)

    async def __call__(self, request: Request) -> Response:
        picture = self._served.picture(await request.body())
        return Response(self._served.logits([picture])[0].tobytes(), media_type=_BINARY)


@serve.deployment(name="Batched")
class Batched:
    """Ray's own batching; GET /stats tells how many requests were in how many batches."""

    def __init__(self, job: dict[str, Any]) -> None:
        from benchmarks.serving_peers.served import Served

        self._served = Served(job)
        self._classify.set_max_batch_size(job["max_batch_size"])
        self._classify.set_batch_wait_timeout_s(job["wait_s"])
        self._requests = self._batches = 0

    @serve.batch(max_batch_size=64, batch_wait_timeout_s=0.002)
    async def _classify(self, bodies: list[bytes]) -> list[bytes]:
        self._requests += len(bodies)
        self._batches += 1
        return [row.tobytes() for row in self._served.logits([self._served.picture(body) for body in bodies])]

    async def __call__(self, request: Request) -> Response:
        if request.method == "GET":
            return JSONResponse({"requests": self._requests, "batches": self._batches})
        return Response(await self._classify(await request.body()), media_type=_BINARY)


def build_single(job: dict[str, Any]) -> Application:
    """Serve's builder; `job` as served.py has it."""
    return Single.bind(job)  # type: ignore[attr-defined]


def build_batched(job: dict[str, Any]) -> Application:
    """Serve's builder; `job` as served.py has it."""
    return Batched.options(max_ongoing_requests=4 * job["max_batch_size"]).bind(job)  # type: ignore[attr-defined]
