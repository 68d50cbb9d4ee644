"""fp32 ONNX -> the same graph with its weights in bf16 or fp16: half the bytes; a runtime with such kernels computes in
them.

bf16 keeps fp32's exponent and 7 bits of its fraction (Kalamkar et al., "A Study of BFLOAT16 for Deep Learning
Training", 2019, section 3), so nothing overflows and no calibration is needed. fp16 keeps 10 bits of the fraction and
reaches 65504 only. Each weight is cast back to fp32 where it is used: a runtime that knows neither folds the casts away
and computes in fp32 with the rounded weights; one that does (OpenVINO, told so by the manifest's precision) multiplies
in bf16 and accumulates in fp32.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper
from pydantic import BaseModel, ConfigDict

from cluster.errors import InvalidRequest
from train_jobs.graph import opset_of


class CastConfig(BaseModel):
    """Neither datatype leaves anything to choose."""

    model_config = ConfigDict(frozen=True, extra="forbid")


@dataclass(frozen=True)
class _Half:
    """A datatype of 16 bits."""

    name: str
    onnx_type: int
    dtype: Any
    opset: int
    """The first whose Cast takes it."""
    greatest: float


_BF16 = _Half("bf16", onnx.TensorProto.BFLOAT16, ml_dtypes.bfloat16, opset=13, greatest=(2 - 2.0**-7) * 2.0**127)
_FP16 = _Half("fp16", onnx.TensorProto.FLOAT16, np.float16, opset=6, greatest=65504.0)


def to_bf16(model: bytes) -> bytes:
    """The graph with every fp32 kernel and matrix in bf16; vectors (biases, scales) stay.

    Raises InvalidRequest if there is nothing to cast, or the graph is older than the operators that could.
    """
    return _cast(model, _BF16)


def to_fp16(model: bytes) -> bytes:
    """The graph with every fp32 kernel and matrix in fp16; vectors (biases, scales) stay.

    Raises InvalidRequest as `to_bf16` does, and for a weight beyond 65504, which fp16 has no number for.
    """
    return _cast(model, _FP16)


def _cast(model: bytes, half: _Half) -> bytes:
    proto = onnx.load_from_string(model)
    opset = opset_of(proto)
    if opset < half.opset:
        raise InvalidRequest(
            f"the graph has opset {opset}, and ONNX casts {half.name} from opset {half.opset} on; export it anew with "
            "a later one"
        )
    kept, casts = [], []
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            kept.append(tensor)
            continue
        name = f"{tensor.name}.{half.name}"
        kept.append(
            onnx.TensorProto(
                name=name, data_type=half.onnx_type, dims=tensor.dims, raw_data=_rounded(tensor, half),
            )
        )  # fmt: skip
        casts.append(helper.make_node("Cast", [name], [tensor.name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT))
    if not casts:
        raise InvalidRequest(
            f"the graph has no fp32 kernel or matrix that {half.name} could halve; leave this pass out"
        )
    # Files of before 2019 list their constants among the inputs too: replaceable, which what a node makes is not.
    made = {node.output[0] for node in casts}
    entries = [entry for entry in proto.graph.input if entry.name not in made]
    nodes = [*casts, *proto.graph.node]
    del proto.graph.initializer[:], proto.graph.node[:], proto.graph.input[:]
    proto.graph.input.extend(entries)
    proto.graph.initializer.extend(kept)
    proto.graph.node.extend(nodes)
    onnx.checker.check_model(proto)
    return bytes(proto.SerializeToString())


def _rounded(tensor: onnx.TensorProto, half: _Half) -> bytes:
    """numpy rounds to nearest even here, as the hardware does."""
    values = numpy_helper.to_array(tensor)
    highest = float(np.abs(values).max(initial=0.0))
    if highest > half.greatest:
        raise InvalidRequest(
            f"weight {tensor.name!r} reaches {highest:g}, and {half.name} ends at {half.greatest:g}; cast to bf16 "
            "instead, or leave this pass out"
        )
    return np.ascontiguousarray(values.astype(half.dtype)).tobytes()
