"""A model behind the routes, with the real batcher, and two ways to ask it: as ASGI, and over a real uvicorn socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import httpx
import numpy as np
import orjson
import uvicorn

from cluster.errors import DeadlineExceeded
from cluster.variants import TensorSpec, Variant
from serve_apps.batcher import Batcher
from serve_apps.decoder import Decoder
from serve_apps.executor import Arrays, Model, Outputs, Request
from serve_apps.oip.routes import OipApp
from serve_apps.oip.served import Served
from serve_apps.pending import Counters


def variant(name: str = "sum/1", **fields: Any) -> Variant:
    """Takes `x` and the optional second input; gives `total`, the sum of each row, and `twice`."""
    given = {
        "family": "sum", "format": "onnx",
        "inputs": (TensorSpec(name="x", datatype="INT32", shape=(-1, 3)),),
        "outputs": (
            TensorSpec(name="total", datatype="INT64", shape=(-1,)),
            TensorSpec(name="twice", datatype="FP32", shape=(-1, 3)),
        ),
    } | fields  # fmt: skip
    return Variant(name=name, **given)


def infer(inputs: Arrays) -> Outputs:
    x = inputs["x"]
    if (x == -1).any():
        raise ZeroDivisionError("this one cannot be done")
    twice = (x * 2).astype(np.float32)
    twice[x == -2] = np.nan
    return {"total": x.sum(axis=1, dtype=np.int64), "twice": twice}


class Host:
    """A ModelHost without Serve around it."""

    default_timeout_s: float | None = None
    decoder: Decoder | None = None
    unavailable: str | None = None
    cache_hits: int | None = None

    def __init__(self, model: Any = infer, *, model_name: str = "adder", **options: Any) -> None:
        self.model_name = model_name
        self.ready = True
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.batcher = Batcher(self._models(variant(), model), **options)
        self.serve(variant(), model)

    def _models(self, served: Variant, model: Any) -> tuple[Model, ...]:
        return (Model(served.name, served.id, 0.9, (model,)),)

    def serve(self, served: Variant, model: Any = infer) -> None:
        """From now on."""
        self.variant = served
        self.batcher.reconfigure(models=self._models(served, model))
        self.served: Served | None = Served(
            self.model_name, self.batcher.models, served.inputs, served.outputs
        )

    @property
    def config(self) -> dict[str, Any]:
        return {
            "max_batch_size": self.batcher.max_batch_size,
            "max_queued_requests": self.batcher.max_queued_requests,
            "default_timeout_s": None,
            "runtime": {"name": "onnxruntime", "threads": 1, "inter_op_threads": 1, "streams": 2},
        }

    @property
    def counters(self) -> Counters:
        return self.batcher.counters

    def is_ready(self) -> bool:
        return self.ready

    async def load(self, parameters: Mapping[str, Any]) -> None:
        self.asked.append(("load", dict(parameters)))

    async def unload(self, parameters: Mapping[str, Any]) -> None:
        self.asked.append(("unload", dict(parameters)))

    def put(self, request: Request) -> None:
        self.batcher.put(request)

    def cancel(self, request: Request) -> None:
        self.batcher.cancel(request)

    def expired(self, why: str) -> DeadlineExceeded:
        return self.batcher.expired(why)


class Answer:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def json(self) -> Any:
        return orjson.loads(self.body)

    @property
    def error(self) -> str:
        """The message, having checked that the answer is an error as the protocol has it."""
        assert self.headers["content-type"] == "application/json"
        assert list(self.json()) == ["error"]
        message = self.json()["error"]
        assert isinstance(message, str)
        return message


async def ask(
    app: OipApp, method: str, path: str, body: bytes | list[bytes] = b"", headers: dict[str, str] | None = None,
    *, scope: dict[str, Any] | None = None,
) -> Answer:  # fmt: skip
    """One request as an ASGI server would make it; `body` in chunks if it is a list."""
    raw = path.encode("latin-1")
    chunks = body if isinstance(body, list) else [body]
    messages = [
        {"type": "http.request", "body": chunk, "more_body": n + 1 < len(chunks)} for n, chunk in enumerate(chunks)
    ]
    sent: list[Any] = []

    async def receive() -> Any:
        return messages.pop(0) if messages else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    await app(
        {
            "type": "http", "method": method, "path": httpx.URL("http://h" + path).path if scope is None else path,
            "raw_path": raw, "root_path": "", "query_string": b"",
            "headers": [(k.encode(), v.encode("latin-1")) for k, v in (headers or {}).items()],
        } | (scope or {}),
        receive, send,
    )  # fmt: skip
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    answered = {k.decode(): v.decode() for k, v in sent[0]["headers"]}
    if method != "HEAD" and sent[0]["status"] != 204:
        assert answered["content-length"] == str(len(sent[1]["body"]))
    return Answer(sent[0]["status"], answered, sent[1]["body"])


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[str]:
    """host:port of a uvicorn that serves this app."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_level="critical", lifespan="on"))
    task = asyncio.create_task(server.serve())
    while not server.started:
        assert not task.done()
        await asyncio.sleep(0.005)
    try:
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        await task
