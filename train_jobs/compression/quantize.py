"""fp32 ONNX -> static int8 ONNX: QDQ, weights per channel, activations calibrated on real samples.

Kernels and matrices (Conv, ConvTranspose, Gemm, MatMul) compute in int8, and what lies between two of them (Relu,
MaxPool, a residual Add) stays in it. Recurrent cells, normalisations and all other operators stay fp32.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
import onnxruntime.quantization as ortq
from numpy.typing import NDArray
from onnxruntime.quantization.shape_inference import quant_pre_process
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import InvalidRequest
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec
from train_jobs.compression.calibrate import Method, Ranges, calibrated


class QuantizeConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: Method = "minmax"
    samples: int = Field(default=512, ge=1)
    per_channel: bool = True
    reduce_range: bool = True
    """7-bit weights: x86 without VNNI adds pairs of u8*s8 products in 16 bits and saturates (docs/decisions/0002)."""
    min_input_channels: int = Field(default=4, ge=1)
    """Convolutions of fewer input channels stay fp32: int8 kernels take products by fours, and the first convolution
    over one channel was 6 times as slow in int8 as in fp32 (it has 0.3% of the weights)."""
    exclude: tuple[str, ...] = ()
    """Layers that stay fp32, by the names that `Calibration.layers` has."""
    float_outputs: bool = False
    """Gemm, MatMul and ConvTranspose give fp32 where no int8 operator reads it. 256 levels tell classes apart, but they
    show in a forecast or a picture. (A Conv always gives int8: without a scale for that it would not compute in it.)"""


_WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
_OPERATORS = [*_WEIGHTED, "MaxPool", "Relu", "Add"]
BETWEEN = {"Relu", "MaxPool", "Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Identity"}
"""What hands int8 values on."""


def quantize(
    model: bytes, samples: NDArray[np.generic], config: QuantizeConfig, *, inputs: TensorSpec
) -> bytes:
    """The quantized graph. `samples` (N, ...), of which the first `config.samples` calibrate.

    Raises InvalidRequest if there are no samples, they do not have the model's shape, or nothing in the graph can be
    quantized.
    """
    return Calibration(model, samples, config, inputs=inputs).int8()


class Calibration:
    """A graph that has seen its samples once: any number of int8 graphs are made of it without running it again."""

    def __init__(
        self, model: bytes, samples: NDArray[np.generic], config: QuantizeConfig, *, inputs: TensorSpec
    ) -> None:
        """Raises InvalidRequest as `quantize` does."""
        check_samples(samples, inputs)
        self._config = config
        with tools() as folder:
            source, prepared = folder / "in.onnx", folder / "prepared.onnx"
            source.write_bytes(model)
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            self.graph: onnx.ModelProto = _named(onnx.load(prepared))
        entries = {entry.name for entry in self.graph.graph.input} - _constants(self.graph).keys()
        if entries != {inputs.name}:
            raise InvalidRequest(
                f"the graph takes {sorted(entries)}, and calibration samples are for {inputs.name!r} alone; cut the "
                "graph to that one input"
            )
        self.layers: tuple[str, ...] = tuple(_layers(self.graph, config.min_input_channels))
        """Names of the nodes that can compute in int8, in the graph's order."""
        if not self.layers:
            raise InvalidRequest(
                f"the graph has none of the operators that are quantized: {', '.join(_WEIGHTED)} (a Conv of at least "
                f"min_input_channels={config.min_input_channels}); leave this pass out"
            )
        sums = any(node.op_type == "Add" and node.name in self.layers for node in self.graph.graph.node)
        self._operators = [name for name in _OPERATORS if name != "Add" or sums]
        seen = {inputs.name: samples[: config.samples]}
        self._ranges = calibrated(self.graph, seen, self._operators, config.calibration)

    def int8(self, *, exclude: tuple[str, ...] = (), ranges: Ranges | None = None) -> bytes:
        """The graph with every layer in int8 but those of `exclude` and of the config's own. `ranges` of tensors take
        the place of what was calibrated. Raises InvalidRequest for a name that is no layer's, and if none is left."""
        config = self._config
        left_out = {*exclude, *config.exclude}
        if unknown := sorted(left_out - set(self.layers)):
            raise InvalidRequest(f"exclude={unknown} names no layer; layers: {', '.join(self.layers)}")
        if left_out == set(self.layers):
            raise InvalidRequest(f"exclude={sorted(left_out)} leaves nothing to quantize; name fewer layers")
        chosen = set(self.layers) - left_out
        others = [
            node.name for node in self.graph.graph.node
            if node.op_type in (*_WEIGHTED, "Add") and node.name not in chosen
        ]  # fmt: skip
        found = {
            name: (np.array([low], np.float32), np.array([high], np.float32))
            for name, (low, high) in {**self._ranges, **(ranges or {})}.items()
        }
        with tools() as folder:
            prepared, known, target = (folder / name for name in ("prepared.onnx", "ranges.json", "out.onnx"))
            onnx.save(self.graph, prepared)
            ortq.save_tensors_data(ortq.TensorsData(ortq.CalibrationMethod.MinMax, found), known)
            ortq.quantize_static(
                str(prepared), str(target), calibration_cache_path=known, quant_format=ortq.QuantFormat.QDQ,
                per_channel=config.per_channel, reduce_range=config.reduce_range,
                activation_type=ortq.QuantType.QUInt8, weight_type=ortq.QuantType.QInt8,
                op_types_to_quantize=self._operators, nodes_to_exclude=others,
            )  # fmt: skip
            made = target.read_bytes()
        return _without_pairs(made, _last_results(self.graph, chosen)) if config.float_outputs else made


def narrow_convolutions(model: onnx.ModelProto, channels: int) -> list[str]:
    """Names of the convolutions whose kernels span fewer than `channels` input channels."""
    kernels = _constants(model)
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in kernels and kernels[node.input[1]].dims[1] < channels
    ]


def check_samples(samples: NDArray[np.generic], inputs: TensorSpec) -> None:
    fits = len(samples.shape) == len(inputs.shape) and all(
        want in (-1, have) for have, want in zip(samples.shape, inputs.shape, strict=True)
    )
    if samples.dtype != NUMPY_OF_DATATYPE[inputs.datatype] or not fits or not samples.size:
        raise InvalidRequest(
            f"calibration samples are {samples.dtype} {list(samples.shape)}; input {inputs.name!r} takes "
            f"{inputs.datatype} {list(inputs.shape)}, and at least one"
        )


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def _named(model: onnx.ModelProto) -> onnx.ModelProto:
    """With a name for each layer that an exporter gave none: layers are left out by name."""
    for node in model.graph.node:
        if not node.name and node.op_type in _OPERATORS:
            node.name = f"{node.op_type}_{node.output[0]}"
    return model


def _layers(model: onnx.ModelProto, channels: int) -> list[str]:
    """Names of what can compute in int8: weighted operators, and sums of what such operators gave."""
    narrow = set(narrow_convolutions(model, channels))
    made = {name: node for node in model.graph.node for name in node.output}
    sums: set[str] = set()

    def computed(tensor: str) -> bool:
        node = made.get(tensor)
        while node is not None and node.op_type in BETWEEN:
            node = made.get(node.input[0])
        return node is not None and (node.op_type in _WEIGHTED or node.name in sums)

    found = []
    for node in model.graph.node:
        if node.op_type == "Add" and all(computed(name) for name in node.input):
            sums.add(node.name)
            found.append(node.name)
        elif node.op_type in _WEIGHTED and node.name not in narrow and not _grouped(node):
            found.append(node.name)
    return found


def _grouped(node: onnx.NodeProto) -> bool:
    """A transposed convolution in groups, for whose kernels ONNX Runtime's tool gets the number of scales wrong."""
    return node.op_type == "ConvTranspose" and any(each.name == "group" and each.i > 1 for each in node.attribute)


def _last_results(model: onnx.ModelProto, chosen: set[str]) -> set[str]:
    """Results of chosen Gemm, MatMul and ConvTranspose nodes that no chosen layer reads, not even by way of operators
    that hand values on."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def is_read(tensor: str) -> bool:
        return any(
            node.name in chosen or (node.op_type in BETWEEN and is_read(node.output[0]))
            for node in readers.get(tensor, [])
        )

    return {
        node.output[0]
        for node in model.graph.node
        if node.name in chosen and node.op_type in ("Gemm", "MatMul", "ConvTranspose") and not is_read(node.output[0])
    }


def _without_pairs(model: bytes, tensors: set[str]) -> bytes:
    """The quantized graph with `tensors` as their nodes give them, not rounded to int8 and back."""
    proto = onnx.load_from_string(model)
    ends = {output.name for output in proto.graph.output}
    rounding = {n.name: n for n in proto.graph.node if n.op_type in ("QuantizeLinear", "DequantizeLinear")}
    gone, renamed = set(), {}
    for tensor in tensors:
        down, up = rounding.get(f"{tensor}_QuantizeLinear"), rounding.get(f"{tensor}_DequantizeLinear")
        if down is None or up is None:
            continue  # its Relu went into it, and the rounding with that is what cuts the negative half off
        gone |= {down.name, up.name}
        # What the graph answers keeps its name; anything else is read under the name that its node gave it.
        old, new = (down.input[0], up.output[0]) if up.output[0] in ends else (up.output[0], down.input[0])
        renamed[old] = new
    nodes = [node for node in proto.graph.node if node.name not in gone]
    for node in nodes:
        for names in (node.input, node.output):
            names[:] = [renamed.get(name, name) for name in names]
    read = {name for node in nodes for name in node.input}
    constants = [tensor for tensor in proto.graph.initializer if tensor.name in read]
    del proto.graph.node[:], proto.graph.initializer[:]
    proto.graph.node.extend(nodes)
    proto.graph.initializer.extend(constants)
    return bytes(proto.SerializeToString())


@contextmanager
def tools() -> Iterator[Path]:
    """A folder in which ONNX Runtime's tools work, and are quiet: they report every step to the root logger and to
    stdout, and what stands there is for others. Whatever they raise is an InvalidRequest."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()),
            warnings.catch_warnings(),
        ):  # fmt: skip
            warnings.simplefilter("ignore")
            yield Path(folder)
    except InvalidRequest:
        raise
    except Exception as error:
        raise InvalidRequest(f"ONNX Runtime cannot quantize this graph: {error!r}"[:500]) from error
    finally:
        logging.disable(before)
