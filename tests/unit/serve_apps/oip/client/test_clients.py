"""Both clients against real sockets: our own application behind uvicorn, and servers that misbehave."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import orjson
import pytest

from cluster.local import free_ports
from cluster.variants import TensorSpec
from serve_apps.decoder import Decoder
from serve_apps.oip import client as client_module
from serve_apps.oip.client import (
    NO_RETRIES,
    AsyncClient,
    Client,
    DeadlineExceeded,
    InferAnswer,
    InferenceFailed,
    InvalidRequest,
    Overloaded,
    ProtocolError,
    RetryPolicy,
    ServerUnreachable,
    UnknownModel,
)
from serve_apps.oip.routes import OipApp
from tests.unit.serve_apps.gated_model import run
from tests.unit.serve_apps.oip.client.faulty import RESET, Drip, answer, faulty
from tests.unit.serve_apps.oip.served import Host, serving, variant
from tests.unit.serve_apps.photographs import encoded, photograph

ROWS = np.array([[1, 2, 3], [4, 5, 6]], np.int32)
BUSY = answer(503, b'{"error": "queue is full"}')
LIVE = answer(200, b'{"name": "far", "version": "9", "extensions": []}')


class InThread:
    """The sync client with the async one's face: each method runs on a thread of its own."""

    def __init__(self, url: str, **settings: Any) -> None:
        self._client = Client(url, **settings)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        async def method(*args: Any, **kwargs: Any) -> Any:
            return await asyncio.to_thread(getattr(self._client, name), *args, **kwargs)

        return method

    async def aclose(self) -> None:
        self._client.close()


@asynccontextmanager
async def asking(kind: Callable[..., Any], url: str, **settings: Any) -> AsyncIterator[Any]:
    client = kind(url, **settings)
    try:
        yield client
    finally:
        await client.aclose()


both = pytest.mark.parametrize("kind", [InThread, AsyncClient])


@both
def test_everything_that_the_server_says(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        host = Host()
        app = OipApp(lambda: host)
        async with serving(app) as address, asking(kind, f"http://{address}") as client:
            assert await client.is_live()
            assert await client.is_ready()
            assert await client.is_ready("adder", host.variant.id)
            assert (await client.server_metadata()).name == "sluice"
            metadata = await client.metadata("adder")
            assert metadata.versions == (host.variant.id,)
            assert metadata.inputs[0].name == "x"
            assert (metadata.inputs[0].datatype, metadata.inputs[0].shape) == ("INT32", (-1, 3))
            config = await client.config("adder")
            assert (config.name, config.max_batch_size) == ("adder", host.batcher.max_batch_size)
            assert config.inputs[0].shape == (3,)
            assert config.parameters["variant"] == "sum/1"
            answer = await client.infer("adder", {"x": ROWS}, request_id="seven", version=host.variant.id)
            assert isinstance(answer, InferAnswer)
            assert (answer.id, answer.variant, answer.version) == ("seven", "sum/1", host.variant.id)
            assert answer["total"].tolist() == [6, 15]
            assert answer["total"].dtype == np.int64
            assert (answer["twice"] == 2 * ROWS).all()
            one = await client.infer("adder", {"x": ROWS}, outputs=["twice"], binary=False)
            assert list(one.outputs) == ["twice"]
            [statistics] = await client.statistics("adder")
            assert (statistics.inference_count, statistics.success.count) == (4, 2)
            with pytest.raises(UnknownModel, match="'other' is unknown"):
                await client.infer("other", {"x": ROWS})
            with pytest.raises(InvalidRequest, match="datatype INT64"):
                await client.infer("adder", {"x": ROWS.astype(np.int64)})
            with pytest.raises(InferenceFailed, match="cannot be done"):
                await client.infer("adder", {"x": -ROWS})
            host.ready = False
            assert not await client.is_ready()
            assert not await client.is_ready("adder")
        host.batcher.close()

    run(test())


@both
def test_packed_both_ways(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        host = Host(max_batch_size=64)
        rows = np.ones((500, 3), np.int32)
        app = OipApp(lambda: host)
        async with serving(app) as address, asking(kind, f"http://{address}", gzip=True) as client:
            for binary in (True, False):
                answer = await client.infer("adder", {"x": rows}, binary=binary)
                assert answer["total"].tolist() == [3] * 500
        host.batcher.close()

    run(test())


@both
def test_a_picture(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        spec = TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 4, 4))
        grey = TensorSpec(name="grey", datatype="FP32", shape=(-1,))
        served = variant("grey/1", inputs=(spec,), outputs=(grey,))
        host = Host()
        host.decoder = Decoder()
        host.serve(served, lambda inputs: {"grey": inputs["image"].mean((1, 2, 3), dtype=np.float32)})
        app = OipApp(lambda: host)
        async with serving(app) as address, asking(kind, f"http://{address}") as client:
            for form in ("PNG", "JPEG"):
                answer = await client.infer_picture("adder", encoded(photograph(), form), timeout_s=10, accuracy="fast")
                assert answer.variant == "grey/1"
                assert 0 < answer["grey"][0] < 255
            with pytest.raises(InvalidRequest, match="PNG"):
                await client.infer_picture("adder", b"\x89PNG\r\n\x1a\n")
        host.decoder.close()
        host.batcher.close()

    run(test())


@both
def test_the_server_is_told_the_deadline_and_the_wishes(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        with faulty(BUSY, BUSY, BUSY) as server:
            async with asking(kind, server.url, retries=RetryPolicy(max_attempts=3)) as client:
                with pytest.raises(Overloaded, match=r"queue is full \(attempt 3 of 3\)"):
                    await client.infer(
                        "m", {"x": ROWS}, timeout_s=5, priority=2, accuracy=0.9, tenant="acme", outputs=["y"]
                    )
        said = [orjson.loads(sent.partition(b"\r\n\r\n")[2][: -ROWS.nbytes]) for sent in server.requests]
        first, *_, last = [each["parameters"] for each in said]
        assert first == {
            "timeout": 5_000_000, "priority": 2, "accuracy": 0.9, "tenant": "acme", "binary_data_output": True
        }  # fmt: skip
        assert 4_000_000 < last["timeout"] < 5_000_000
        assert said[0]["outputs"] == [{"name": "y"}]

    run(test())


@both
def test_503_is_tried_again_on_the_same_connection(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        with faulty(BUSY, BUSY, LIVE) as server:
            async with asking(kind, server.url) as client:
                assert (await client.server_metadata()).name == "far"
            assert len(server.requests) == 3
            assert server.connections == 1

    run(test())


@both
def test_retry_after_is_waited_for(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        with faulty(answer(503, b"{}", b"retry-after: 1"), LIVE) as server:
            async with asking(kind, server.url) as client:
                began = time.monotonic()
                await client.server_metadata()
                assert time.monotonic() - began >= 1.0

    run(test())


@both
@pytest.mark.parametrize("first", [RESET, LIVE])
def test_a_connection_that_breaks_before_the_answer_is_made_again(kind: Callable[..., Any], first: object) -> None:
    """Also one that was idle, and closed by the server meanwhile."""

    async def test() -> None:
        plan = [first, LIVE] if first is RESET else [(LIVE,), LIVE]
        with faulty(*plan) as server:
            async with asking(kind, server.url) as client:
                for _ in range(2 - (first is RESET)):
                    assert (await client.server_metadata()).version == "9"
            assert len(server.requests) == 2

    run(test())


@both
def test_an_answer_cut_short_is_not_asked_for_twice(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        for part in (LIVE[:-5], LIVE[:20]):
            with faulty((part,), LIVE) as server:
                async with asking(kind, server.url) as client:
                    with pytest.raises(ServerUnreachable, match="the connection broke"):
                        await client.server_metadata()
                assert len(server.requests) == 1

    run(test())


@both
def test_a_change_is_not_made_twice(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        with faulty(RESET, LIVE) as server:
            async with asking(kind, server.url) as client:
                with pytest.raises(ServerUnreachable):
                    await client.load_model("m")
            assert len(server.requests) == 1

    run(test())


@both
def test_the_repository(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        index = [{"name": "m", "version": "1", "state": "READY", "reason": ""}, {"name": "n"}]
        with faulty(answer(200, orjson.dumps(index)), answer(200), answer(200, b"")) as server:
            async with asking(kind, server.url) as client:
                found = await client.repository_index(ready=True)
                assert [(each.name, each.state) for each in found] == [("m", "READY"), ("n", "")]
                await client.load_model("n", parameters={"variant": "n/int8"})
                await client.unload_model("m")
        lines = [sent.split(b"\r\n")[0] for sent in server.requests]
        assert lines == [
            b"POST /v2/repository/index HTTP/1.1", b"POST /v2/repository/models/n/load HTTP/1.1",
            b"POST /v2/repository/models/m/unload HTTP/1.1",
        ]  # fmt: skip
        assert server.requests[0].endswith(b'{"ready":true}')
        assert server.requests[1].endswith(b'{"parameters":{"variant":"n/int8"}}')

    run(test())


@both
@pytest.mark.parametrize("slow", [
    30.0, Drip(LIVE, 0.05), Drip(b"HTTP/1.1 200 X\r\n" + b"a: b\r\n" * 99, 0.02), Drip(answer(200, b"x" * 999), 0.005),
])  # fmt: skip
def test_one_deadline_for_all_of_it_however_the_server_dawdles(kind: Callable[..., Any], slow: object) -> None:
    """A byte now and then does not buy it more time: in silence, in the head, in the body."""

    async def test() -> None:
        with faulty(slow) as server:
            async with asking(kind, server.url) as client:
                began = time.monotonic()
                with pytest.raises(DeadlineExceeded, match="no answer within"):
                    await client.infer("m", {"x": ROWS}, timeout_s=0.3)
                assert 0.25 < time.monotonic() - began < 3.0
            assert len(server.requests) == 1

    run(test())


@both
def test_nobody_there(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        url = f"http://127.0.0.1:{free_ports(1)[0]}"
        async with asking(kind, url, timeout_s=5) as client:
            assert not await client.is_live()
            with pytest.raises(ServerUnreachable, match=r"nobody took the connection .*attempt 4 of 4"):
                await client.infer("m", {"x": ROWS})
        async with asking(kind, url, retries=NO_RETRIES) as client:
            with pytest.raises(ServerUnreachable):
                await client.metadata("m")

    run(test())


@both
def test_what_is_no_answer_is_said_to_be_none(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        for odd in (answer(200, b"<html>"), answer(302, b"", b"location: /elsewhere"), answer(200, b"[]")):
            with faulty(odd) as server:
                async with asking(kind, server.url) as client:
                    with pytest.raises(ProtocolError):
                        await client.infer("m", {"x": ROWS})

    run(test())


@both
def test_connections_are_bounded_and_shared(kind: Callable[..., Any]) -> None:
    async def test() -> None:
        host = Host(max_batch_size=8)
        app = OipApp(lambda: host)
        async with serving(app) as address, asking(kind, f"http://{address}", max_connections=3) as client:

            async def one(n: int) -> None:
                answer = await client.infer("adder", {"x": np.full((1, 3), n, np.int32)})
                assert answer["total"].tolist() == [3 * n]

            await asyncio.gather(*[one(n) for n in range(60)])
            assert host.batcher.counters.answered == 60
            inner = (client._client if kind is InThread else client)._http._transport
            assert 1 <= (inner.connections if kind is InThread else len(inner._pool.connections)) <= 3
        host.batcher.close()

    run(test())


def test_a_full_pool_says_so() -> None:
    with faulty(30.0, LIVE) as server, Client(server.url, max_connections=1) as client:
        held = threading.Thread(target=client.is_live, kwargs={"timeout_s": 2.0})
        held.start()
        while not server.requests:
            time.sleep(0.005)
        with pytest.raises(DeadlineExceeded, match=r"all 1 connections were in use for 0\.2 s; raise"):
            client.server_metadata(timeout_s=0.2)
        held.join()


def test_a_cancelled_call_leaves_the_client_in_order() -> None:
    async def test() -> None:
        with faulty(30.0, LIVE) as server:
            async with AsyncClient(server.url, max_connections=1) as client:
                with pytest.raises(TimeoutError):
                    await asyncio.wait_for(client.server_metadata(), 0.2)
                assert (await client.server_metadata()).name == "far"

    run(test())


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "", "ftp://h", "http://", "http://[::1", "http://h:port"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(InvalidRequest, match="give one such as http://"):
        Client(url)


def test_a_server_may_stand_behind_a_path_and_want_headers() -> None:
    with faulty(LIVE, LIVE) as server:
        for url in (f"{server.url}/models/a", f"{server.url}/models/a/"):
            with Client(url, headers={"authorization": "Bearer x"}) as client:
                client.server_metadata()
    for sent in server.requests:
        assert sent.startswith(b"GET /models/a/v2 HTTP/1.1\r\n")
        assert b"authorization: bearer x\r\n" in sent.lower()
        assert b"accept-encoding" not in sent.lower()


def test_both_clients_offer_the_same() -> None:
    def public(kind: type[Any]) -> set[str]:
        return {name for name in vars(kind) if not name.startswith("_")}

    assert public(Client) - {"close"} == public(AsyncClient) - {"aclose"}
    assert all(hasattr(client_module, name) for name in client_module.__all__)


def test_it_imports_neither_ray_nor_torch_nor_the_server() -> None:
    code = (
        "import sys, serve_apps.oip.client; "
        "print(sorted({'ray', 'torch', 'PIL', 'uvicorn', 'starlette', 'onnxruntime', 'serve_apps.batcher', "
        "'serve_apps.oip.exchange', 'serve_apps.oip.routes'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
