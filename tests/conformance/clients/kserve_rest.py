"""KServe's InferenceRESTClient, protocol v2."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from importlib.metadata import version
from typing import Any

import httpx
from arrays import check, datatype, known
from harness import Checks
from kserve import InferenceRESTClient, InferInput, InferRequest
from kserve.inference_client import RESTConfig
from kserve.protocol.infer_type import InferResponse, RequestedOutput

checks = Checks()
inputs, outputs = known(checks)
BASE = f"http://{checks.http}"


def request(*, binary: bool, wanted: list[str] | None = None, **options: Any) -> InferRequest:
    tensors = []
    for name, array in inputs.items():
        tensors.append(InferInput(name, list(array.shape), datatype(array)))
        tensors[-1].set_data_from_numpy(array, binary_data=binary)
    asked = [RequestedOutput(name, {"binary_data": binary}) for name in wanted or outputs]
    return InferRequest(checks.model, tensors, request_outputs=asked, **options)


def check_all(answer: InferResponse) -> None:
    found = {output.name: output for output in answer.outputs}
    for name, want in outputs.items():
        check(found[name].as_numpy(), want)


async def refused(call: Awaitable[Any], status: int, word: str) -> None:
    """Raises unless the server says no, with that status and a message that holds the word."""
    try:
        await call
    except httpx.HTTPStatusError as error:
        assert error.response.status_code == status, str(error)
        assert word in str(error).partition(", '")[0], str(error)
    else:
        raise AssertionError("it was answered")


async def picture_rows(client: InferenceRESTClient) -> None:
    async def infer(model: str = checks.model, **options: Any) -> InferResponse:
        return await client.infer(BASE, request(**{"binary": True} | options), model_name=model)

    with checks.row("live"):
        assert await client.is_server_live(BASE)
    with checks.row("ready"):
        assert await client.is_server_ready(BASE)
    with checks.row("model-ready"):
        assert await client.is_model_ready(BASE, checks.model)
        assert not await client.is_model_ready(BASE, "nobody")
    for row in ("infer", "batch", "raw-in", "raw-out"):
        with checks.row(row):
            check_all(await infer())
    with checks.row("flat"):
        check_all(await infer(binary=False))
    with checks.row("id"):
        assert (await infer(request_id="forty-two")).id == "forty-two"
    with checks.row("parameters"):
        check_all(await infer(parameters={"text": "a", "flag": True, "number": 2}))
    with checks.row("outputs"):
        assert [each.name for each in (await infer(wanted=["label"])).outputs] == ["label"]
    with checks.row("model-name"):
        said = await infer()
        assert said.model_name == checks.model  # the client drops the version
    with checks.row("unknown-infer"):
        await refused(infer("nobody"), 404, "nobody")
    with checks.row("unknown-output"):
        await refused(infer(wanted=["nobody"]), 400, "nobody")
    with checks.row("no-inputs"):
        await refused(client.infer(BASE, {}, model_name=checks.model), 400, "input")


async def datatype_rows(client: InferenceRESTClient) -> None:
    for name, array in inputs.items():
        back, kind = f"{name}_back", datatype(array)
        for row, binary in (("raw", True), ("list", False)):
            if kind == "FP16" and not binary:
                continue  # the client itself sends none as JSON
            with checks.row(f"{kind}-{row}"):
                said = await client.infer(BASE, request(binary=binary, wanted=[back]), model_name=checks.model)
                check(said.outputs[0].as_numpy(), outputs[back])


async def main() -> None:
    async with InferenceRESTClient(RESTConfig(protocol="v2", timeout=20)) as client:
        await (picture_rows if checks.serves == "pictures" else datatype_rows)(client)


asyncio.run(main())
checks.report(kserve=version("kserve"))
