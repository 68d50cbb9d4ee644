"""Methods of a deployment as Serve's own proxy calls them: the same answers and statuses as on the port."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest

from cluster.errors import NotReady, Overloaded
from serve_apps.deployment import ModelHost
from serve_apps.front import grpc_methods, serve_hook
from serve_apps.oip.grpc_service import GrpcService
from serve_apps.oip.proto import open_inference_grpc_pb2 as oip
from tests.unit.serve_apps.front.grpc_calls import infer_request, totals
from tests.unit.serve_apps.front.test_grpc_protocol import run
from tests.unit.serve_apps.oip.served import Host

Code = grpc.StatusCode


class Context:
    """What the methods use of Serve's RayServegRPCContext."""

    def __init__(self, *metadata: tuple[str, str]) -> None:
        self._metadata = list(metadata)
        self.code: grpc.StatusCode | None = None
        self.details = ""
        self.trailing = [("request_id", "7")]

    def invocation_metadata(self) -> list[tuple[str, str]]:
        return self._metadata

    def trailing_metadata(self) -> list[tuple[str, str]]:
        return self.trailing

    def set_code(self, code: grpc.StatusCode) -> None:
        self.code = code

    def set_details(self, details: str) -> None:
        self.details = details

    def set_trailing_metadata(self, metadata: list[tuple[str, str]]) -> None:
        self.trailing = metadata


@pytest.fixture
def host() -> Iterator[Callable[[], Host]]:
    """Finds the replica's, which is made on the loop that uses it."""
    made: list[Host] = []

    def find() -> Host:
        if not made:
            made.append(Host())
        return made[0]

    yield find
    for each in made:
        each.batcher.close()


async def asked(find: Any, name: str, message: Any, context: Context) -> bytes:
    service = GrpcService(find)
    path = next(path for path in service.paths if path.endswith(f"/{name}"))
    got = await grpc_methods._method(service, path)(object(), message.SerializeToString(), grpc_context=context)
    return got.SerializeToString()


def test_a_deployment_has_a_method_for_each_call() -> None:
    for path in GrpcService(serve_hook.servable).paths:
        name = path.rsplit("/", 1)[1]
        assert getattr(ModelHost, name).__name__ == name
    assert pickle.loads(pickle.dumps(ModelHost)) is ModelHost


def test_an_inference_is_answered(host: Any) -> None:
    async def test() -> None:
        context = Context()
        got = await asked(host, "ModelInfer", infer_request([1, 2, 3]), context)
        assert totals(oip.ModelInferResponse.FromString(got)) == [6]
        assert (context.code, context.trailing) == (None, [("request_id", "7")])

    run(test())


def test_wishes_and_refusals_travel(host: Any) -> None:
    async def test() -> None:
        context = Context(("sluice-priority", "high"), ("user-agent", "x"))
        await asked(host, "ModelInfer", infer_request([1, 2, 3]), context)
        assert context.code == Code.INVALID_ARGUMENT
        assert "priority" in context.details
        context = Context()
        await asked(host, "ModelReady", oip.ModelReadyRequest(name="nobody"), context)
        assert (context.code, "nobody" in context.details) == (Code.NOT_FOUND, True)

        def put(request: Any) -> None:
            raise Overloaded("full", retry_after_s=2.5)

        host().put = put
        context = Context()
        assert await asked(host, "ModelInfer", infer_request([1, 2, 3]), context) == b""
        assert (context.code, context.details) == (Code.UNAVAILABLE, "full")
        assert context.trailing == [("request_id", "7"), ("retry-after", "3")]

    run(test())


def test_a_method_that_serve_cancels_leaves_the_queue(host: Any) -> None:
    async def test() -> None:
        held: list[Any] = []
        cancelled: list[Any] = []
        found = host()
        found.put, found.cancel = held.append, cancelled.append
        task = asyncio.ensure_future(asked(host, "ModelInfer", infer_request([1, 2, 3]), Context()))
        while not held:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert cancelled == held

    run(test())


def test_a_replica_that_is_not_whole_says_so() -> None:
    async def test() -> None:
        def nobody() -> Any:
            raise NotReady("still starting")

        context = Context()
        await asked(nobody, "ModelInfer", infer_request([1, 2, 3]), context)
        assert (context.code, context.details) == (Code.UNAVAILABLE, "still starting")

    run(test())
