"""The same application behind a real uvicorn socket, asked by a client that we did not write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import orjson
import pytest

from serve_apps.oip.codec import HEADER_LENGTH, decode_response, encode_request
from serve_apps.oip.routes import MAX_BODY_BYTES, OipApp
from tests.unit.serve_apps.gated_model import run
from tests.unit.serve_apps.oip.served import Host, serving

INFER = "/v2/models/adder/infer"
BODY, _ = encode_request({"x": np.array([[1, 2, 3]], np.int32)}, binary=False)


async def raw(address: str, request: bytes) -> bytes:
    """Send these bytes and read until the server closes."""
    host, port = address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(request)
    await writer.drain()
    try:
        return await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()


def test_everything_once_over_a_socket() -> None:
    async def test() -> None:
        host = Host(max_batch_size=8)
        async with serving(OipApp(lambda: host)) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:
            assert (await client.get("/v2")).json()["name"] == "sluice"
            assert (await client.get("/v2/")).status_code == 200
            head = await client.head("/v2/health/live")
            assert (head.status_code, head.content) == (200, b"")
            assert (await client.get("/v2/health/ready")).json() == {"live": True, "ready": True}
            metadata = (await client.get("/v2/models/%61dder?verbose=1")).json()
            assert metadata["inputs"][0]["name"] == "x"
            versioned = f"/v2/models/adder/versions/{metadata['versions'][0]}"
            assert (await client.get(versioned + "/ready")).json() == {"name": "adder", "ready": True}

            for path in (INFER, versioned + "/infer"):
                answer = await client.post(path, content=BODY)
                assert answer.headers["content-type"] == "application/json"
                assert [output["data"] for output in answer.json()["outputs"]] == [[6], [2, 4, 6]]

            async def in_chunks() -> AsyncIterator[bytes]:
                for start in range(0, len(BODY), 10):
                    yield BODY[start : start + 10]

            assert (await client.post(INFER, content=in_chunks())).json()["outputs"][0]["data"] == [6]

            rows = np.arange(3000, dtype=np.int32).reshape(1000, 3)
            body, headers = encode_request({"x": rows}, binary=True, binary_output=True)
            answer = await client.post(INFER, content=body, headers=headers)
            tensors = decode_response(answer.content, dict(answer.headers))
            assert (tensors["total"] == rows.sum(axis=1)).all()
            assert (tensors["twice"] == rows * 2).all()

            for method, path, status in (
                ("GET", "/", 404), ("GET", "/v2/models/%2e%2e", 404), ("GET", "/v2/models/%ff%00", 404),
                ("POST", "/v2", 405), ("GET", INFER, 405), ("POST", "/v2/models/other/infer", 404),
            ):  # fmt: skip
                answer = await client.request(method, path, content=BODY if method == "POST" else None)
                assert answer.status_code == status
                assert isinstance(answer.json()["error"], str)
            for content, headers, status in (
                (b"garbage", {}, 400), (b"", {}, 400), (BODY, {"content-encoding": "br"}, 400),
                (BODY, {HEADER_LENGTH: "x"}, 400), (bytes(5 << 20), {}, 413),
                (bytes(MAX_BODY_BYTES + 1), {HEADER_LENGTH: "10"}, 413),
            ):  # fmt: skip
                answer = await client.post(INFER, content=content, headers=headers)
                assert answer.status_code == status
                assert isinstance(answer.json()["error"], str)
            assert (await client.post(INFER, content=BODY)).status_code == 200  # the connection is still in order
        host.batcher.close()

    run(test())


def test_many_clients_at_once_each_get_their_own_rows() -> None:
    async def test() -> None:
        host = Host(max_batch_size=4)
        async with serving(OipApp(lambda: host)) as address, httpx.AsyncClient(base_url=f"http://{address}") as client:

            async def one(n: int) -> None:
                rows = np.full((1 + n % 7, 3), n, np.int32)
                body, headers = encode_request({"x": rows}, binary=n % 2 == 0, binary_output=n % 3 == 0)
                answer = await client.post(INFER, content=body, headers=headers)
                tensors = decode_response(answer.content, dict(answer.headers))
                assert tensors["total"].tolist() == [3 * n] * len(rows)

            await asyncio.gather(*[one(n) for n in range(60)])
            assert host.batcher.counters.answered == 60
            assert max(host.batcher.counters.batch_sizes) <= 4
        host.batcher.close()

    run(test())


@pytest.mark.parametrize("sent", [BODY[:10], b""])
def test_a_client_that_leaves_mid_body_harms_nobody(sent: bytes) -> None:
    async def test() -> None:
        host = Host()
        async with serving(OipApp(lambda: host)) as address:
            name, port = address.split(":")
            _, writer = await asyncio.open_connection(name, int(port))
            writer.write(f"POST {INFER} HTTP/1.1\r\nhost: h\r\ncontent-length: {len(BODY)}\r\n\r\n".encode() + sent)
            await writer.drain()
            writer.close()
            await writer.wait_closed()
            async with httpx.AsyncClient(base_url=f"http://{address}") as client:
                assert (await client.post(INFER, content=BODY)).status_code == 200
        assert host.batcher.counters.batches == 1
        host.batcher.close()

    run(test())


def test_expect_continue_and_early_refusal() -> None:
    """A client that asks first never sends its too large body."""

    async def test() -> None:
        host = Host()
        async with serving(OipApp(lambda: host)) as address:
            head = f"POST {INFER} HTTP/1.1\r\nhost: h\r\nexpect: 100-continue\r\nconnection: close\r\n"
            answer = await raw(address, f"{head}content-length: 999999999\r\n\r\n".encode())
            assert answer.startswith(b"HTTP/1.1 413 ")
            assert isinstance(orjson.loads(answer.partition(b"\r\n\r\n")[2])["error"], str)
            answer = await raw(address, f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY)
            assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 ")
        host.batcher.close()

    run(test())


def test_a_path_with_odd_characters() -> None:
    async def test() -> None:
        host = Host()
        async with serving(OipApp(lambda: host)) as address:
            odd: list[Any] = ["/v2/models/%", "/v2/models/%%%", "/v2/models/a;b=c", "/%00", "/v2?x=%ff", "/*", "/v2//"]
            for path in odd:
                answer = await raw(address, f"GET {path} HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n".encode())
                status = int(answer.split(b" ", 2)[1])
                assert status == (200 if path == "/v2?x=%ff" else 404), path
                orjson.loads(answer.partition(b"\r\n\r\n")[2])
        host.batcher.close()

    run(test())
