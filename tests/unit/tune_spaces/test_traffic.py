"""Requests are made of the variant's own tensors, and a server that answers otherwise than the variant is found out."""

from __future__ import annotations

import asyncio

import numpy as np
import orjson
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from cluster.artifacts import ArtifactStore
from cluster.errors import InferenceFailed, InvalidRequest
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.runtimes.base import RuntimeName
from cluster.variants import TensorSpec, Variant
from serve_apps.executor import Arrays, Outputs
from serve_apps.oip.codec import decode
from serve_apps.oip.routes import OipApp
from tests.unit.serve_apps.gated_model import run
from tests.unit.serve_apps.oip.served import Host, serving
from train_jobs.export import to_onnx
from tune_spaces.traffic import check_answers, stock_target, target_of

FEATURES = TensorSpec(name="features", datatype="FP32", shape=(-1, 30))
ODDS = TensorSpec(name="odds", datatype="FP32", shape=(-1, 12))
OTHER = TensorSpec(name="logits", datatype="FP32", shape=(-1, 12))
RUNTIMES: tuple[RuntimeName, ...] = ("onnxruntime", "openvino")


def stored(store: ArtifactStore, name: str, *, seed: int, output: TensorSpec = ODDS) -> Variant:
    """A small layer with weights of its own: 30 features, 12 classes."""
    torch.manual_seed(seed)
    graph = to_onnx(nn.Linear(30, 12), FEATURES, (output.name,))
    variant = Variant(name=name, family="linear", format="onnx", inputs=(FEATURES,), outputs=(output,))
    return store.put(variant, {"model.onnx": graph})


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArtifactStore:
    return ArtifactStore(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def variant(store: ArtifactStore) -> Variant:
    return stored(store, "rows/fp32", seed=0)


@pytest.fixture(scope="module")
def samples() -> NDArray[np.float32]:
    return np.random.default_rng(0).normal(size=(70, 30)).astype(np.float32)


def body_of(request: bytes) -> tuple[str, bytes, dict[str, str]]:
    """First line, body and headers of one prebuilt request."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return first, body, {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}


def test_each_request_holds_one_sample_under_the_name_that_the_variant_gives_it(
    variant: Variant, samples: NDArray[np.float32]
) -> None:
    target = target_of("127.0.0.1", 81, "rows", variant, samples)
    assert len(target.requests) == 64
    for request, sample in zip(target.requests, samples, strict=False):
        first, body, headers = body_of(request)
        assert first == "POST /v2/models/rows/infer HTTP/1.1"
        asked = decode(body, headers, variant.outputs)
        assert list(asked.inputs) == ["features"]
        assert asked.inputs["features"].dtype == np.float32
        assert np.array_equal(asked.inputs["features"], sample[None])
        assert asked.binary_outputs == {"odds": True}


def test_the_baseline_gets_the_same_samples_as_json(samples: NDArray[np.float32]) -> None:
    for request, sample in zip(stock_target("127.0.0.1", 81, samples).requests, samples, strict=False):
        _, body, _ = body_of(request)
        (tensor,) = orjson.loads(body)["inputs"]
        assert tensor["shape"] == [1, 30]
        assert np.array_equal(np.asarray(tensor["data"], np.float32), sample)


def test_samples_that_the_variant_does_not_take_make_no_load(variant: Variant, samples: NDArray[np.float32]) -> None:
    with pytest.raises(InvalidRequest, match="'features' has datatype FP64"):
        target_of("127.0.0.1", 81, "rows", variant, samples.astype(np.float64))
    with pytest.raises(InvalidRequest, match=r"'features' has shape \[1, 29\]"):
        target_of("127.0.0.1", 81, "rows", variant, samples[:, 1:])


async def checked(
    store: ArtifactStore, served: Variant, claimed: Variant, samples: NDArray[np.float32], name: RuntimeName
) -> None:
    """Serve one variant by the real routes and batcher over a socket, and check it against another."""
    config = RuntimeConfig(name=name)
    runtime, asked = load_runtime(store, served, config), 0

    def infer(inputs: Arrays) -> Outputs:
        nonlocal asked
        asked += len(inputs["features"])
        return runtime.infer(inputs)

    host = Host(model_name="rows", max_batch_size=8)
    host.serve(served, infer)
    async with serving(OipApp(lambda: host)) as address:
        where, _, port = address.partition(":")
        target = target_of(where, int(port), "rows", served, samples)
        await asyncio.to_thread(check_answers, store, claimed, target, samples, config)
    assert asked == 64, "every distinct request was sent"


@pytest.mark.parametrize("name", RUNTIMES)
def test_right_answers_pass_in_the_runtime_that_serves(
    store: ArtifactStore, variant: Variant, samples: NDArray[np.float32], name: RuntimeName
) -> None:
    run(checked(store, variant, variant, samples, name))


def test_another_variants_answers_are_found_out(
    store: ArtifactStore, variant: Variant, samples: NDArray[np.float32]
) -> None:
    other = stored(store, "rows/other", seed=1)
    with pytest.raises(InferenceFailed, match=r"sample 0: 127\.0\.0\.1:\d+ answered \[.*, the variant rows/other"):
        run(checked(store, variant, other, samples, "onnxruntime"))


def test_an_answer_under_another_name_is_found_out(
    store: ArtifactStore, variant: Variant, samples: NDArray[np.float32]
) -> None:
    renamed = stored(store, "rows/renamed", seed=0, output=OTHER)
    with pytest.raises(InferenceFailed, match=r"answered outputs \['odds'\], not 'logits'"):
        run(checked(store, variant, renamed, samples, "onnxruntime"))


def test_an_error_is_no_answer(store: ArtifactStore, variant: Variant, samples: NDArray[np.float32]) -> None:
    async def test() -> None:
        host = Host(model_name="rows")
        host.serve(variant, load_runtime(store, variant, RuntimeConfig()).infer)
        async with serving(OipApp(lambda: host)) as address:
            target = target_of("127.0.0.1", int(address.partition(":")[2]), "another", variant, samples)
            await asyncio.to_thread(check_answers, store, variant, target, samples, RuntimeConfig())

    with pytest.raises(InferenceFailed, match="POST /v2/models/another/infer answered 404"):
        run(test())
