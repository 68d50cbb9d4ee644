"""fp32 ONNX -> the same graph with its weights in 8 or 4 bits: a quarter of the bytes or less, without samples.

8 bits: each kernel and matrix is a constant of bytes with one scale per output channel, symmetric (Krishnamoorthi,
"Quantizing deep convolutional networks for efficient inference: A whitepaper", 2018, section 2.2), and a Cast and a Mul
make floats of it. ONNX Runtime does that once, when it loads the graph, and computes in fp32 as fast as before: a
DequantizeLinear it would compute for every batch, which made a small CNN 1.6 times as slow. OpenVINO keeps a dense
layer's bytes and may round what it reads to int8 as it comes. Whatever folds constants later makes fp32 of the bytes
again: this pass comes last.

kind="float": the bytes are floats of 4 bits exponent and 3 bits mantissa (E4M3: Micikevicius et al., "FP8 formats for
deep learning", 2022, section 3), scaled so that the greatest of a channel is the greatest there is, 448. Small weights
keep more of their digits than as whole numbers, large ones fewer. No CPU computes in it: like whole numbers, they are
made fp32 when the graph is loaded.

4 bits: the matrices as MatMulNBits, an operator of ONNX Runtime's, with a scale for each `block` weights of a column;
kernels and recurrent cells, for which there is no such operator, get 8.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Literal, Self

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import helper, numpy_helper, version_converter
from pydantic import BaseModel, ConfigDict, model_validator

from cluster.errors import InvalidRequest
from train_jobs.compression.optimise import optimise
from train_jobs.graph import opset_of

Operator = Literal["Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN"]
Array = NDArray[np.float32]
_Form = Callable[[onnx.NodeProto, str, Array], tuple[list[onnx.TensorProto], list[onnx.NodeProto]]]
"""(an operator, the name of its weights, these) -> what is stored, and the operators that make them of it."""

_RECURRENT = ("LSTM", "GRU", "RNN")
_MATRICES = ("Gemm", "MatMul")
_LEVELS_8, _ZERO_8, _ZERO_4 = 127, 128, 8
_GREATEST_E4M3 = 448.0
_OPSET_E4M3 = 19
"""ONNX casts 8-bit floats from this one on."""


class WeightOnlyConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bits: Literal[8, 4] = 8
    """4: of matrices; what has no kernel for that gets 8."""
    kind: Literal["int", "float"] = "int"
    """Of the 8 bits."""
    block: Literal[16, 32, 64, 128, 256] = 32
    """Weights of a column that share a scale, with bits=4."""
    operators: tuple[Operator, ...] = ("Conv", "ConvTranspose", "Gemm", "MatMul", "LSTM", "GRU", "RNN")
    """Whose weights."""

    @model_validator(mode="after")
    def _four_are_whole(self) -> Self:
        if self.bits == 4 and self.kind == "float":
            raise ValueError("kind='float' has 8 bits, and bits=4 was given; set bits=8, or kind='int'")
        return self


def weight_only(model: bytes, config: WeightOnlyConfig) -> bytes:
    """The graph with its weights stored in `config.bits`; biases and what the graph computes with stay fp32.

    Raises InvalidRequest if there is nothing to store so, or bits=4 and the graph has no matrix, or ONNX Runtime here
    has no kernel for one.
    """
    # Constants are folded first: an exporter writes a cell's matrices as slices and joins of the module's own.
    proto = onnx.load_from_string(optimise(model, "basic"))
    if config.kind == "float" and opset_of(proto) < _OPSET_E4M3:
        proto = version_converter.convert_version(proto, _OPSET_E4M3)
    if config.bits == 4:
        matrices = [name for name in config.operators if name in _MATRICES]
        if not _in_four_bits(proto, matrices, config.block):
            raise InvalidRequest(
                f"the graph has no Gemm or MatMul by a constant matrix among operators={list(config.operators)}, and "
                "only those are stored in 4 bits; set bits=8"
            )
    stored = _store(proto, config.operators, _as_int8 if config.kind == "int" else _as_float8)
    if config.bits == 8 and not stored:
        raise InvalidRequest(
            f"the graph has no fp32 kernel or matrix of {', '.join(config.operators)} to store in 8 bits; leave this "
            "pass out"
        )
    made = bytes(proto.SerializeToString())
    if config.bits == 4:
        _check_runs(made)
    return made


def in_eight_bits(model: onnx.ModelProto, operators: Collection[str]) -> int:
    """Store the constant weights of `operators` as bytes, in place. Returns how many tensors that were."""
    return _store(model, operators, _as_int8)


def _store(model: onnx.ModelProto, operators: Collection[str], form: _Form) -> int:
    """The constant weights of `operators` in another form, in place. Returns how many tensors that were."""
    floats = _matrices_of(model)
    stored: dict[str, list[onnx.TensorProto]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        for name in _weights_of(node) if node.op_type in operators else []:
            if name in floats and name not in stored:
                stored[name], made = form(node, name, floats[name])
                nodes += made
    _replace(model, stored, [*nodes, *model.graph.node])
    return len(stored)


def _as_int8(node: onnx.NodeProto, name: str, weights: Array) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    values, scales = quantized(weights, _axis(node, weights.ndim))
    kept = [numpy_helper.from_array(scales, f"{name}.scale")]
    if node.op_type not in _RECURRENT:
        return [*kept, numpy_helper.from_array(values, f"{name}.int8")], _scaled(name, f"{name}.int8")
    # Counted from 128. OpenVINO keeps what is a Cast and a Mul alone as it stands wherever a graph has int8
    # activations, and its cells take constants only; with a sum between, it folds all three.
    kept += [
        numpy_helper.from_array((values.astype(np.int16) + _ZERO_8).astype(np.uint8), f"{name}.int8"),
        numpy_helper.from_array(np.full([1] * values.ndim, -_ZERO_8, np.float32), f"{name}.zero"),
    ]
    return kept, [
        _node("Cast", [f"{name}.int8"], f"{name}.float", to=onnx.TensorProto.FLOAT),
        _node("Add", [f"{name}.float", f"{name}.zero"], f"{name}.centred"),
        _node("Mul", [f"{name}.centred", f"{name}.scale"], name),
    ]


def _as_float8(node: onnx.NodeProto, name: str, weights: Array) -> tuple[list[onnx.TensorProto], list[onnx.NodeProto]]:
    values, scales = float8(weights, _axis(node, weights.ndim))
    data = helper.make_tensor(
        f"{name}.fp8", onnx.TensorProto.FLOAT8E4M3FN, values.shape, values.tobytes(), raw=True
    )
    return [data, numpy_helper.from_array(scales, f"{name}.scale")], _scaled(name, f"{name}.fp8")


def _scaled(name: str, stored: str) -> list[onnx.NodeProto]:
    return [
        _node("Cast", [stored], f"{name}.float", to=onnx.TensorProto.FLOAT),
        _node("Mul", [f"{name}.float", f"{name}.scale"], name),
    ]


def _node(kind: str, reads: list[str], gives: str, **attributes: int) -> onnx.NodeProto:
    return helper.make_node(kind, reads, [gives], name=f"{gives}.{kind.lower()}", **attributes)


def quantized(values: Array, axis: int) -> tuple[NDArray[np.int8], Array]:
    """Whole numbers, and a scale for each place along `axis` (the other dimensions are 1), so that their product is off
    `values` by half a scale at most."""
    scales = _usable(_highest(values, axis) / _LEVELS_8)
    return np.clip(np.round(values / scales), -_LEVELS_8, _LEVELS_8).astype(np.int8), scales


def _highest(values: Array, axis: int) -> Array:
    """Farthest from nought at each place along `axis`."""
    others = tuple(each for each in range(values.ndim) if each != axis)
    return np.asarray(np.abs(values).max(axis=others, initial=0.0, keepdims=True), np.float32)


def _usable(scales: NDArray[np.floating[Any]]) -> Array:
    """1 in place of scales that are nought, or so small that they have lost digits: what they scale is nought then."""
    return np.where(np.abs(scales) >= np.finfo(np.float32).tiny, scales, 1.0).astype(np.float32)


def float8(values: Array, axis: int) -> tuple[NDArray[np.generic], Array]:
    """E4M3 numbers, and a scale for each place along `axis` (the other dimensions are 1): their product is off `values`
    by a sixteenth of the value at most, or, of those under a sixty-fourth of a scale, by 1/1024 of a scale."""
    scales = _usable(_highest(values, axis) / _GREATEST_E4M3)
    # Rounded up, the greatest may be beyond 448, which E4M3 without infinities makes not a number.
    bounded = np.clip(values / scales, -_GREATEST_E4M3, _GREATEST_E4M3)
    return bounded.astype(ml_dtypes.float8_e4m3fn), scales


def packed(matrix_KN: Array, block: int) -> tuple[NDArray[np.uint8], Array]:
    """A matrix (K, N) as MatMulNBits takes it: (N, blocks, block / 2) bytes of two weights each, the first one in the
    lower half, and scales (N, blocks). A weight is (number - 8) * scale.

    The scale is such that the weight farthest from zero gets the number 0, as ONNX Runtime's own quantizer has it: of
    -8 to 7 the longer side goes to the longer tail. Off by half a scale at most, but for a weight as far out on the
    other side, which is off by a whole one.
    """
    rows = -(-matrix_KN.shape[0] // block) * block
    filled_NK = np.pad(matrix_KN.T, ((0, 0), (0, rows - matrix_KN.shape[0])))
    blocks = filled_NK.reshape(matrix_KN.shape[1], -1, block)
    farthest = np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)
    scales = _usable(farthest / -_ZERO_4)
    numbers = (np.clip(np.round(blocks / scales), -_ZERO_4, _ZERO_4 - 1) + _ZERO_4).astype(np.uint8)
    return np.asarray(numbers[..., ::2] | numbers[..., 1::2] << 4, np.uint8), scales[..., 0]


def _in_four_bits(model: onnx.ModelProto, operators: Collection[str], block: int) -> int:
    """Replace `operators` by a constant matrix with MatMulNBits, in place. Returns how many there were."""
    floats = _matrices_of(model)
    stored: dict[str, list[onnx.TensorProto]] = {}
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.op_type not in operators or not _plain(node) or node.input[1] not in floats:
            nodes.append(node)
            continue
        name = node.input[1]
        transposed = _attribute(node, "transB", 0) == 1
        matrix_KN = floats[name].T if transposed else floats[name]
        if matrix_KN.ndim != 2:
            nodes.append(node)
            continue
        form = f"{name}.4bit{'.t' if transposed else ''}"
        if form not in {tensor.name for tensor in stored.get(name, [])}:
            weights, scales = packed(matrix_KN, block)
            stored.setdefault(name, []).extend(
                [numpy_helper.from_array(weights, form), numpy_helper.from_array(scales, f"{form}.scale")]
            )
        nodes += _blocked(node, form, matrix_KN.shape, block)
    _replace(model, stored, nodes)
    if stored and not any(each.domain == "com.microsoft" for each in model.opset_import):
        model.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    return len(stored)


def _blocked(node: onnx.NodeProto, form: str, shape: tuple[int, ...], block: int) -> list[onnx.NodeProto]:
    """MatMulNBits, and an Add where there is a bias."""
    has_bias = len(node.input) > 2 and node.input[2]
    product = f"{node.output[0]}.product" if has_bias else node.output[0]
    made = [
        helper.make_node(
            "MatMulNBits", [node.input[0], form, f"{form}.scale"], [product], name=f"{node.name}.4bit",
            domain="com.microsoft", K=shape[0], N=shape[1], bits=4, block_size=block,
        )
    ]  # fmt: skip
    if has_bias:
        made.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=f"{node.name}.bias"))
    return made


def _plain(node: onnx.NodeProto) -> bool:
    """Is it a product, perhaps with a bias added, and nothing else?"""
    scaled = _attribute(node, "alpha", 1.0) != 1.0 or _attribute(node, "beta", 1.0) != 1.0
    return not scaled and _attribute(node, "transA", 0) == 0


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    for each in node.attribute:
        if each.name == name:
            return float(helper.get_attribute_value(each))
    return default


def _weights_of(node: onnx.NodeProto) -> list[str]:
    """A recurrent cell has two matrices: of what comes in, and of what it held before."""
    return list(node.input[1:3] if node.op_type in _RECURRENT else node.input[1:2])


def _axis(node: onnx.NodeProto, ndim: int) -> int:
    """Of the output channels. A cell's matrices are (directions, gates x units, ...); both directions share scales."""
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) == 1 else 1
    return ndim - 1 if node.op_type == "MatMul" else 1


def _matrices_of(model: onnx.ModelProto) -> dict[str, Array]:
    return {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= 2
    }


def _replace(
    model: onnx.ModelProto, stored: dict[str, list[onnx.TensorProto]], nodes: list[onnx.NodeProto]
) -> None:
    """`nodes` instead of the graph's own, and what is stored anew instead of the constants of old: but for those that
    something still reads."""
    made = {name for node in nodes for name in node.output}
    read = {name for node in nodes for name in node.input} | {end.name for end in model.graph.output}
    kept = [each for each in model.graph.initializer if each.name not in stored or each.name in read - made]
    added = [tensor for tensors in stored.values() for tensor in tensors]
    entries = [entry for entry in model.graph.input if entry.name not in stored]
    del model.graph.node[:], model.graph.initializer[:], model.graph.input[:]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend([*kept, *added])
    model.graph.input.extend(entries)


def _check_runs(model: bytes) -> None:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        told = " ".join(str(error).split())[:200]
        raise InvalidRequest(
            f"ONNX Runtime {ort.__version__} has no kernel for 4-bit matrices here ({told}); set bits=8"
        ) from error
