"""Every method, asked by gRPC's own client through both servers: the same answers, the same refusals."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import numpy as np
import pytest

from cluster.errors import InferenceFailed, NotReady, Overloaded, QuotaExceeded, SluiceError
from serve_apps.oip.proto import health_pb2 as health
from serve_apps.oip.proto import open_inference_grpc_pb2 as oip
from serve_apps.oip.proto import triton_extensions_pb2 as triton
from tests.unit.serve_apps.front.grpc_calls import SERVERS, call, called, infer, infer_request, totals
from tests.unit.serve_apps.gated_model import GatedModel, run, until
from tests.unit.serve_apps.oip.served import Host, variant

Code = grpc.StatusCode
both = pytest.mark.parametrize("server", SERVERS)


async def refused(awaited: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await awaited
    return caught.value


@both
def test_all_that_is_told_of_a_server_and_its_model(server: str) -> None:
    async def test() -> None:
        host = Host()
        version = host.variant.id
        async with called(host, server) as channel:
            assert (await call(channel, "ServerLive", oip.ServerLiveRequest(), oip.ServerLiveResponse)).live
            assert (await call(channel, "ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse)).ready
            told = await call(channel, "ServerMetadata", oip.ServerMetadataRequest(), oip.ServerMetadataResponse)
            assert told.name == "sluice"
            assert "model_repository" in told.extensions
            for asked in ("", version):
                ready = await call(
                    channel, "ModelReady", oip.ModelReadyRequest(name="adder", version=asked), oip.ModelReadyResponse
                )
                assert ready.ready
            model = await call(
                channel, "ModelMetadata", oip.ModelMetadataRequest(name="adder"), oip.ModelMetadataResponse
            )
            assert (model.name, list(model.versions), model.platform) == ("adder", [version], "onnx_onnxv1")
            [spec] = model.inputs
            assert (spec.name, spec.datatype, list(spec.shape)) == ("x", "INT32", [-1, 3])
            config = (
                await call(channel, "ModelConfig", triton.ModelConfigRequest(name="adder"), triton.ModelConfigResponse)
            ).config
            assert (config.name, config.backend, config.max_batch_size) == ("adder", "onnxruntime", 32)
            assert [(each.data_type, list(each.dims)) for each in config.input] == [(triton.TYPE_INT32, [3])]
            index = await call(
                channel, "RepositoryIndex", triton.RepositoryIndexRequest(), triton.RepositoryIndexResponse
            )
            assert [(each.name, each.version, each.state) for each in index.models] == [("adder", version, "READY")]
            await infer(channel, infer_request([1, 2, 3]))
            [counted] = (
                await call(
                    channel, "ModelStatistics", triton.ModelStatisticsRequest(name="adder"),
                    triton.ModelStatisticsResponse,
                )
            ).model_stats  # fmt: skip
            assert (counted.name, counted.inference_count, counted.inference_stats.success.count) == ("adder", 1, 1)
        host.batcher.close()

    run(test())


@both
def test_an_inference_is_answered_with_its_id_and_who_made_it(server: str) -> None:
    async def test() -> None:
        host = Host()
        async with called(host, server) as channel:
            for number in range(3):  # the first is decoded, the others are like it
                answer = await infer(channel, infer_request([number, 2, 3], [4, 5, 6], id=f"r{number}"))
                assert totals(answer) == [number + 5, 15]
                assert (answer.id, answer.model_name, answer.model_version) == (f"r{number}", "adder", host.variant.id)
                assert answer.parameters["variant"].string_param == host.variant.name
            assert totals(await infer(channel, infer_request([7, 0, 0], model_version=host.variant.id))) == [7]
            assert (await infer(channel, infer_request([7, 0, 0]))).id == ""
            typed = infer_request([1, 2, 3])
            typed.ClearField("raw_input_contents")
            typed.inputs[0].contents.int_contents.extend([1, 2, 3])
            typed.outputs.add(name="twice")
            answer = await infer(channel, typed)
            [twice] = answer.outputs
            assert list(twice.contents.fp32_contents) == [2.0, 4.0, 6.0]
            assert not answer.raw_output_contents
        host.batcher.close()

    run(test())


@both
@pytest.mark.parametrize("packing", [grpc.Compression.Gzip, grpc.Compression.Deflate])
def test_packed_messages_are_read(server: str, packing: Any) -> None:
    async def test() -> None:
        host = Host()
        async with called(host, server) as channel:
            answer = await infer(channel, infer_request(*[[n, n, n] for n in range(400)]), compression=packing)
            assert totals(answer) == [3 * n for n in range(400)]
        host.batcher.close()

    run(test())


@both
def test_what_is_wrong_has_a_code_and_a_name(server: str) -> None:
    async def test() -> None:
        host = Host()
        async with called(host, server) as channel:
            cases = [
                (infer_request([1, 2, 3], model="näh%"), Code.NOT_FOUND, "'näh%' is unknown"),
                (infer_request([1, 2, 3], model_version="7"), Code.NOT_FOUND, "version '7'"),
                (infer_request([1, 2]), Code.INVALID_ARGUMENT, "shape"),
                (infer_request([-1, 2, 3]), Code.INTERNAL, "cannot be done"),
                (oip.ModelInferRequest(model_name="adder"), Code.INVALID_ARGUMENT, "`inputs` is empty"),
            ]
            for message, code, says in cases:
                error = await refused(infer(channel, message))
                assert error.code() == code
                assert says in error.details()
            unknown = call(channel, "ModelMetadata", oip.ModelMetadataRequest(name="no"), oip.ModelMetadataResponse)
            assert (await refused(unknown)).code() == Code.NOT_FOUND
            for asked in (oip.ModelReadyRequest(name="no"), oip.ModelReadyRequest(name="adder", version="7")):
                error = await refused(call(channel, "ModelReady", asked, oip.ModelReadyResponse))
                assert error.code() == Code.NOT_FOUND
            odd = await refused(infer(channel, infer_request([1, 2, 3]), metadata=[("sluice-priority", "high")]))
            assert odd.code() == Code.INVALID_ARGUMENT
            nobody = call(channel, "SystemSharedMemoryStatus", oip.ServerLiveRequest(), oip.ServerLiveResponse)
            assert (await refused(nobody)).code() == Code.UNIMPLEMENTED
            assert totals(await infer(channel, infer_request([1, 2, 3]))) == [6]
        host.batcher.close()

    run(test())


@both
@pytest.mark.parametrize(
    ("error", "code", "retry"),
    [
        (Overloaded("full", retry_after_s=1.2), Code.UNAVAILABLE, "2"), (NotReady("soon"), Code.UNAVAILABLE, "1"),
        (QuotaExceeded("enough", retry_after_s=9), Code.RESOURCE_EXHAUSTED, "9"),
        (InferenceFailed("no"), Code.INTERNAL, None),
    ],
)  # fmt: skip
def test_a_refusal_says_when_to_try_again(server: str, error: SluiceError, code: Any, retry: str | None) -> None:
    class Refusing(Host):
        def put(self, request: Any) -> None:
            raise error

    async def test() -> None:
        host = Refusing()
        async with called(host, server) as channel:
            told = await refused(infer(channel, infer_request([1, 2, 3])))
            assert (told.code(), told.details()) == (code, str(error))
            assert dict(told.trailing_metadata()).get("retry-after") == retry
        host.batcher.close()

    run(test())


@both
@pytest.mark.parametrize(("own_us", "call_s"), [(None, 0.2), (200_000, 30.0), (30_000_000, 0.2)])
def test_the_smaller_of_both_times_holds(server: str, own_us: int | None, call_s: float) -> None:
    async def test() -> None:
        model = GatedModel()
        host = Host(lambda inputs: {"total": inputs["x"].sum(1), "twice": model({"x": inputs["x"]})["y"]})
        async with called(host, server) as channel:
            first = asyncio.ensure_future(infer(channel, infer_request([1, 2, 3])))
            await until(lambda: model.waiting)
            late = infer_request([4, 5, 6])
            if own_us is not None:
                late.parameters["timeout"].int64_param = own_us
            error = await refused(infer(channel, late, timeout=call_s))
            assert error.code() == Code.DEADLINE_EXCEEDED
            await until(lambda: host.counters.expired + host.counters.cancelled == 1)
            model.open = True
            model.permit()
            await first
            assert model.calls == [[1]], "nobody executed what was late"
        host.batcher.close()

    run(test())


@both
def test_a_call_that_is_cancelled_leaves_the_queue(server: str) -> None:
    async def test() -> None:
        model = GatedModel()
        host = Host(lambda inputs: {"total": inputs["x"].sum(1), "twice": model({"x": inputs["x"]})["y"]})
        async with called(host, server) as channel:
            first = asyncio.ensure_future(infer(channel, infer_request([1, 2, 3])))
            await until(lambda: model.waiting)
            leaving = infer(channel, infer_request([4, 5, 6]))
            waiting = asyncio.ensure_future(leaving.code())
            await until(lambda: host.batcher.queued == 1)
            leaving.cancel()
            assert await waiting == Code.CANCELLED
            await until(lambda: host.counters.cancelled == 1 and host.batcher.queued == 0)
            model.open = True
            model.permit()
            await first
            assert model.calls == [[1]]
        host.batcher.close()

    run(test())


@both
def test_health_as_load_balancers_ask_for_it(server: str) -> None:
    async def test() -> None:
        host = Host()
        path = "/grpc.health.v1.Health/Check"
        async with called(host, server) as channel:
            for ready, status in ((True, "SERVING"), (False, "NOT_SERVING")):
                host.ready = ready
                told = await call(channel, path, health.HealthCheckRequest(), health.HealthCheckResponse)
                assert health.HealthCheckResponse.ServingStatus.Name(told.status) == status
                asked = call(channel, "ServerReady", oip.ServerReadyRequest(), oip.ServerReadyResponse)
                assert (await asked).ready is ready
            unknown = call(channel, path, health.HealthCheckRequest(service="other"), health.HealthCheckResponse)
            assert (await refused(unknown)).code() == Code.NOT_FOUND
        host.batcher.close()

    run(test())


@both
def test_load_and_unload_reach_the_host(server: str) -> None:
    class Loading(Host):
        asked: list[Any] = []  # noqa: RUF012

        async def load(self, parameters: Any) -> None:
            self.asked.append(("load", dict(parameters)))

        async def unload(self, parameters: Any) -> None:
            raise Overloaded("not now")

    async def test() -> None:
        host = Loading()
        async with called(host, server) as channel:
            wanted = triton.RepositoryModelLoadRequest(model_name="adder")
            wanted.parameters["variant"].string_param = "sum/2"
            await call(channel, "RepositoryModelLoad", wanted, triton.RepositoryModelLoadResponse)
            assert host.asked == [("load", {"variant": "sum/2"})]
            unload = triton.RepositoryModelUnloadRequest(model_name="adder")
            error = await refused(call(channel, "RepositoryModelUnload", unload, triton.RepositoryModelUnloadResponse))
            assert error.code() == Code.UNAVAILABLE
            unload.model_name = "other"
            error = await refused(call(channel, "RepositoryModelUnload", unload, triton.RepositoryModelUnloadResponse))
            assert error.code() == Code.NOT_FOUND
        host.batcher.close()

    run(test())


def test_what_was_kept_of_a_message_goes_with_its_models() -> None:
    async def test() -> None:
        host = Host()
        async with called(host) as channel:
            first = await infer(channel, infer_request([1, 2, 3]))
            other = variant("sum/2", family="other")
            host.serve(other)
            second = await infer(channel, infer_request([1, 2, 3]))
            assert (first.model_version, second.model_version) == (variant().id, other.id)
            np.testing.assert_array_equal(totals(first), totals(second))
        host.batcher.close()

    run(test())
