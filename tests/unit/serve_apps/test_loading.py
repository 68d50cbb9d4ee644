"""Loading: what is served is warm for every batch size it will meet, and a graph that does not run is never served."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cluster.artifacts import ArtifactStore
from cluster.errors import ArtifactError, ConfigError, InferenceFailed
from cluster.runtimes import RuntimeConfig, runtimes_for
from cluster.runtimes.onnxruntime_runtime import OnnxRuntime
from serve_apps import loading
from serve_apps.loading import load
from tests.unit.serve_apps.graphs import linear, stuck


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The batch sizes that ONNX Runtime was given, by the true runtime."""
    sizes: list[int] = []
    true_infer = OnnxRuntime.infer

    def infer(self: OnnxRuntime, inputs: Any) -> Any:
        sizes.append(len(inputs["x"]))
        return true_infer(self, inputs)

    monkeypatch.setattr(OnnxRuntime, "infer", infer)
    return sizes


@pytest.mark.parametrize("most", [1, 2, 7, 32, 33])
def test_every_batch_size_is_warm_and_powers_of_two_come_first(
    store: ArtifactStore, executed: list[int], most: int
) -> None:
    loaded = load(store, linear(store), RuntimeConfig(), max_batch_size=most)
    assert set(executed) == set(range(1, most + 1))
    powers = [size for size in (1, 2, 4, 8, 16, 32) if size <= most]
    assert list(dict.fromkeys(executed))[: len(powers)] == powers
    assert loaded.warm_to == most
    assert loaded.model.seconds.keys() == {*powers, most}, "what the batcher is told before it has seen any"
    assert all(seconds > 0 for seconds in loaded.model.seconds.values())


def test_a_slow_model_is_warmed_up_for_a_limited_time(
    store: ArtifactStore, executed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "_WARM_UP_S", 0.0)
    assert load(store, linear(store), RuntimeConfig(), max_batch_size=32).warm_to == 32
    assert executed == [1]


def test_what_serves_goes_on_only_for_the_same_model_runtime_and_sizes(store: ArtifactStore) -> None:
    one, other = linear(store), linear(store, scale=2.0)
    loaded = load(store, one, RuntimeConfig(), max_batch_size=8)
    assert loaded.serves(one, RuntimeConfig(), 8)
    assert loaded.serves(one, RuntimeConfig(), 1)
    assert not loaded.serves(one, RuntimeConfig(), 9)
    assert not loaded.serves(other, RuntimeConfig(), 8)
    assert not loaded.serves(one, RuntimeConfig(threads=2), 8)


@pytest.mark.parametrize("name", runtimes_for("onnx"))
@pytest.mark.parametrize("streams", [1, 2])
def test_what_is_loaded_computes(store: ArtifactStore, name: str, streams: int) -> None:
    config = RuntimeConfig(name=name, streams=streams)  # type: ignore[arg-type]
    loaded = load(store, linear(store, scale=3.0), config, max_batch_size=4)
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    np.testing.assert_allclose(loaded.runtimes[0].infer({"x": x})["y"], 3.0 * x)
    loaded.runtimes[0].close()


def test_a_graph_that_does_not_run_is_not_loaded_and_leaves_nothing_open(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed: list[OnnxRuntime] = []
    true_close = OnnxRuntime.close
    monkeypatch.setattr(OnnxRuntime, "close", lambda self: (closed.append(self), true_close(self))[1])
    with pytest.raises(InferenceFailed, match="ONNX Runtime failed"):
        load(store, stuck(store), RuntimeConfig(), max_batch_size=2)
    assert len(closed) == 1


def test_what_cannot_be_loaded_says_why(store: ArtifactStore) -> None:
    variant = linear(store)
    with pytest.raises(ConfigError, match="runtime 'torch' cannot execute format 'onnx'"):
        load(store, variant, RuntimeConfig(name="torch"), max_batch_size=1)
    broken = store.put(variant, {"model.onnx": b"no graph"})
    with pytest.raises(ArtifactError, match="cannot load"):
        load(store, broken, RuntimeConfig(), max_batch_size=1)
