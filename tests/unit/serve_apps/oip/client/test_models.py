"""The client against hosts that hold real graphs: text, and series of any length."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.variants import Variant
from serve_apps.deployment import ModelHost
from serve_apps.oip.client import AsyncClient, Client, InvalidRequest
from serve_apps.oip.routes import OipApp
from serve_apps.oip.tensors import objects
from tests.unit.serve_apps.gated_model import run
from tests.unit.serve_apps.graphs import words
from tests.unit.serve_apps.oip.served import serving
from train_jobs.compression.compress import build_variants
from train_jobs.compression.spec import CompressSpec
from train_jobs.compression.trained import of_run
from train_jobs.config import TrainConfig
from train_jobs.datasets import ett
from train_jobs.loop import train
from train_jobs.models import RecurrentConfig
from train_jobs.tasks import ForecastConfig

# Serve awaits a deployment's `async __del__`; Python, which collects a host at the end of its test, does not.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'ModelHost.__del__' was never awaited")
WORDS = (
    (objects([b"gr\xc3\xb6sser", "", b"nul\0", "null"]).reshape(2, 2), [[b"gr\xc3\xb6sser", b""], [b"nul\0", b"null"]]),
    (np.array([["größer", "null"]]), [["größer".encode(), b"null"]]),
)
LOOKBACK, PATCH = 48, 4
LSTM = TrainConfig(
    recipe="lstm", dataset="seasonal", task=ForecastConfig(lookback=LOOKBACK, horizon=12), num_workers=1, epochs=1,
    model=RecurrentConfig(hidden=16, patch=PATCH), batch_size=32, lr=5e-3,
)  # fmt: skip
Series = NDArray[np.float32]


@asynccontextmanager
async def hosting(store: ArtifactStore, variant: Variant) -> AsyncIterator[str]:
    """The url of a server of it."""
    host = ModelHost("m", str(store.root), variant.id, {"name": "onnxruntime"})
    await host.reconfigure({})
    app = OipApp(lambda: host)
    async with serving(app) as address:
        yield f"http://{address}"
    await host.__del__()


def test_text_in_every_form_and_by_both_clients(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)

    async def test() -> None:
        async with hosting(store, words(store)) as url, AsyncClient(url, gzip=True) as client:
            [spec] = (await client.metadata("m")).inputs
            assert (spec.datatype, spec.shape) == ("BYTES", (-1, 2))
            assert (await client.config("m")).inputs[0].datatype == "BYTES"
            with Client(url) as other:
                for binary, (sent, expected) in itertools.product((True, False), WORDS):
                    answer = await client.infer("m", {"x": sent}, binary=binary)
                    again = await asyncio.to_thread(other.infer, "m", {"x": sent}, binary=binary)
                    assert answer["y"].tolist() == again["y"].tolist() == expected
            with pytest.raises(InvalidRequest, match="no UTF-8"):
                await client.infer("m", {"x": objects([b"\xff", b"a"]).reshape(1, 2)})

    run(test())


@dataclass(frozen=True)
class Made:
    store: ArtifactStore
    variant: Variant
    series: list[Series]
    """Three of every length, (1, L, C)."""
    alone: list[Series]
    """What the graph answers to each as it is: not padded, in a batch of one."""


@pytest.fixture(scope="module")
def forecaster(tmp_path_factory: pytest.TempPathFactory) -> Made:
    dataset = ett.seasonal(400)
    result = train(LSTM, dataset)
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    model = of_run(result.model, LSTM, dataset, shapes=result.task.shapes)
    variant = next(v for v in build_variants(store, model, dataset, CompressSpec.of({})) if v.name.endswith("/fp32"))
    series = [
        dataset.values[end - length : end][None].astype(np.float32)
        for length in range(PATCH, LOOKBACK + 1, PATCH) for end in (300, 317, 351)
    ]  # fmt: skip
    runtime = load_runtime(store, variant, RuntimeConfig(name="onnxruntime"))
    alone = [runtime.infer({"window": each})["forecast"].astype(np.float32) for each in series]
    runtime.close()
    return Made(store, variant, series, alone)


def assert_close(answered: Series, alone: Series) -> None:
    """In a batch a runtime may add up in another order (tests/contracts/test_sequences.py)."""
    np.testing.assert_allclose(answered, alone, rtol=1e-6, atol=1e-6 * float(np.abs(alone).max()))


@pytest.mark.parametrize("binary", [True, False])
def test_series_of_all_lengths_at_once_are_each_answered_as_if_alone(forecaster: Made, binary: bool) -> None:
    async def test() -> None:
        async with hosting(forecaster.store, forecaster.variant) as url, AsyncClient(url) as client:
            assert (await client.metadata("m")).inputs[0].shape == (-1, -1, forecaster.series[0].shape[2])
            for _ in range(50):  # until some met in a batch
                answers = await asyncio.gather(
                    *(client.infer("m", {"window": each}, binary=binary) for each in forecaster.series)
                )
                for answer, alone in zip(answers, forecaster.alone, strict=True):
                    assert_close(answer["forecast"], alone)
                [statistics] = await client.statistics("m")
                if any(size > 1 for size in statistics.batches):
                    break
            assert statistics.inference_count > statistics.execution_count

    run(test())
    apart = np.concatenate(forecaster.alone)
    assert np.ptp(apart[::3], axis=0).max() > 0.01, "what was there before matters, or the test would prove nothing"


def test_one_request_may_hold_series_of_several_lengths(forecaster: Made) -> None:
    held = np.full((len(forecaster.series), LOOKBACK, forecaster.series[0].shape[2]), np.nan, np.float32)
    for row, each in zip(held, forecaster.series, strict=True):
        row[: each.shape[1]] = each[0]

    async def test() -> None:
        async with hosting(forecaster.store, forecaster.variant) as url, AsyncClient(url) as client:
            answer = await client.infer("m", {"window": held})
            assert_close(answer["forecast"], np.concatenate(forecaster.alone))
            for wrong in (held[:, :6], np.concatenate([held, held], axis=1)):
                with pytest.raises(InvalidRequest, match=f"has {wrong.shape[1]} rows a series"):
                    await client.infer("m", {"window": wrong})
            gap = forecaster.series[-1].copy()
            gap[0, 9] = np.nan
            with pytest.raises(InvalidRequest, match="row 9 has a NaN"):
                await client.infer("m", {"window": gap})

    run(test())
