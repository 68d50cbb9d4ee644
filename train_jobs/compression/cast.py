"""fp32 ONNX -> the same graph with its weights in bf16: half the bytes; a runtime with bf16 kernels computes in it.

bf16 keeps fp32's exponent and 7 bits of its fraction (Kalamkar et al., "A Study of BFLOAT16 for Deep Learning
Training", 2019, section 3), so nothing overflows and no calibration is needed. Each weight is cast back to fp32 where
it is used: a runtime that knows no bf16 folds the casts away and computes in fp32 with the rounded weights; one that
does (OpenVINO, told so by the manifest's precision) multiplies in bf16 and accumulates in fp32.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
from onnx import helper, numpy_helper

from cluster.errors import InvalidRequest

_OPSET = 13
"""The first whose Cast takes bfloat16."""


def to_bf16(model: bytes) -> bytes:
    """The graph with every fp32 kernel and matrix in bf16; vectors (biases, scales) stay.

    Raises InvalidRequest if there is nothing to cast, or the graph is older than the operators that could.
    """
    proto = onnx.load_from_string(model)
    opset = max((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), default=0)
    if opset < _OPSET:
        raise InvalidRequest(
            f"the graph has opset {opset}, and ONNX casts bf16 from opset {_OPSET} on; export it anew with a later one"
        )
    kept, casts = [], []
    for tensor in proto.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or len(tensor.dims) < 2:
            kept.append(tensor)
            continue
        # numpy rounds to nearest even here, as the hardware does.
        rounded = numpy_helper.to_array(tensor).astype(ml_dtypes.bfloat16)
        name = f"{tensor.name}.bf16"
        kept.append(
            onnx.TensorProto(
                name=name, data_type=onnx.TensorProto.BFLOAT16, dims=tensor.dims,
                raw_data=np.ascontiguousarray(rounded).tobytes(),
            )
        )
        casts.append(helper.make_node("Cast", [name], [tensor.name], name=f"{name}.cast", to=onnx.TensorProto.FLOAT))
    if not casts:
        raise InvalidRequest("the graph has no fp32 kernel or matrix that bf16 could halve; leave this pass out")
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
