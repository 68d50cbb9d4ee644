"""In every runtime and precision a series is answered as if it were alone and not padded.

Alone, padding changes nothing at all. In a batch a runtime may add up in another order: 1e-6 of the values, as without
padding. Dynamic int8 is the exception that train_jobs/compression/dynamic.py tells of: it scales what comes in by its
whole batch, so neighbours, padded or not, move an answer by steps of int8.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.runtimes import Runtime, RuntimeConfig, load_runtime, runtimes_for
from cluster.variants import Variant
from serve_apps.sequences import SequenceBuckets
from train_jobs.compression.compress import build_variants
from train_jobs.compression.spec import CompressSpec
from train_jobs.compression.trained import of_run
from train_jobs.config import TrainConfig
from train_jobs.datasets import ett
from train_jobs.loop import train
from train_jobs.models import RecurrentConfig
from train_jobs.tasks import ForecastConfig

LOOKBACK, PATCH = 48, 4
LSTM = TrainConfig(
    recipe="lstm", dataset="seasonal", task=ForecastConfig(lookback=LOOKBACK, horizon=12), num_workers=1, epochs=2,
    model=RecurrentConfig(hidden=16, layers=2, patch=PATCH), batch_size=32, lr=5e-3,
)  # fmt: skip
SPEC = CompressSpec.of({
    "bf16": ["bf16"], "int8": [{"int8": {"float_outputs": True}}], "int8-dynamic": ["int8_dynamic"],
    "qat": [{"qat": {"finetune": {"epochs": 1}}}], "weights": ["weight_only"], "optimised": ["optimise"],
    "pruned": [{"prune": {"finetune": {"epochs": 1}}}],
})  # fmt: skip
NAMES = ("fp32-torch", "fp32", *SPEC.variants)
Series = NDArray[np.float32]


@dataclass(frozen=True)
class Made:
    store: ArtifactStore
    variants: dict[str, Variant]
    each: list[Series]
    """One of every length, (1, L, C), out of the test part."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    dataset = ett.seasonal(400)
    result = train(LSTM, dataset)
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    model = of_run(result.model, LSTM, dataset, shapes=result.task.shapes)
    variants = {each.name.rpartition("/")[2]: each for each in build_variants(store, model, dataset, SPEC)}
    lengths = range(PATCH, LOOKBACK + 1, PATCH)
    return Made(store, variants, [dataset.values[300 - length : 300][None].astype(np.float32) for length in lengths])


def test_every_pass_takes_it_and_says_which_lengths(made: Made) -> None:
    assert set(made.variants) == set(NAMES)
    for variant in made.variants.values():
        assert variant.sequence is not None
        assert variant.sequence.model_dump() == {
            "axis": 1, "multiple_of": PATCH, "shortest": PATCH, "longest": LOOKBACK
        }
        assert variant.inputs[0].shape[:2] == (-1, -1)
        assert variant.accuracy is not None


def cases() -> list[Any]:
    """Every name in every runtime that may execute it."""
    return [
        pytest.param(name, runtime, id=f"{name}-{runtime}")
        for name in NAMES for runtime in runtimes_for("torch_export" if name == "fp32-torch" else "onnx")
        if (name, runtime) != ("int8-dynamic", "openvino")  # ONNX Runtime's own operator
    ]  # fmt: skip


@pytest.fixture
def loaded(made: Made, name: str, runtime: Any) -> Iterator[Runtime]:
    one = load_runtime(made.store, made.variants[name], RuntimeConfig(name=runtime))
    yield one
    one.close()


def forecast(runtime: Runtime, series: NDArray[Any]) -> Series:
    return runtime.infer({"window": series})["forecast"].astype(np.float32)


@pytest.mark.parametrize(("name", "runtime"), cases())
def test_padding_changes_no_answer(made: Made, loaded: Runtime, name: str) -> None:
    buckets = SequenceBuckets.of(made.variants[name])
    assert buckets is not None
    padded = SequenceBuckets("window", made.variants[name].sequence, [LOOKBACK])  # type: ignore[arg-type]
    alone = np.concatenate([forecast(loaded, series) for series in made.each])
    assert np.isfinite(alone).all()
    assert np.ptp(alone, axis=0).max() > 0.01, "what was there before matters, or the test would prove nothing"
    for chosen in (buckets, padded):
        np.testing.assert_array_equal(
            np.concatenate([forecast(loaded, chosen.prepare(series)) for series in made.each]), alone
        )
    together = forecast(loaded, np.concatenate([padded.prepare(series) for series in made.each]))
    if name == "int8-dynamic":
        np.testing.assert_allclose(together, alone, atol=0.05 * np.ptp(alone))
    else:
        np.testing.assert_allclose(together, alone, rtol=1e-6, atol=1e-6 * float(np.abs(alone).max()))


@pytest.mark.parametrize(("name", "runtime"), cases())
def test_what_is_short_is_not_answered_as_if_noughts_came_after_it(made: Made, loaded: Runtime, name: str) -> None:
    short = made.each[2]
    noughts = np.concatenate([short, np.zeros_like(made.each[-1][:, short.shape[1] :])], axis=1)
    assert np.abs(forecast(loaded, noughts) - forecast(loaded, short)).max() > 0.05
