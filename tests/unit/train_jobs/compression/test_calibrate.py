"""Ranges of activations: exact extremes, percentiles, what an entropy search cuts off; the same in any batches."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray
from onnx import helper

from cluster.errors import InvalidRequest
from tests.unit.train_jobs.compression.graphs import chain, normal
from train_jobs.compression import calibrate
from train_jobs.compression.calibrate import Method, activations, calibrated

METHODS: list[Method] = ["minmax", "percentile", "entropy"]


def layers(width: int = 16) -> onnx.ModelProto:
    return onnx.load_from_string(
        chain(
            helper.make_node("Gemm", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["r"]),
            helper.make_node("Gemm", ["r", "v"], ["y"]), inputs=[width], w=normal(width, 8), v=normal(8, 4, seed=1),
        )
    )  # fmt: skip


def of(x: NDArray[np.float32], method: Method) -> dict[str, tuple[float, float]]:
    return dict(calibrated(layers(x.shape[1]), {"x": x}, ["Gemm", "Relu"], method))


@settings(max_examples=30, deadline=None)
@given(hnp.arrays(np.float32, st.tuples(st.integers(1, 70), st.integers(1, 4)), elements=st.floats(-50, 50, width=32)))
def test_the_extremes_are_exact(x: NDArray[np.float32]) -> None:
    found = of(x, "minmax")
    assert found.keys() == {"x", "a", "r", "y"}, "and no weights"
    assert found["x"] == (float(x.min()), float(x.max()))
    assert found["r"] == (max(0.0, found["a"][0]), max(0.0, found["a"][1]))


@settings(max_examples=30, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 70), st.just(3)), elements=st.floats(-50, 50, width=32)),
    st.sampled_from(METHODS),
)
def test_no_method_reaches_beyond_the_extremes(x: NDArray[np.float32], method: Method) -> None:
    widest = of(x, "minmax")
    for name, (low, high) in of(x, method).items():
        assert widest[name][0] <= low <= high <= widest[name][1]


@pytest.mark.parametrize("method", METHODS)
def test_batches_do_not_show(method: Method, monkeypatch: pytest.MonkeyPatch) -> None:
    x = normal(100, 16, seed=2)
    found = of(x, method)
    monkeypatch.setattr(calibrate, "_BATCH", 7)
    for again in (of(x, method), of(np.roll(x, 50, axis=0), method)):
        for name, ends in found.items():
            assert again[name] == pytest.approx(ends, rel=1e-3)


def test_no_more_than_a_batch_is_held() -> None:
    batches = activations(layers(), {"x": normal(200, 16)}, ["a"])
    assert [values["a"].shape for values in batches] == [(64, 8), (64, 8), (64, 8), (8, 8)]


def test_one_value_in_a_hundred_thousand_is_beyond_the_percentile() -> None:
    x = np.random.default_rng(0).uniform(-1, 1, (20_000, 16)).astype(np.float32)
    x[0, 0], x[1, 0] = 100.0, -50.0
    assert of(x, "minmax")["x"] == (-50.0, 100.0)
    low, high = of(x, "percentile")["x"]
    assert high == pytest.approx(1.0, abs=2 * 100 / 2048)
    assert low == -high
    x[2:20, 0] = 100.0
    assert of(x, "percentile")["x"] == (-50.0, 100.0), "six in a hundred thousand are too many to cut off"


def test_entropy_cuts_off_what_is_rare_and_keeps_what_is_not() -> None:
    x = normal(640, 16, seed=2)
    widest = float(np.abs(x).max())
    assert of(x, "entropy")["x"][1] > 0.7 * widest, "a bell has little to cut off"
    x[0, 0] = 40.0
    assert widest * 0.7 < of(x, "entropy")["x"][1] < 20


@pytest.mark.parametrize("signed", [True, False])
def test_what_is_spread_evenly_is_kept_whole(signed: bool) -> None:
    assert calibrate._most_telling(np.ones(2048, np.int64), signed=signed) == 2048


def test_nothing_but_zeros_has_no_range() -> None:
    for method in METHODS:
        assert of(np.zeros((5, 16), np.float32), method)["x"] == (0.0, 0.0)


def test_a_value_that_is_not_finite_names_its_tensor_and_node() -> None:
    graph = onnx.load_from_string(
        chain(
            helper.make_node("Log", ["x"], ["a"], name="log"), helper.make_node("Gemm", ["a", "w"], ["y"]), inputs=[16],
            w=normal(16, 4),
        )
    )  # fmt: skip
    with pytest.raises(InvalidRequest, match="tensor 'a' of log is not finite on the calibration samples"):
        calibrated(graph, {"x": np.zeros((4, 16), np.float32)}, ["Gemm"], "minmax")
    with pytest.raises(InvalidRequest, match="tensor 'x' of the input is not finite"):
        of(np.full((4, 16), np.nan, np.float32), "entropy")


def test_a_graph_that_does_not_run_on_the_samples_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="ONNX Runtime cannot run this graph on the samples"):
        calibrated(layers(16), {"x": normal(4, 15)}, ["Gemm"], "minmax")
