"""What an autoencoder answers as its threshold: that of the runtime that computes, else its graph's."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from pydantic import ValidationError

from cluster.artifacts import ArtifactStore
from cluster.errors import InferenceFailed, InvalidRequest
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.variants import THRESHOLD, TensorSpec, Variant

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
SCORE = TensorSpec(name="score", datatype="FP32", shape=(-1,))
VARIANT = Variant(name="ae/fp32", family="autoencoder", format="onnx", inputs=(X,), outputs=(SCORE, THRESHOLD))
ROWS = np.arange(10, dtype=np.float32).reshape(5, 2)


def graph() -> bytes:
    """The score is the sum of a row; the constant 7."""
    nodes = [
        helper.make_node("ReduceSum", ["x", "axes"], ["score"], keepdims=0),
        helper.make_node("Shape", ["score"], ["shape"]),
        helper.make_node("Expand", ["seven", "shape"], ["threshold"]),
    ]
    made = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in ("score", "threshold")],
        [numpy_helper.from_array(np.array([1], np.int64), "axes"),
         numpy_helper.from_array(np.array([7], np.float32), "seven")],
    )  # fmt: skip
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_each_runtime_says_its_own_and_one_that_was_not_measured_the_graphs(
    store: ArtifactStore, name: str, streams: int
) -> None:
    config = RuntimeConfig.model_validate({"name": name, "streams": streams})
    other = "openvino" if name == "onnxruntime" else "onnxruntime"
    for thresholds, expected in (({name: 0.1, other: 3.0}, 0.1), ({other: 3.0}, 7.0), ({}, 7.0)):
        stored = store.put(VARIANT.model_copy(update={"thresholds": thresholds}), {"model.onnx": graph()})
        with closing(load_runtime(store, store.get(stored.id), config)) as runtime:
            assert (runtime.name, runtime.config) == (name, config)
            for rows in (1, 5):
                answer = runtime.infer({"x": ROWS[:rows]})
                assert list(answer) == ["score", "threshold"]
                np.testing.assert_array_equal(answer["score"], ROWS[:rows].sum(1))
                np.testing.assert_array_equal(answer["threshold"], np.full(rows, expected, np.float32), strict=True)


def test_it_refuses_and_closes_as_any_runtime(store: ArtifactStore) -> None:
    stored = store.put(VARIANT.model_copy(update={"thresholds": {"onnxruntime": 1.0}}), {"model.onnx": graph()})
    runtime = load_runtime(store, stored, RuntimeConfig())
    with pytest.raises(InvalidRequest):
        runtime.infer({"x": ROWS[:, :1]})
    assert runtime.infer({"x": ROWS})["threshold"].tolist() == [1.0] * 5
    runtime.close()
    runtime.close()
    with pytest.raises(InferenceFailed, match="closed"):
        runtime.infer({"x": ROWS})


def test_measured_later_it_is_the_same_variant() -> None:
    assert VARIANT.model_copy(update={"thresholds": {"onnxruntime": 1.0}}).id == VARIANT.id


def test_thresholds_are_for_variants_that_answer_one() -> None:
    with pytest.raises(ValidationError, match="whose outputs have no"):
        Variant.model_validate(VARIANT.model_dump(exclude={"id"}) | {"outputs": (SCORE,), "thresholds": {"torch": 1.0}})
