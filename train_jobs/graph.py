"""The user's ONNX file -> a graph that Sluice can serve: one input, one output, a free batch, everything inside.

What is changed: external weights come inside, operator sets before 13 are converted, a fixed batch is made free and
other free sizes become the samples' own. What computes something else after that, judged on real samples, is refused.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper, version_converter

from cluster.errors import ConfigError
from cluster.tensors import DATATYPE_OF_NUMPY
from cluster.variants import TensorSpec
from train_jobs.export import without_notes

Array = NDArray[np.generic]
_OPSET = 13
"""The first that quantizes weights per channel and knows bf16."""
_CONVERTED = 17
_IR = 8
_QUANTIZED = {"QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"}


@dataclass(frozen=True)
class Graph:
    """A self-contained ONNX graph and what goes in and out."""

    data: bytes
    inputs: TensorSpec
    outputs: TensorSpec


def read_graph(path: Path, samples: Array, classes: int) -> Graph:
    """The graph in `path`, for `samples` (N, ...), of which a few are run through it, and that many classes.

    Raises ConfigError naming what the graph has, what the samples are, and the way out.
    """
    original = _read(path)
    entry, result = _ends(original, path)
    _check_samples(entry, samples, path)
    fixed = entry.type.tensor_type.shape.dim[0].dim_value if entry.type.tensor_type.HasField("shape") else 0
    own = fixed or 1
    rows = np.resize(samples, (own * max(1, -(-3 // own)), *samples.shape[1:]))
    expected = _answers(original, entry.name, rows, own, path)
    if expected.ndim != 2 or expected.shape != (len(rows), classes):
        raise ConfigError(
            f"{path}: output {result.name!r} has shape {list(expected.shape)} for {len(rows)} samples; it must have a "
            f"score for each of the {classes} classes: {[len(rows), classes]}{_one_score(expected.shape)}"
        )
    if not np.isfinite(expected).all():
        raise ConfigError(f"{path}: output {result.name!r} holds NaN or infinity on real samples; export it anew")
    model = _freed(original, rows, expected, own, path)
    try:
        onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise _unusable(path, error) from error
    return Graph(model.SerializeToString(), spec_of(entry.name, samples), spec_of(result.name, expected))


def _one_score(shape: tuple[int, ...]) -> str:
    if shape[1:] not in ((), (1,)):
        return ""
    return "; one score z for two classes becomes two as [-z, z] (of a probability p: [1 - p, p])"


def opset_of(model: onnx.ModelProto, default: int = 0) -> int:
    """The version of ONNX's own operators that it names, or `default`."""
    return max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=default)


def _read(path: Path) -> onnx.ModelProto:
    """The model with its weights inside, without an exporter's notes, in an operator set that every pass knows."""
    try:
        model = onnx.load(path)
        without_notes(model)
        version = opset_of(model, _OPSET)
        weights = {tensor.name for tensor in model.graph.initializer}
        entries = [entry for entry in model.graph.input if entry.name not in weights]
        del model.graph.input[:]  # old exporters list weights as inputs, which could be fed others then
        model.graph.input.extend(entries)
        model.ir_version = max(model.ir_version, _IR)
        if version < _OPSET:
            model = version_converter.convert_version(model, _CONVERTED)
    except Exception as error:  # the system's, protobuf's, and whatever the converter raises
        raise _unusable(path, error) from error
    if quantized := sorted({node.op_type for node in model.graph.node} & _QUANTIZED):
        raise ConfigError(
            f"{path} is quantized already ({', '.join(quantized)}); bring the fp32 graph, Sluice makes int8 of it"
        )
    return model


def _unusable(path: Path, error: Exception) -> ConfigError:
    told = " ".join(str(error).split())[:300]
    return ConfigError(
        f"{path} is no ONNX graph that can be used ({told}); export it anew, operator set {_OPSET} or newer, with its "
        "external data beside it if it has any"
    )


def _ends(model: onnx.ModelProto, path: Path) -> tuple[onnx.ValueInfoProto, onnx.ValueInfoProto]:
    """The one input and the one output."""
    for what, ends in (("input", model.graph.input), ("output", model.graph.output)):
        if len(ends) == 1 and ends[0].type.WhichOneof("value") == "tensor_type":
            continue
        names = [end.name for end in ends]
        raise ConfigError(
            f"{path} has the {what}s {names}; Sluice serves graphs of one tensor in and one out: cut it with "
            f"onnx.utils.extract_model({path.name!r}, 'cut.onnx', [INPUT], [SCORES])"
        )
    return model.graph.input[0], model.graph.output[0]


def _check_samples(entry: onnx.ValueInfoProto, samples: Array, path: Path) -> None:
    tensor = entry.type.tensor_type
    wanted = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
    if wanted != samples.dtype:
        raise ConfigError(f"{path}: input {entry.name!r} takes {wanted}, the samples are {samples.dtype}; "
                          f"{way_to(samples.dtype, wanted)}")  # fmt: skip
    if not tensor.HasField("shape"):
        return
    sizes = [dim.dim_value if dim.HasField("dim_value") else dim.dim_param or "any" for dim in tensor.shape.dim]
    if len(sizes) != samples.ndim or any(
        isinstance(want, int) and want != have for want, have in zip(sizes[1:], samples.shape[1:], strict=True)
    ):
        turned = sorted(map(str, sizes[1:])) == sorted(map(str, samples.shape[1:]))
        hint = "; the same sizes in another order: transpose the samples" if turned else ""
        raise ConfigError(
            f"{path}: input {entry.name!r} has shape {sizes}, the samples are {list(samples.shape)}; they must agree "
            f"in all but the batch, which comes first{hint}"
        )


def way_to(have: np.dtype[Any], wanted: np.dtype[Any]) -> str:
    """How the user's samples come to have the datatype that a model wants. A cast would not do: whether a model of
    floats wants 0 to 255, 0 to 1 or something normalised, only its maker knows."""
    if have == np.float64 and wanted == np.float32:
        return "give the samples as `.astype(np.float32)`: nothing but rounding is lost"
    if have.kind in "ui" and wanted.kind == "f":
        return (
            "only you know its scale. Put it into the model (x.float() / 255 or what it was trained with), which keeps "
            f"requests small, or give scaled samples from a function, --data pkg.module:dataset, `.astype(np.{wanted})`"
        )
    return f"give the samples as {wanted}, in the values that the model was trained with"


def _answers(model: onnx.ModelProto, entry: str, rows: Array, batch: int, path: Path) -> Array:
    """The model's scores for `rows`, `batch` at a time. Raises ConfigError with ONNX Runtime's words."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        parts = [session.run(None, {entry: rows[i : i + batch]})[0] for i in range(0, len(rows), batch)]
        answers: Array = np.concatenate(parts)
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        raise ConfigError(f"{path} does not run on {batch} samples in ONNX Runtime: {told}; export it anew") from error
    if answers.dtype.kind != "f":
        raise ConfigError(f"{path} answers {answers.dtype}, not scores; export it without its last step (ArgMax)")
    return answers


def _freed(original: onnx.ModelProto, rows: Array, expected: Array, own: int, path: Path) -> onnx.ModelProto:
    """The model with a free batch and otherwise fixed sizes, which answers as before one by one and all at once."""
    failure = "its answers change with the number of samples in the batch"
    for change in (_as_it_is, _reshapes_freed):
        model = onnx.ModelProto()
        model.CopyFrom(original)
        change(model, own)
        entry, result = model.graph.input[0], model.graph.output[0]
        _set_shape(entry, ["batch", *rows.shape[1:]])
        _set_shape(result, ["batch", expected.shape[1]])
        del model.graph.value_info[:]  # sizes of what lies between, which are free now
        try:
            got = [_answers(model, entry.name, rows, batch, path) for batch in (1, len(rows))]
        except ConfigError as error:
            failure = str(error)[-200:]
            continue
        if all(_alike(each, expected) for each in got):
            return model
    raise ConfigError(
        f"{path} works on batches of {own} alone, and its batch cannot be made free ({failure}); export it with a free "
        'one: torch.onnx.export(..., dynamic_axes={"INPUT": {0: "batch"}}) or dynamic_shapes'
    )


def _alike(got: Array, expected: Array) -> bool:
    scale = float(np.abs(expected).max())
    return got.shape == expected.shape and np.allclose(got, expected, rtol=1e-3, atol=1e-4 * scale)


def _set_shape(end: onnx.ValueInfoProto, sizes: list[Any]) -> None:
    kind = end.type.tensor_type.elem_type
    end.type.tensor_type.CopyFrom(helper.make_tensor_type_proto(kind, sizes).tensor_type)


def _as_it_is(model: onnx.ModelProto, batch: int) -> None:
    """Many a graph has its batch in the declaration alone."""


def _reshapes_freed(model: onnx.ModelProto, batch: int) -> None:
    """A Reshape to [batch, ...] written as numbers keeps its input's first size instead: 0 says so."""
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = node.attribute[0].t
    for number, node in enumerate(model.graph.node):
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        shape = numpy_helper.to_array(constants[node.input[1]])
        if len(shape) > 1 and shape[0] == batch and 0 not in shape:
            del node.attribute[:]  # allowzero, with which 0 would be a size
            freed = numpy_helper.from_array(np.array([0, *shape[1:]], dtype=np.int64), f"free_shape_{number}")
            model.graph.initializer.append(freed)
            node.input[1] = freed.name


def spec_of(name: str, batch: Array) -> TensorSpec:
    """The TensorSpec of such a tensor, its batch free."""
    return TensorSpec.model_validate(
        {"name": name, "datatype": DATATYPE_OF_NUMPY[batch.dtype], "shape": (-1, *batch.shape[1:])}
    )
