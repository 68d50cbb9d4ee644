"""ONNX graph -> the same graph, its channels scaled between pairs of layers so that int8 fits them better.

Between two layers with nothing but ReLU (or what else takes a positive factor through) a channel can be divided by any
number if the weights that read it are multiplied by the same: relu(W1 x + b1) = s relu((W1 x + b1) / s). One channel
that is far larger than its neighbours no longer decides the grid of all.

by=weights: Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section
4.1, equations 9 to 11. by=activations: Xiao et al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for
Large Language Models", ICML 2023, section 4, equation 4.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import InvalidRequest
from cluster.variants import TensorSpec
from train_jobs.compression.calibrate import activations
from train_jobs.compression.optimise import all_nodes, optimise
from train_jobs.compression.quantize import check_samples

Array = NDArray[np.float64]
_LAYERS = ("Conv", "ConvTranspose", "Gemm")
_THROUGH = {
    "Relu", "LeakyRelu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "Identity",
}  # fmt: skip
"""f(s x) = s f(x) for s > 0, channel by channel."""
_RESHAPES = ("Reshape", "Flatten")
_SETTLED = 1e-3
"""Factors this near to one change nothing that int8 could tell."""


class EqualiseConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    by: Literal["weights", "activations"] = "weights"
    """What is made equal: a channel's weights before and after it, or, on samples, the activations themselves."""
    alpha: float = Field(default=0.5, ge=0, le=1)
    """How much of what the activations differ by moves into the weights, with by=activations."""
    samples: int = Field(default=512, ge=1)
    """That show how large activations become, with by=activations."""
    rounds: int = Field(default=20, ge=1)
    """At most, with by=weights: a layer between two others belongs to two pairs."""


@dataclass(frozen=True)
class _Pair:
    """Two layers and the channels between them."""

    first: onnx.NodeProto
    second: onnx.NodeProto
    channels: int


def equalise(
    model: bytes, config: EqualiseConfig, *, samples: NDArray[np.generic] | None = None,
    inputs: TensorSpec | None = None,
) -> bytes:  # fmt: skip
    """The graph with equalised channels; it computes what it did, to rounding. Batch norms are folded on the way.

    by=activations takes `samples` (N, ...) of `inputs`. Raises InvalidRequest if no two layers are a pair, or samples
    are missing or do not fit.
    """
    proto = onnx.load_from_string(optimise(model, "basic"))
    pairs = _pairs(proto)
    if not pairs:
        raise InvalidRequest(
            f"no two of the graph's layers ({', '.join(_LAYERS)}) have nothing but ReLU, pooling or a reshape between "
            "them; leave equalisation out"
        )
    used = {name for pair in pairs for node in (pair.first, pair.second) for name in node.input[1:] if name}
    constants = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float64)
        for tensor in proto.graph.initializer
        if tensor.name in used
    }
    if config.by == "weights":
        _by_weights(pairs, constants, config.rounds)
    else:
        if samples is None or inputs is None:
            raise InvalidRequest("by=activations needs samples and what input they are for; pass them, or by=weights")
        check_samples(samples, inputs)
        peaks = _peaks(proto, [pair.second.input[0] for pair in pairs], samples[: config.samples], inputs.name)
        _by_activations(pairs, constants, peaks, config.alpha)
    for tensor in proto.graph.initializer:
        if tensor.name in constants:
            tensor.CopyFrom(numpy_helper.from_array(constants[tensor.name].astype(np.float32), tensor.name))
    return bytes(proto.SerializeToString())


def _by_weights(pairs: list[_Pair], constants: dict[str, Array], rounds: int) -> None:
    """Scale every pair in turn, until no factor is far from one."""
    for _ in range(rounds):
        farthest = 0.0
        for pair in pairs:
            before = _reach(constants[pair.first.input[1]], _out_axis(pair.first), pair.channels)
            after = _reach(constants[pair.second.input[1]], _in_axis(pair.second), pair.channels)
            factors = np.ones(pair.channels)  # which stays where nothing comes out of a channel, or nothing reads it
            known = (before > 0) & (after > 0)
            factors[known] = np.sqrt(before[known] / after[known])
            _scale(pair, constants, factors)
            farthest = max(farthest, float(np.abs(np.log(factors)).max()))
        if farthest < _SETTLED:
            return


def _by_activations(
    pairs: list[_Pair], constants: dict[str, Array], peaks: dict[str, Array], alpha: float
) -> None:
    """Once: a pair's factors change no other's activations."""
    for pair in pairs:
        peak = peaks[pair.second.input[0]].reshape(pair.channels, -1).max(1)
        weights = _reach(constants[pair.second.input[1]], _in_axis(pair.second), pair.channels)
        factors = np.ones(pair.channels)
        known = (peak > 0) & (weights > 0)
        factors[known] = peak[known] ** alpha / weights[known] ** (1 - alpha)
        _scale(pair, constants, factors)


def _scale(pair: _Pair, constants: dict[str, Array], factors: Array) -> None:
    """Divide what the first layer gives by `factors`, a channel each, and multiply what the second reads it with."""
    first, second = pair.first.input[1], pair.second.input[1]
    axis, other = _out_axis(pair.first), _in_axis(pair.second)
    units = np.repeat(factors, constants[first].shape[axis] // pair.channels)
    constants[first] = constants[first] / _along(units, axis, constants[first].ndim)
    if _bias(pair.first):
        bias = constants[pair.first.input[2]]
        constants[pair.first.input[2]] = bias / units.reshape(bias.shape)
    read = np.repeat(factors, constants[second].shape[other] // pair.channels)
    constants[second] = constants[second] * _along(read, other, constants[second].ndim)


def _along(values: Array, axis: int, ndim: int) -> Array:
    return values.reshape([-1 if each == axis else 1 for each in range(ndim)])


def _reach(weights: Array, axis: int, channels: int) -> Array:
    """The greatest absolute weight of each channel, which may be several places along `axis` in a row."""
    return np.asarray(np.abs(np.moveaxis(weights, axis, 0)).reshape(channels, -1).max(1))


def _bias(node: onnx.NodeProto) -> bool:
    return len(node.input) > 2 and bool(node.input[2])


def _attribute(node: onnx.NodeProto, name: str, default: int) -> int:
    return next((int(each.i) for each in node.attribute if each.name == name), default)


def _out_axis(node: onnx.NodeProto) -> int:
    """Of the weights: where the output channels lie."""
    if node.op_type == "Gemm":
        return 0 if _attribute(node, "transB", 0) else 1
    return 0 if node.op_type == "Conv" else 1


def _in_axis(node: onnx.NodeProto) -> int:
    """Of the weights: where the input channels lie. A depthwise convolution has one kernel for each of them."""
    if node.op_type == "Gemm":
        return 1 if _attribute(node, "transB", 0) else 0
    if node.op_type == "ConvTranspose":
        return 0
    return 0 if _attribute(node, "group", 1) > 1 else 1


def _pairs(model: onnx.ModelProto) -> list[_Pair]:
    """All pairs whose weights are theirs alone, first layers in the graph's order."""
    shapes = _shapes(model)
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    uses = Counter(name for node in all_nodes(model.graph) for name in node.input)
    readers = {name: node for node in model.graph.node for name in node.input}
    ends = {output.name for output in model.graph.output}

    def own(node: onnx.NodeProto) -> bool:
        names = [name for name in node.input[1:] if name]
        return node.op_type in _LAYERS and all(name in dims and uses[name] == 1 for name in names)

    found = []
    for first in model.graph.node:
        if not own(first) or not _scalable(first, dims):
            continue
        tensor, reshaped = first.output[0], False
        while tensor not in ends and uses[tensor] == 1 and _goes_through(readers[tensor], shapes):
            reshaped |= readers[tensor].op_type in _RESHAPES
            tensor = readers[tensor].output[0]
        if tensor in ends or uses[tensor] != 1 or not own(readers[tensor]) or readers[tensor].input[0] != tensor:
            continue
        second = readers[tensor]
        channels = _channels(first, second, dims, reshaped=reshaped)
        if channels:
            found.append(_Pair(first, second, channels))
    return found


def _scalable(node: onnx.NodeProto, dims: dict[str, tuple[int, ...]]) -> bool:
    """Can each of its output channels be divided by a number of its own?"""
    units = dims[node.input[1]][_out_axis(node)]
    if node.op_type == "Gemm" and _attribute(node, "transA", 0):
        return False
    if node.op_type == "ConvTranspose" and _attribute(node, "group", 1) > 1:
        return False
    return not _bias(node) or math.prod(dims[node.input[2]]) == units


def _channels(
    first: onnx.NodeProto, second: onnx.NodeProto, dims: dict[str, tuple[int, ...]], *, reshaped: bool
) -> int:
    """How many channels lie between the two, 0 if they cannot be told. A reshape makes several places of each, side by
    side, or of several one."""
    kernel, group = dims[second.input[1]], _attribute(second, "group", 1)
    if second.op_type == "Gemm" and _attribute(second, "transA", 0):
        return 0
    if group > 1 and (second.op_type != "Conv" or kernel[1] != 1 or kernel[0] != group):
        return 0
    given, read = dims[first.input[1]][_out_axis(first)], kernel[_in_axis(second)]
    fewer, more = sorted((given, read))
    return fewer if fewer == more or (reshaped and more % fewer == 0) else 0


def _goes_through(node: onnx.NodeProto, shapes: dict[str, list[int]]) -> bool:
    """Does a factor of a channel go through? Through a reshape if each sample keeps its values to itself: their order
    stays, so a channel stays in one piece."""
    if node.op_type not in _RESHAPES:
        return node.op_type in _THROUGH
    given, made = (shapes.get(name, [])[1:] for name in (node.input[0], node.output[0]))
    return min([*given, *made], default=0) > 0 and math.prod(given) == math.prod(made)


def _shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    inferred = onnx.shape_inference.infer_shapes(model)
    return {
        info.name: [dim.dim_value if dim.HasField("dim_value") else -1 for dim in info.type.tensor_type.shape.dim]
        for info in (*inferred.graph.value_info, *inferred.graph.output)
        if info.type.tensor_type.HasField("shape")
    }


def _peaks(
    model: onnx.ModelProto, tensors: list[str], samples: NDArray[np.generic], entry: str
) -> dict[str, Array]:
    """The greatest absolute value of each channel (axis 1) of `tensors` over the samples."""
    found: dict[str, Array] = {}
    for arrays in activations(model, {entry: samples}, tensors):
        for name, values in arrays.items():
            peak = np.abs(values).max(axis=(0, *range(2, values.ndim))).astype(np.float64)
            found[name] = np.maximum(found.get(name, peak), peak)
    return found
