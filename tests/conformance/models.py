"""What the suite serves: small graphs by hand, and what they must answer, computed by numpy alone.

`pictures` takes (-1, 1, 28, 28) bytes and gives two outputs; the others give each row of each input back in reverse, so
that an answer shows that every element came through, in its place. One graph holds the ten data types that may stand
together in one request, whichever way they travel; FP16 and BYTES, which may not, have one each.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from cluster.artifacts import ArtifactStore
from cluster.variants import TensorSpec, Variant

Arrays = dict[str, NDArray[Any]]
_ROWS, _WIDTH = 2, 3
_IR, _OPSET = 10, 18
NUMBERS: Arrays = {
    "BOOL": np.array([[True, False, False], [True, True, False]]),
    "UINT8": np.array([[0, 1, 255], [7, 8, 9]], np.uint8),
    "UINT16": np.array([[0, 1, 65535], [7, 8, 9]], np.uint16),
    "UINT32": np.array([[0, 1, 2**32 - 1], [7, 8, 9]], np.uint32),
    "UINT64": np.array([[0, 1, 2**64 - 1], [7, 8, 9]], np.uint64),
    "INT8": np.array([[-128, 0, 127], [7, 8, 9]], np.int8),
    "INT16": np.array([[-(2**15), 0, 2**15 - 1], [7, 8, 9]], np.int16),
    "INT32": np.array([[-(2**31), 0, 2**31 - 1], [7, 8, 9]], np.int32),
    "INT64": np.array([[-(2**63), 0, 2**63 - 1], [7, 8, 9]], np.int64),
    "FP32": np.array([[-1.5, 1 / 3, 3.4e38], [1e-40, 0, 1]], np.float32),
    "FP64": np.array([[-1.5, 1 / 3, 1.7e308], [5e-324, 0, 1]], np.float64),
}
HALF: Arrays = {"FP16": np.array([[-1.5, 1 / 3, 65504], [6e-8, 0, 1]], np.float16)}
TEXT: Arrays = {"BYTES": np.array([[b"", b"plain", "Gr\u00fc\u00dfe".encode()], [b'"q"', b"a\nb", b"z" * 300]], object)}


@dataclass(frozen=True)
class Subject:
    """A variant in a store, inputs, and what must come back."""

    name: str
    variant: Variant
    inputs: Arrays
    outputs: Arrays


def subjects(store: ArtifactStore) -> list[Subject]:
    """All of them, in the order in which they are served."""
    return [
        pictures(store),
        *(_reversing(store, *each) for each in (("numbers", NUMBERS), ("half", HALF), ("text", TEXT))),
    ]


def pictures(store: ArtifactStore) -> Subject:
    """`logits` and `label` of three pictures; whole numbers, so that sums are exact in any order."""
    random = np.random.default_rng(7)
    weights = random.integers(-3, 4, (784, 10)).astype(np.float32)
    images = random.integers(0, 256, (3, 1, 28, 28), dtype=np.uint8)
    nodes = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]), helper.make_node("MatMul", ["flat", "weights"], ["logits"]),
        helper.make_node("ArgMax", ["logits"], ["label"], axis=1, keepdims=0),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "pictures", [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", 1, 28, 28])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", 10]),
         helper.make_tensor_value_info("label", TensorProto.INT64, ["n"])],
        [numpy_helper.from_array(weights, "weights")],
    )  # fmt: skip
    inputs = (TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28)),)
    outputs = (TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),
               TensorSpec(name="label", datatype="INT64", shape=(-1,)))  # fmt: skip
    logits = images.reshape(3, 784).astype(np.float32) @ weights
    variant = _stored(store, "pictures", graph, inputs, outputs)
    return Subject("pictures", variant, {"image": images}, {"logits": logits, "label": logits.argmax(1)})


def _reversing(store: ArtifactStore, name: str, values: Arrays) -> Subject:
    nodes, given, made, inputs, outputs = [], [], [], [], []
    for datatype in values:
        element = {"BOOL": "BOOL", "FP16": "FLOAT16", "FP32": "FLOAT", "FP64": "DOUBLE", "BYTES": "STRING"}
        kind = TensorProto.DataType.Value(element.get(datatype, datatype))
        key = datatype.lower()
        nodes.append(helper.make_node("Gather", [key, "backwards"], [f"{key}_back"], axis=1))
        given.append(helper.make_tensor_value_info(key, kind, ["n", _WIDTH]))
        made.append(helper.make_tensor_value_info(f"{key}_back", kind, ["n", _WIDTH]))
        spec = TensorSpec.model_validate({"name": key, "datatype": datatype, "shape": (-1, _WIDTH)})
        inputs.append(spec)
        outputs.append(spec.model_copy(update={"name": f"{key}_back"}))
    constant = numpy_helper.from_array(np.arange(_WIDTH)[::-1].copy(), "backwards")
    variant = _stored(
        store, name, helper.make_graph(nodes, name, given, made, [constant]), tuple(inputs), tuple(outputs)
    )
    lower = {datatype.lower(): value for datatype, value in values.items()}
    return Subject(name, variant, lower, {f"{key}_back": value[:, ::-1].copy() for key, value in lower.items()})


def _stored(
    store: ArtifactStore, name: str, graph: onnx.GraphProto, inputs: tuple[TensorSpec, ...],
    outputs: tuple[TensorSpec, ...],
) -> Variant:  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)], ir_version=_IR)
    variant = Variant(name=f"conformance/{name}", family="conformance", format="onnx", inputs=inputs, outputs=outputs)
    return store.put(variant, {"model.onnx": made.SerializeToString()})


def save(subject: Subject, folder: Path) -> tuple[Path, dict[str, str]]:
    """What the clients compare with, and the first picture as files of theirs."""
    known = folder / f"{subject.name}.npz"
    arrays = {f"in/{name}": array for name, array in subject.inputs.items()}
    arrays |= {f"out/{name}": array for name, array in subject.outputs.items()}
    # Strings of a fixed width in place of objects, which only pickle could hold.
    np.savez(known, **{name: a.astype("S") if a.dtype == object else a for name, a in arrays.items()})
    files = {}
    if "image" in subject.inputs:
        for kind in ("png", "jpeg"):
            made = io.BytesIO()
            Image.fromarray(subject.inputs["image"][0, 0]).save(
                made, kind, **({"quality": 95} if kind == "jpeg" else {})
            )
            path = folder / f"picture.{kind}"
            path.write_bytes(made.getvalue())
            files[kind] = str(path)
    return known, files
