"""KServe's InferenceGRPCClient: raw contents, and typed ones."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from importlib.metadata import version
from typing import Any

import grpc
from arrays import check, datatype, known
from harness import Checks
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.infer_type import InferResponse, RequestedOutput

checks = Checks()
inputs, outputs = known(checks)
logging.disable(logging.ERROR)  # the client logs each refusal, which here are wanted


def request(*, raw: bool = True, wanted: list[str] | None = None, model: str = checks.model, **options: Any) -> Any:
    tensors = []
    for name, array in inputs.items():
        tensors.append(InferInput(name, list(array.shape), datatype(array)))
        tensors[-1].set_data_from_numpy(array, binary_data=raw)
    asked = [RequestedOutput(name) for name in wanted or outputs]
    return InferRequest(model, tensors, request_outputs=asked, **options)


def check_all(answer: InferResponse) -> None:
    found = {output.name: output for output in answer.outputs}
    for name, want in outputs.items():
        check(found[name].as_numpy(), want)


async def refused(call: Awaitable[Any], code: str, word: str) -> None:
    """Raises unless the server says no, with that code and a message that holds the word."""
    try:
        await call
    except grpc.RpcError as error:
        assert error.code().name == code, str(error)
        assert word in error.details(), error.details()
    else:
        raise AssertionError("it was answered")


async def picture_rows(client: InferenceGRPCClient) -> None:
    with checks.row("live"):
        assert await client.is_server_live()
    with checks.row("ready"):
        assert await client.is_server_ready()
    with checks.row("model-ready"):
        assert await client.is_model_ready(checks.model)
    for row in ("infer", "batch", "raw-in"):
        with checks.row(row):
            check_all(await client.infer(request()))
    with checks.row("infer-version"):
        check_all(await client.infer(request(model_version=checks.version)))
    with checks.row("flat"):
        check_all(await client.infer(request(raw=False)))
    with checks.row("id"):
        assert (await client.infer(request(request_id="forty-two"))).id == "forty-two"
    with checks.row("parameters"):
        check_all(await client.infer(request(parameters={"text": "a", "flag": True, "number": 2})))
    with checks.row("outputs"):
        assert [each.name for each in (await client.infer(request(wanted=["label"]))).outputs] == ["label"]
    with checks.row("model-name"):
        said = await client.infer(request())
        assert (said.model_name, said.model_version) == (checks.model, checks.version)
    with checks.row("unknown-version"):
        await refused(client.infer(request(model_version="0")), "NOT_FOUND", "version")
    with checks.row("unknown-infer"):
        await refused(client.infer(request(model="nobody")), "NOT_FOUND", "nobody")
    with checks.row("unknown-output"):
        await refused(client.infer(request(wanted=["nobody"])), "INVALID_ARGUMENT", "nobody")


async def datatype_rows(client: InferenceGRPCClient) -> None:
    for name, array in inputs.items():
        back, kind = f"{name}_back", datatype(array)
        for row, raw in (("raw", True), ("list", False)):
            if kind == "FP16" and not raw:
                continue  # the protocol has no typed contents for it
            with checks.row(f"{kind}-{row}"):
                said = await client.infer(request(raw=raw, wanted=[back]))
                check(said.outputs[0].as_numpy(), outputs[back])


async def main() -> None:
    async with InferenceGRPCClient(checks.grpc, timeout=20, retries=0) as client:
        await (picture_rows if checks.serves == "pictures" else datatype_rows)(client)


asyncio.run(main())
checks.report(kserve=version("kserve"), grpcio=version("grpcio"))
