"""A GrpcService before a real batcher, behind both servers that carry it, and gRPC's own client to call it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import numpy as np

from serve_apps.front import grpc_ingress
from serve_apps.front.endpoint import Ledger
from serve_apps.front.grpc_listener import GrpcListener
from serve_apps.oip.grpc_service import SERVICE, GrpcService
from serve_apps.oip.proto import open_inference_grpc_pb2 as oip

SERVERS = ("lean", "aio")


@asynccontextmanager
async def called(host: Any, server: str = "lean", ledger: Ledger | None = None) -> AsyncIterator[grpc.aio.Channel]:
    """A channel to it."""
    service = GrpcService(lambda: host)
    if server == "lean":
        listener = GrpcListener(service, ledger=ledger)
        port = await listener.start(host="127.0.0.1")
    else:
        stock = grpc.aio.server()
        stock.add_generic_rpc_handlers(tuple(grpc_ingress.handlers(service, ledger)))
        port = stock.add_insecure_port("127.0.0.1:0")
        await stock.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await (listener.stop(5.0) if server == "lean" else stock.stop(5.0))


def call(channel: grpc.aio.Channel, method: str, message: Any, answer: Any, **options: Any) -> Any:
    """`answer` is the class of what comes back."""
    path = method if method.startswith("/") else f"/{SERVICE}/{method}"
    return channel.unary_unary(
        path, request_serializer=type(message).SerializeToString, response_deserializer=answer.FromString
    )(message, **options)


def infer_request(*rows: list[int], model: str = "adder", **fields: Any) -> Any:
    """Raw, for the adder of tests/unit/serve_apps/oip/served.py."""
    array = np.array(rows, np.int32)
    made = oip.ModelInferRequest(model_name=model, raw_input_contents=[array.tobytes()], **fields)
    made.inputs.add(name="x", datatype="INT32", shape=array.shape)
    return made


def infer(channel: grpc.aio.Channel, message: Any, **options: Any) -> Any:
    return call(channel, "ModelInfer", message, oip.ModelInferResponse, **options)


def totals(answer: Any) -> list[int]:
    assert [output.name for output in answer.outputs] == ["total", "twice"]
    return np.frombuffer(answer.raw_output_contents[0], np.int64).tolist()  # type: ignore[no-any-return]
