"""Seeds where a generator takes latents: over REST and gRPC, alone and among latents that others send.

Real graph, runtime, batcher, routes and gRPC's own client; only Serve is not there.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.errors import InvalidRequest, PayloadTooLarge
from cluster.latents import of_seeds
from cluster.variants import TensorSpec
from serve_apps.deployment import ModelHost
from serve_apps.executor import Arrays, Outputs
from serve_apps.latents import MAX_NUMBERS, Latents
from serve_apps.oip.codec import decode_response, encode_request
from serve_apps.oip.proto import open_inference_grpc_pb2 as oip
from serve_apps.oip.proto import triton_extensions_pb2 as triton
from serve_apps.oip.routes import OipApp
from serve_apps.oip.served import Served
from tests.unit.serve_apps.front.grpc_calls import call, called, infer
from tests.unit.serve_apps.gated_model import run, until
from tests.unit.serve_apps.graphs import generator
from tests.unit.serve_apps.oip.served import Answer, Host, ask, variant

# Serve awaits a deployment's `async __del__`; Python, which collects a host at the end of its test, does not.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'ModelHost.__del__' was never awaited")
Array = NDArray[np.generic]
LATENT = TensorSpec(name="latent", datatype="FP32", shape=(-1, 8))
INFER = "/v2/models/m/infer"
OCTETS = "application/octet-stream"


def latents(*, shape: tuple[int, ...] = (-1, 8)) -> Latents:
    found = Latents.of(variant(prior="normal", inputs=(LATENT.model_copy(update={"shape": shape}),)))
    assert found is not None
    return found


def seeds_of(*values: int) -> NDArray[np.int64]:
    return np.array(values, np.int64)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=5))
def test_each_seed_is_its_row_of_whatever_shape_the_input_has(values: list[int]) -> None:
    inputs = {"seed": seeds_of(*values)}
    taken = latents(shape=(-1, 2, 3))
    assert taken.check(inputs)
    drawn = taken.filled(inputs)["latent"]
    assert drawn.shape == (len(values), 2, 3)
    assert drawn.tobytes() == of_seeds(inputs["seed"], 6).tobytes()


def test_latents_are_left_as_they_came() -> None:
    inputs = {"latent": np.ones((2, 8), np.float32)}
    assert not latents().check(inputs), "the graph's own check is still to come"
    assert latents().filled(inputs) is inputs


@pytest.mark.parametrize(
    "changes", [{"prior": None}, {"prior": "normal", "inputs": (LATENT.model_copy(update={"name": "seed"}),)}]
)
def test_what_is_no_draw_or_is_called_a_seed_itself_is_not_drawn(changes: dict[str, Any]) -> None:
    assert Latents.of(variant(**changes)) is None


REFUSED: dict[str, tuple[dict[str, Array], str]] = {
    "neither": ({"x": seeds_of(1)}, "or in its place 'seed', INT64 \\[-1\\]; the request has \\['x'\\]"),
    "both": ({"seed": seeds_of(1), "latent": np.ones((1, 8), np.float32)}, "stands in the place of 'latent'"),
    "and another": ({"seed": seeds_of(1), "x": seeds_of(1)}, "\\['x'\\] came with it"),
    "a column": ({"seed": seeds_of(1)[:, None]}, "'seed' has shape \\[1, 1\\]; the model takes \\[-1\\]"),
    "no axis": ({"seed": np.array(1)}, "'seed' has shape \\[\\]"),
    "none": ({"seed": seeds_of()}, "'seed' has shape \\[0\\]"),
    "32 bits": ({"seed": seeds_of(1).astype(np.int32)}, "'seed' has datatype INT32; the model takes INT64"),
    "no integer": ({"seed": np.ones(1, np.float32)}, "'seed' has datatype FP32"),
}


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_no_seed_is_refused_and_named(case: str) -> None:
    inputs, complaint = REFUSED[case]
    with pytest.raises(InvalidRequest, match=complaint):
        latents().check(inputs)


def test_more_than_is_drawn_at_once_is_refused_with_the_way_out() -> None:
    most = MAX_NUMBERS // 8
    assert latents().check({"seed": np.arange(most)})
    with pytest.raises(PayloadTooLarge, match=f"{most + 1} seeds of 8 numbers each; at most {most} are taken"):
        latents().check({"seed": np.arange(most + 1)})


# Over the wire.


@asynccontextmanager
async def serving(folder: Path, *, latent: int = 8) -> AsyncIterator[ModelHost]:
    store = ArtifactStore(folder)
    host = ModelHost("m", str(store.root), generator(store, latent=latent).id, {"name": "onnxruntime"})
    await host.reconfigure({})
    try:
        yield host
    finally:
        await host.__del__()


async def posted(host: Any, inputs: Mapping[str, Array], *, binary: bool = True) -> Answer:
    body, headers = encode_request(inputs, binary=binary)
    return await ask(OipApp(lambda: host), "POST", INFER, body, headers)


async def sample(host: Any, inputs: Mapping[str, Array], *, binary: bool = True) -> Array:
    answer = await posted(host, inputs, binary=binary)
    assert answer.status == 200, answer.error
    return decode_response(answer.body, answer.headers)["sample"]


def message(inputs: Mapping[str, Array], *, raw: bool = True) -> Any:
    made = oip.ModelInferRequest(model_name="m")
    for name, array in inputs.items():
        datatype = "INT64" if array.dtype == np.int64 else "FP32"
        entry = made.inputs.add(name=name, datatype=datatype, shape=array.shape)
        if raw:
            made.raw_input_contents.append(array.tobytes())
        else:
            contents = entry.contents.int64_contents if datatype == "INT64" else entry.contents.fp32_contents
            contents.extend(array.ravel().tolist())
    return made


def test_a_seed_is_one_answer_by_every_way(tmp_path: Path) -> None:
    seeds = seeds_of(7, -1, 2**63 - 1)
    drawn = {"latent": of_seeds(seeds, 8)}

    async def test() -> None:
        async with serving(tmp_path) as host, called(host) as channel:
            expected = await sample(host, drawn)
            assert len(np.unique(expected, axis=0)) == 3
            octets = {"content-type": OCTETS, "accept": OCTETS}
            ways: list[bytes] = []
            for _ in range(2):  # the second time it is known by its head, its JSON, or its message
                for binary in (True, False):
                    ways.append((await sample(host, {"seed": seeds}, binary=binary)).tobytes())
                raw = await infer(channel, message({"seed": seeds}))
                typed = await infer(channel, message({"seed": seeds}, raw=False))
                ways.append(raw.raw_output_contents[0])
                ways.append(np.array(typed.outputs[0].contents.fp32_contents, np.float32).tobytes())
                plain = await ask(OipApp(lambda: host), "POST", INFER, drawn["latent"].tobytes(), octets)
                ways.append(plain.body)  # rows of the input itself: seeds have no place there
            assert set(ways) == {expected.tobytes()}
            other = await sample(host, {"seed": seeds + 1 - 2 * (seeds > 7)})  # the known head with other seeds
            assert not (other == expected).any()

    run(test())


@pytest.mark.parametrize("case", ["both", "a column", "32 bits", "too many"])
def test_refusals_are_the_same_over_rest_and_grpc(case: str, tmp_path: Path) -> None:
    latent = MAX_NUMBERS // 4 if case == "too many" else 8
    inputs, status, code = {"seed": np.arange(5)}, 413, grpc.StatusCode.RESOURCE_EXHAUSTED
    if case != "too many":
        inputs, status, code = REFUSED[case][0], 400, grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[assignment]

    async def test() -> None:
        async with serving(tmp_path, latent=latent) as host, called(host) as channel:
            answers = [await posted(host, inputs, binary=binary) for binary in (True, False)]
            assert [answer.status for answer in answers] == [status] * 2
            assert "'seed'" in answers[0].error
            assert answers[0].error == answers[1].error
            if case != "32 bits":  # `message` knows two datatypes
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await infer(channel, message(inputs))
                assert (caught.value.code(), caught.value.details()) == (code, answers[0].error)
            assert (await sample(host, {"seed": seeds_of(7)})).shape == (1, 3), "and it goes on"

    run(test())


@pytest.mark.parametrize("data", ["[1.5]", '["7"]', "[9223372036854775808]", "[null]"])
def test_what_json_says_of_a_seed_must_be_a_whole_number_of_64_bits(data: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with serving(tmp_path) as host:
            body = f'{{"inputs": [{{"name": "seed", "datatype": "INT64", "shape": [1], "data": {data}}}]}}'
            answer = await ask(OipApp(lambda: host), "POST", INFER, body.encode())
            assert answer.status == 400
            assert "seed" in answer.error

    run(test())


def test_the_configuration_offers_the_seed_and_the_metadata_the_graphs_own_input(tmp_path: Path) -> None:
    """A client that builds requests from metadata would send both."""

    async def test() -> None:
        async with serving(tmp_path) as host, called(host) as channel:
            app = OipApp(lambda: host)
            config = (await ask(app, "GET", "/v2/models/m/config")).json()
            assert config["input"] == [
                {"name": "latent", "data_type": "TYPE_FP32", "dims": [8], "optional": True},
                {"name": "seed", "data_type": "TYPE_INT64", "dims": [], "optional": True},
            ]
            told = await call(channel, "ModelConfig", triton.ModelConfigRequest(name="m"), triton.ModelConfigResponse)
            assert [(each.name, each.data_type, list(each.dims), each.optional) for each in told.config.input] == [
                ("latent", triton.TYPE_FP32, [8], True), ("seed", triton.TYPE_INT64, [], True)
            ]  # fmt: skip
            metadata = (await ask(app, "GET", "/v2/models/m")).json()
            assert [spec["name"] for spec in metadata["inputs"]] == ["latent"]

    run(test())


class Gate:
    """sample = latent, three of its numbers; batches wait until it is opened."""

    def __init__(self) -> None:
        self.batches: list[Array] = []
        self.opened = threading.Event()

    def __call__(self, inputs: Arrays) -> Outputs:
        assert list(inputs) == ["latent"]
        self.batches.append(inputs["latent"])
        assert self.opened.wait(20)
        return {"sample": inputs["latent"][:, :3].copy()}


def test_seeds_share_a_batch_with_latents_and_each_gets_its_own_rows() -> None:
    gate = Gate()
    made = variant(
        prior="normal", inputs=(LATENT,), outputs=(TensorSpec(name="sample", datatype="FP32", shape=(-1, 3)),)
    )

    async def test() -> None:
        host = Host(gate, model_name="m")
        host.serve(made, gate)
        host.served = Served("m", host.batcher.models, made.inputs, made.outputs, latents=Latents.of(made))
        first = asyncio.create_task(sample(host, {"seed": seeds_of(0)}))
        await until(lambda: gate.batches)  # the executor is busy: what follows waits for the next batch
        asked = [{"seed": seeds_of(1, 2)}, {"latent": of_seeds(seeds_of(3), 8)}, {"seed": seeds_of(4)}]
        tasks = [asyncio.create_task(sample(host, inputs, binary=n != 2)) for n, inputs in enumerate(asked)]
        await until(lambda: host.batcher.queued == 3)
        gate.opened.set()
        got = [await task for task in (first, *tasks)]
        assert [len(batch) for batch in gate.batches] == [1, 4]
        assert gate.batches[1].tobytes() == of_seeds(seeds_of(1, 2, 3, 4), 8).tobytes()
        np.testing.assert_array_equal(np.concatenate(got), of_seeds(np.arange(5), 8)[:, :3])
        host.batcher.close()

    run(test())


def test_among_others_a_seeds_sample_is_the_one_that_it_is_alone(tmp_path: Path) -> None:
    """In fp32 on one runtime: the latent to the bit, the sample to its last bits."""

    async def test() -> None:
        async with serving(tmp_path) as host:
            alone = [await sample(host, {"seed": seeds_of(n)}) for n in range(24)]
            inputs = [{"seed": seeds_of(n)} if n % 3 else {"latent": of_seeds(seeds_of(n), 8)} for n in range(24)]
            together = await asyncio.gather(*(sample(host, each, binary=bool(n % 2)) for n, each in enumerate(inputs)))
            np.testing.assert_allclose(np.concatenate(together), np.concatenate(alone), rtol=0, atol=1e-6)
            [stats] = (await ask(OipApp(lambda: host), "GET", "/v2/models/m/stats")).json()["model_stats"]
            assert stats["inference_count"] == 48
            assert stats["execution_count"] < 48, "some shared a batch"
            again = [await sample(host, {"seed": seeds_of(7)}) for _ in range(3)]
            assert {each.tobytes() for each in again} == {alone[7].tobytes()}

    run(test())
