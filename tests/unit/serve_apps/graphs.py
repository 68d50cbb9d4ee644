"""Tiny graphs in a store, so that a test can tell by the answer which variant computed it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cluster.artifacts import ArtifactStore
from cluster.variants import TensorSpec, Variant


def _model(nodes: list[onnx.NodeProto], width: int, **constants: np.ndarray) -> bytes:  # type: ignore[type-arg]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(made.SerializeToString())


def _stored(store: ArtifactStore, name: str, graph: bytes, width: int) -> Variant:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, width))
    variant = Variant(
        name=name, family="linear", format="onnx", inputs=(spec,), outputs=(spec.model_copy(update={"name": "y"}),)
    )
    stored = store.put(variant, {"model.onnx": graph})
    store.set_ref(name, stored.id)
    return stored


def linear(store: ArtifactStore, *, scale: float = 1.0, width: int = 4) -> Variant:
    """y = scale x, rows of `width`; called linear/SCALE."""
    weights = scale * np.eye(width, dtype=np.float32)
    graph = _model([helper.make_node("MatMul", ["x", "w"], ["y"])], width, w=weights)
    return _stored(store, f"linear/{scale:g}x{width}", graph, width)


def stuck(store: ArtifactStore) -> Variant:
    """Loads, and fails on every batch of other than five rows."""
    graph = _model([helper.make_node("Reshape", ["x", "five"], ["y"])], 4, five=np.array([5, 4], np.int64))
    return _stored(store, "stuck/five", graph, 4)
