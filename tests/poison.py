"""A graph that really fails on some inputs: it looks the first pixel up in a table that ends at 200."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cluster.artifacts import ArtifactStore
from cluster.variants import TensorSpec, Variant


def poisonous_graph() -> bytes:
    """uint8 (B, 1, 28, 28) -> float32 (B, 10): in each row ten times the picture's first pixel; 200 and above fails."""
    table = numpy_helper.from_array(np.repeat(np.arange(200, dtype=np.float32)[:, None], 10, axis=1), "table")
    constants = [
        table,
        numpy_helper.from_array(np.array([-1, 784], np.int64), "flat"),
        numpy_helper.from_array(np.array(0, np.int64), "first"),
    ]
    nodes = [
        helper.make_node("Cast", ["image"], ["wide"], to=TensorProto.INT64),
        helper.make_node("Reshape", ["wide", "flat"], ["rows"]),
        helper.make_node("Gather", ["rows", "first"], ["pixel"], axis=1),
        helper.make_node("Gather", ["table", "pixel"], ["logits"], axis=0),
    ]
    graph = helper.make_graph(
        nodes, "poisonous",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        initializer=constants,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


def poisonous_variant(store: ArtifactStore) -> Variant:
    """The graph as a variant in `store`."""
    return store.put(
        Variant(
            name="poisonous",
            family="cnn",
            format="onnx",
            inputs=(TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28)),),
            outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),),
        ),
        {"model.onnx": poisonous_graph()},
    )
