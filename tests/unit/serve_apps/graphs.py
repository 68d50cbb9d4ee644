"""Tiny graphs in a store, so that a test can tell by the answer which variant computed it."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from cluster.artifacts import ArtifactStore
from cluster.variants import Accuracy, SequenceSpec, TensorSpec, Variant


def _model(nodes: list[onnx.NodeProto], width: int, **constants: np.ndarray) -> bytes:  # type: ignore[type-arg]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", width])],
        [numpy_helper.from_array(array, name) for name, array in constants.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return bytes(made.SerializeToString())


def _stored(store: ArtifactStore, name: str, graph: bytes, width: int, accuracy: Accuracy | None = None) -> Variant:
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, width))
    variant = Variant(
        name=name, family="linear", format="onnx", inputs=(spec,), outputs=(spec.model_copy(update={"name": "y"}),),
        accuracies=() if accuracy is None else (accuracy,),
    )  # fmt: skip
    stored = store.put(variant, {"model.onnx": graph})
    store.set_ref(name, stored.id)
    return stored


def linear(
    store: ArtifactStore, *, scale: float = 1.0, width: int = 4, quality: float | None = None, metric: str = "accuracy"
) -> Variant:
    """y = scale x, rows of `width`; called linear/SCALE. `quality` is its measured `metric`."""
    weights = scale * np.eye(width, dtype=np.float32)
    graph = _model([helper.make_node("MatMul", ["x", "w"], ["y"])], width, w=weights)
    accuracy = None
    if quality is not None:
        accuracy = Accuracy(
            metric=metric, higher_is_better=metric == "accuracy", value=quality, total=100,
            interval=(quality, quality), dataset="d", runtime="onnxruntime",
        )  # fmt: skip
    return _stored(store, f"linear/{scale:g}x{width}", graph, width, accuracy)


def stuck(store: ArtifactStore) -> Variant:
    """Loads, and fails on every batch of other than five rows."""
    graph = _model([helper.make_node("Reshape", ["x", "five"], ["y"])], 4, five=np.array([5, 4], np.int64))
    return _stored(store, "stuck/five", graph, 4)


def sums(store: ArtifactStore, *, longest: int = 8) -> Variant:
    """The sum over each series (L, 2) of up to `longest` rows, those of NaN left out; called sums/LONGEST."""
    nodes = [
        helper.make_node("IsNaN", ["x"], ["missing"]), helper.make_node("Where", ["missing", "zero", "x"], ["there"]),
        helper.make_node("ReduceSum", ["there", "axes"], ["y"], keepdims=0),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "rows", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch"])],
        [numpy_helper.from_array(np.zeros((), np.float32), "zero"),
         numpy_helper.from_array(np.array([1, 2], np.int64), "axes")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    variant = Variant(
        name=f"sums/{longest}", family="lstm", format="onnx",
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, -1, 2)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)),),
        sequence=SequenceSpec(multiple_of=2, shortest=2, longest=longest),
    )  # fmt: skip
    stored = store.put(variant, {"model.onnx": made.SerializeToString()})
    store.set_ref(variant.name, stored.id)
    return stored


def pixels(store: ArtifactStore) -> Variant:
    """The sum of a grey picture of 4 by 6 pixels; called pixels/4x6."""
    nodes = [
        helper.make_node("Cast", ["x"], ["wide"], to=TensorProto.INT64),
        helper.make_node("ReduceSum", ["wide", "axes"], ["y"], keepdims=0),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.UINT8, ["batch", 1, 4, 6])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, ["batch"])],
        [numpy_helper.from_array(np.array([1, 2, 3], np.int64), "axes")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    variant = Variant(
        name="pixels/4x6", family="pixels", format="onnx",
        inputs=(TensorSpec(name="x", datatype="UINT8", shape=(-1, 1, 4, 6)),),
        outputs=(TensorSpec(name="y", datatype="INT64", shape=(-1,)),),
    )  # fmt: skip
    stored = store.put(variant, {"model.onnx": made.SerializeToString()})
    store.set_ref(variant.name, stored.id)
    return stored


def words(store: ArtifactStore) -> Variant:
    """Gives back pairs of BYTES as they came; called words/2."""
    kinds = [helper.make_tensor_value_info(name, TensorProto.STRING, ["batch", 2]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", kinds[:1], kinds[1:])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    spec = TensorSpec(name="x", datatype="BYTES", shape=(-1, 2))
    variant = Variant(
        name="words/2", family="words", format="onnx", inputs=(spec,), outputs=(spec.model_copy(update={"name": "y"}),)
    )
    stored = store.put(variant, {"model.onnx": made.SerializeToString()})
    store.set_ref(variant.name, stored.id)
    return stored


def generator(store: ArtifactStore, *, latent: int = 8) -> Variant:
    """sample = sigmoid(latent W), three numbers each; called generator/LATENT."""
    weights = np.random.default_rng(0).normal(size=(latent, 3)).astype(np.float32)
    nodes = [helper.make_node("MatMul", ["latent", "w"], ["sum"]), helper.make_node("Sigmoid", ["sum"], ["sample"])]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("latent", TensorProto.FLOAT, ["batch", latent])],
        [helper.make_tensor_value_info("sample", TensorProto.FLOAT, ["batch", 3])],
        [numpy_helper.from_array(weights, "w")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    variant = Variant(
        name=f"generator/{latent}", family="gan", format="onnx", prior="normal",
        inputs=(TensorSpec(name="latent", datatype="FP32", shape=(-1, latent)),),
        outputs=(TensorSpec(name="sample", datatype="FP32", shape=(-1, 3)),),
    )  # fmt: skip
    stored = store.put(variant, {"model.onnx": made.SerializeToString()})
    store.set_ref(variant.name, stored.id)
    return stored
