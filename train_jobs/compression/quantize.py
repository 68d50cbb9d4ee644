"""fp32 ONNX -> static int8 ONNX: QDQ, weights per channel, activations calibrated on real pictures."""

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


class _Pictures(ortq.CalibrationDataReader):  # type: ignore[misc]
    def __init__(self, name: str, pictures: NDArray[np.uint8], batch_size: int = 64) -> None:
        self._batches: Iterator[dict[str, Any]] = iter(
            [{name: pictures[i : i + batch_size]} for i in range(0, len(pictures), batch_size)]
        )

    def get_next(self) -> dict[str, Any] | None:
        return next(self._batches, None)


_METHODS = {
    "minmax": ortq.CalibrationMethod.MinMax,
    "percentile": ortq.CalibrationMethod.Percentile,
    "entropy": ortq.CalibrationMethod.Entropy,
}


def quantize(
    model: bytes, pictures: NDArray[np.uint8], config: QuantizeConfig, *, input_name: str, shape: tuple[int, ...]
) -> bytes:
    """The quantized graph. `pictures` uint8 (N, ...), of which the first `config.samples` calibrate.

    Raises InvalidRequest if there are no pictures or they do not have the model's shape.
    """
    if pictures.dtype != np.uint8 or pictures.shape[1:] != shape[1:] or not len(pictures):
        raise InvalidRequest(
            f"calibration pictures are {pictures.dtype} {list(pictures.shape)}; input {input_name!r} takes "
            f"uint8 {list(shape)}, and at least one"
        )
    with tempfile.TemporaryDirectory() as folder, _quiet():
        source, prepared, target = (Path(folder) / name for name in ("in.onnx", "prepared.onnx", "out.onnx"))
        source.write_bytes(model)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        ortq.quantize_static(
            str(prepared), str(target), _Pictures(input_name, pictures[: config.samples]),
            quant_format=ortq.QuantFormat.QDQ, per_channel=config.per_channel, reduce_range=config.reduce_range,
            calibrate_method=_METHODS[config.calibration], activation_type=ortq.QuantType.QUInt8,
            weight_type=ortq.QuantType.QInt8, op_types_to_quantize=["Conv", "Gemm", "MatMul", "MaxPool", "Relu"],
            nodes_to_exclude=narrow_convolutions(onnx.load(prepared), config.min_input_channels),
        )  # fmt: skip
        return target.read_bytes()


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
