"""StreamedRuntime splits what has rows, and only that; its lanes compute side by side and never two threads in one.

The contract of all runtimes (tests/contracts/test_streams.py) runs on real lanes; here some are made to meet or fail.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from cluster.artifacts import ArtifactStore
from cluster.errors import InferenceFailed, InvalidRequest
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.runtimes.streams import StreamedRuntime
from cluster.variants import TensorSpec, Variant

ROWS = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
SUMS = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))
VARIANT = Variant(name="v", family="f", format="onnx", inputs=(ROWS,), outputs=(SUMS,))
CONFIG = RuntimeConfig(streams=3)


class Lane:
    """Answers with twice its input and notes it; `barrier`: only when all lanes are in `infer` at once."""

    name = "onnxruntime"
    config = RuntimeConfig()

    def __init__(self, barrier: threading.Barrier | None = None, *, fails: bool = False, slow_s: float = 0.0) -> None:
        self.barrier, self.fails, self.slow_s = barrier, fails, slow_s
        self.seen: list[NDArray[np.generic]] = []
        self.closed = 0
        self.left = 0

    def infer(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        if self.closed:
            raise InferenceFailed("this runtime is closed; load the variant again")
        self.seen.append(inputs["x"])
        if self.barrier is not None:
            self.barrier.wait(timeout=60)
        time.sleep(self.slow_s)
        self.left += 1
        if self.fails:
            raise InferenceFailed("this lane failed")
        return {"y": inputs["x"].astype(np.float32) * 2}

    def close(self) -> None:
        self.closed += 1


def rows(count: int) -> NDArray[np.float32]:
    return np.arange(2.0 * count, dtype=np.float32).reshape(count, 2)


@pytest.mark.parametrize(("count", "parts"), [(1, [1]), (2, [1, 1]), (3, [1, 1, 1]), (7, [2, 2, 3]), (8, [2, 3, 3])])
def test_rows_are_split_in_order_and_near_equal(count: int, parts: list[int]) -> None:
    lanes = [Lane() for _ in range(3)]
    runtime = StreamedRuntime(lanes, VARIANT, CONFIG)
    np.testing.assert_array_equal(runtime.infer({"x": rows(count)})["y"], rows(count) * 2)
    assert [len(lane.seen[0]) for lane in lanes if lane.seen] == parts
    np.testing.assert_array_equal(np.concatenate([lane.seen[0] for lane in lanes if lane.seen]), rows(count))
    runtime.close()


def test_the_lanes_compute_side_by_side() -> None:
    """Each waits until the others are computing too."""
    barrier = threading.Barrier(3)
    runtime = StreamedRuntime([Lane(barrier) for _ in range(3)], VARIANT, CONFIG)
    for _ in range(3):
        np.testing.assert_array_equal(runtime.infer({"x": rows(6)})["y"], rows(6) * 2)
    runtime.close()


@pytest.mark.parametrize("which", [0, 1, 2])
def test_after_a_failure_no_lane_is_still_at_work(which: int) -> None:
    lanes = [Lane(fails=number == which, slow_s=0.0 if number == which else 0.1) for number in range(3)]
    runtime = StreamedRuntime(lanes, VARIANT, CONFIG)
    with pytest.raises(InferenceFailed, match="this lane failed"):
        runtime.infer({"x": rows(6)})
    assert [lane.left for lane in lanes] == [1, 1, 1]
    runtime.close()


def test_a_mistake_is_told_with_the_shape_that_was_sent() -> None:
    runtime = StreamedRuntime([Lane() for _ in range(3)], VARIANT, CONFIG)
    with pytest.raises(InvalidRequest, match=r"has shape \[6, 3\]"):
        runtime.infer({"x": np.zeros((6, 3), np.float32)})
    with pytest.raises(InvalidRequest, match="'z'"):
        runtime.infer({"x": rows(6), "z": np.float32(1)})
    runtime.close()


def test_close_frees_every_lane_and_says_so_afterwards() -> None:
    lanes = [Lane() for _ in range(3)]
    runtime = StreamedRuntime(lanes, VARIANT, CONFIG)
    before = threading.active_count()
    runtime.infer({"x": rows(3)})
    runtime.close()
    assert all(lane.closed for lane in lanes)
    assert threading.active_count() <= before
    with pytest.raises(InferenceFailed, match="closed"):
        runtime.infer({"x": rows(3)})


# Graphs whose rows are not all there is: whole, on one lane.

NODES = {
    "fixed": ([4, 2], [4, 2], helper.make_node("Add", ["x", "x"], ["y"])),
    "reduced": ([-1, 2], [1, 2], helper.make_node("ReduceSum", ["x", "axes"], ["y"])),
}


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("kind", list(NODES))
def test_what_has_no_rows_to_split_goes_to_one_lane(tmp_path: Path, kind: str, name: str) -> None:
    taken, given, node = NODES[kind]
    ports = [
        helper.make_tensor_value_info(port, TensorProto.FLOAT, [None if size < 0 else size for size in shape])
        for port, shape in (("x", taken), ("y", given))
    ]
    axes = helper.make_tensor("axes", TensorProto.INT64, [1], [0])
    graph = helper.make_graph([node], "g", ports[:1], ports[1:], [axes] if kind == "reduced" else [])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    specs = [ROWS.model_copy(update={"shape": tuple(taken)}), SUMS.model_copy(update={"shape": tuple(given)})]
    store = ArtifactStore(tmp_path)
    variant = store.put(
        VARIANT.model_copy(update={"inputs": (specs[0],), "outputs": (specs[1],)}),
        {"model.onnx": model.SerializeToString()},
    )
    runtime = load_runtime(store, variant, RuntimeConfig.model_validate({"name": name, "streams": 2}))
    expected = rows(4) * 2 if kind == "fixed" else rows(4).sum(0, keepdims=True)
    np.testing.assert_allclose(runtime.infer({"x": rows(4)})["y"], expected)
    runtime.close()


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_two_inputs_are_split_alike(tmp_path: Path, name: str) -> None:
    ports = [helper.make_tensor_value_info(port, TensorProto.FLOAT, [None, 2]) for port in ("x", "z", "y")]
    graph = helper.make_graph([helper.make_node("Sub", ["x", "z"], ["y"])], "g", ports[:2], ports[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    store = ArtifactStore(tmp_path)
    inputs = (ROWS, ROWS.model_copy(update={"name": "z"}))
    variant = store.put(VARIANT.model_copy(update={"inputs": inputs}), {"model.onnx": model.SerializeToString()})
    runtime = load_runtime(store, variant, RuntimeConfig.model_validate({"name": name, "streams": 2}))
    np.testing.assert_array_equal(runtime.infer({"x": rows(5), "z": rows(5) * 3})["y"], rows(5) * -2)
    with pytest.raises(InferenceFailed):
        runtime.infer({"x": rows(5), "z": rows(3)})
    np.testing.assert_array_equal(runtime.infer({"x": rows(4), "z": rows(4)})["y"], np.zeros((4, 2)))
    runtime.close()
