"""fp32 ONNX -> static int8 ONNX: QDQ, weights per channel, activations calibrated on real samples."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import onnxruntime.quantization as ortq
from numpy.typing import NDArray
from onnxruntime.quantization.shape_inference import quant_pre_process
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import InvalidRequest
from cluster.tensors import NUMPY_OF_DATATYPE
from cluster.variants import TensorSpec


class QuantizeConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    calibration: Literal["minmax", "percentile", "entropy"] = "minmax"
    samples: int = Field(default=512, ge=1)
    per_channel: bool = True
    reduce_range: bool = True
    """7-bit weights: x86 without VNNI adds pairs of u8*s8 products in 16 bits and saturates (docs/decisions/0002)."""
    min_input_channels: int = Field(default=4, ge=1)
    """Convolutions of fewer input channels stay fp32: int8 kernels take products by fours, and the first convolution
    over one channel was 6 times as slow in int8 as in fp32 (it has 0.3% of the weights)."""


class _Samples(ortq.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, samples: NDArray[np.generic], batch_size: int = 64) -> None:
        self._batches: Iterator[dict[str, Any]] = iter(
            [{name: samples[i : i + batch_size]} for i in range(0, len(samples), batch_size)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


_OPERATORS = ["Conv", "Gemm", "MatMul", "MaxPool", "Relu"]
_METHODS = {
    "minmax": ortq.CalibrationMethod.MinMax,
    "percentile": ortq.CalibrationMethod.Percentile,
    "entropy": ortq.CalibrationMethod.Entropy,
}


def quantize(
    model: bytes, samples: NDArray[np.generic], config: QuantizeConfig, *, inputs: TensorSpec
) -> bytes:
    """The quantized graph. `samples` (N, ...), of which the first `config.samples` calibrate.

    Raises InvalidRequest if there are no samples, they do not have the model's shape, or nothing in the graph can be
    quantized.
    """
    fits = len(samples.shape) == len(inputs.shape) and all(
        want in (-1, have) for have, want in zip(samples.shape, inputs.shape, strict=True)
    )
    if samples.dtype != NUMPY_OF_DATATYPE[inputs.datatype] or not fits or not samples.size:
        raise InvalidRequest(
            f"calibration samples are {samples.dtype} {list(samples.shape)}; input {inputs.name!r} takes "
            f"{inputs.datatype} {list(inputs.shape)}, and at least one"
        )
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared, target = (Path(folder) / name for name in ("in.onnx", "prepared.onnx", "out.onnx"))
        source.write_bytes(model)
        try:
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            ortq.quantize_static(
                str(prepared), str(target), _Samples(inputs.name, samples[: config.samples]),
                quant_format=ortq.QuantFormat.QDQ, per_channel=config.per_channel, reduce_range=config.reduce_range,
                calibrate_method=_METHODS[config.calibration], activation_type=ortq.QuantType.QUInt8,
                weight_type=ortq.QuantType.QInt8, op_types_to_quantize=_OPERATORS,
                nodes_to_exclude=narrow_convolutions(onnx.load(prepared), config.min_input_channels),
            )  # fmt: skip
        except Exception as error:
            raise InvalidRequest(f"ONNX Runtime cannot quantize this graph: {error!r}"[:500]) from error
        made = target.read_bytes()
    if not any(node.op_type == "QuantizeLinear" for node in onnx.load_from_string(made).graph.node):
        raise InvalidRequest(f"the graph has none of the operators that are quantized: {', '.join(_OPERATORS)}")
    return made


def narrow_convolutions(model: onnx.ModelProto, channels: int) -> list[str]:
    """Names of the convolutions whose kernels span fewer than `channels` input channels."""
    kernels = {tensor.name: tensor.dims for tensor in model.graph.initializer}
    return [
        node.name
        for node in model.graph.node
        if node.op_type == "Conv" and node.input[1] in kernels and kernels[node.input[1]][1] < channels
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """ONNX Runtime's tools report every step to the root logger; what stands there is for others."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)
