"""fp32 ONNX -> dynamic int8 ONNX: weights quantized now, activations as they come. No samples are needed, and recurrent
cells, which static int8 leaves in fp32, compute in int8 as well (DynamicQuantizeLSTM, ONNX Runtime's own operator).

What comes in is scaled by the least and greatest value of its whole batch, in a cell at every step: what is answered to
a sample depends a little on the samples beside it, and on how many they are.
"""

from __future__ import annotations

from typing import Literal

import onnx
import onnxruntime.quantization as ortq
from onnxruntime.quantization.shape_inference import quant_pre_process
from pydantic import BaseModel, ConfigDict

from cluster.errors import InvalidRequest
from train_jobs.compression.quantize import tools


class DynamicConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    operators: tuple[Literal["MatMul", "LSTM", "Conv"], ...] = ("MatMul", "LSTM")
    """MatMul: Gemm too, which becomes one. Conv: its int8 kernel for scales that come late is slower than fp32."""
    per_channel: bool = True
    """A scale for each column of a matrix, and for each row of a cell's."""
    reduce_range: bool = True
    """7-bit weights: x86 without VNNI adds pairs of u8*s8 products in 16 bits and saturates (docs/decisions/0002)."""
    exclude: tuple[str, ...] = ()
    """Nodes that stay fp32, by name."""


_MADE = {"MatMulInteger", "DynamicQuantizeMatMul", "ConvInteger", "DynamicQuantizeLSTM"}


def dynamic(model: bytes, config: DynamicConfig) -> bytes:
    """The quantized graph; biases and what lies between the layers stay fp32.

    Raises InvalidRequest if nothing in the graph can be quantized, a name in `exclude` is no node's, or a cell takes
    batches first, which ONNX Runtime's operator does not.
    """
    with tools() as folder:
        source, prepared, target = (folder / name for name in ("in.onnx", "prepared.onnx", "out.onnx"))
        source.write_bytes(model)
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        nodes = list(onnx.load(prepared).graph.node)
        _check(nodes, config)
        # A Gemm is taken apart before it is quantized, and its product has this name then.
        exclude = [f"{name}{suffix}" for name in config.exclude for suffix in ("", "_MatMul")]
        ortq.quantize_dynamic(
            str(prepared), str(target), op_types_to_quantize=list(config.operators),
            per_channel=config.per_channel, reduce_range=config.reduce_range, weight_type=ortq.QuantType.QInt8,
            nodes_to_exclude=exclude,
        )  # fmt: skip
        made = target.read_bytes()
    if not any(node.op_type in _MADE for node in onnx.load_from_string(made).graph.node):
        raise InvalidRequest(
            f"the graph has no {' or '.join(config.operators)} with constant weights that could be quantized; leave "
            "this pass out"
        )
    return made


def _check(nodes: list[onnx.NodeProto], config: DynamicConfig) -> None:
    if unknown := sorted(set(config.exclude) - {node.name for node in nodes}):
        known = [node.name for node in nodes if node.op_type in (*config.operators, "Gemm")]
        raise InvalidRequest(f"exclude={unknown} names no node; nodes that are quantized: {', '.join(known)}")
    for node in nodes:
        batch_first = any(each.name == "layout" and each.i for each in node.attribute)
        if node.op_type == "LSTM" and "LSTM" in config.operators and batch_first and node.name not in config.exclude:
            raise InvalidRequest(
                f"LSTM {node.name!r} has layout=1 (batches first), which DynamicQuantizeLSTM lacks; export it with "
                f"steps first, or set exclude=[{node.name!r}]"
            )

