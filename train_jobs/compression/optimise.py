"""ONNX graph -> the same graph, optimised ahead of time by ONNX Runtime: constants folded, batch norms inside the
layers before them, at the higher level activations inside them too.

Neither level looks at the CPU. The one above them lays tensors out for the vectors of the machine it runs on, so its
graphs are not for keeping; a session still does that when it loads one of ours.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import onnx
import onnxruntime as ort
from pydantic import BaseModel, ConfigDict

from cluster.errors import InvalidRequest
from train_jobs.export import without_notes

Level = Literal["basic", "extended"]
"""basic: operators of ONNX's own alone, so every runtime takes it. extended: also ONNX Runtime's (FusedConv,
FusedMatMul), which few others know."""
_LEVELS = {
    "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    "extended": ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
}
_UNSAFE = ["GemmActivationFusion"]
"""OpenVINO takes every FusedGemm and computes ReLU in it, whatever activation the node names: measured with sigmoid,
tanh and seven others, the answers were wrong and no error told so."""
_STANDARD = {"", "ai.onnx"}
_ADDED: dict[str, set[str]] = {"basic": set(), "extended": {"com.microsoft"}}
"""Domains whose operators may come in."""


class OptimiseConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    level: Level = "basic"


def optimise(model: bytes, level: Level) -> bytes:
    """The optimised graph: same inputs, outputs and answers (to rounding), on any CPU; the same graph gives the same
    bytes.

    Raises InvalidRequest if ONNX Runtime cannot load the graph, or made one that is for this machine alone.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "optimised.onnx"
        options = ort.SessionOptions()
        options.graph_optimization_level = _LEVELS[level]
        options.optimized_model_filepath = str(path)
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        try:
            before = onnx.load_from_string(model)
            ort.InferenceSession(model, options, providers=["CPUExecutionProvider"], disabled_optimizers=_UNSAFE)
            made = without_notes(onnx.load(path))
        except Exception as error:
            told = " ".join(str(error).split())[:300]
            raise InvalidRequest(f"ONNX Runtime cannot optimise this graph: {told}") from error
    used = {node.domain for node in all_nodes(made.graph)}
    foreign = used - _STANDARD - _ADDED[level] - {node.domain for node in all_nodes(before.graph)}
    if foreign:
        raise InvalidRequest(
            f"level={level} made operators of {sorted(foreign)}, which are for this machine alone; take a lower level"
        )
    # ONNX Runtime lists every operator set that it knows, and another runtime may refuse a file over one it does not.
    kept = [opset for opset in made.opset_import if opset.domain in used | _STANDARD]
    del made.opset_import[:]
    made.opset_import.extend(kept)
    return bytes(made.SerializeToString())


def folded_batch_norms(before: bytes, after: bytes) -> int:
    """How many batch norms of the graph `before` went into other layers of `after`."""
    counts: list[int] = [
        sum(node.op_type == "BatchNormalization" for node in all_nodes(onnx.load_from_string(model).graph))
        for model in (before, after)
    ]
    return counts[0] - counts[1]


def all_nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All of them, also inside loops and branches."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from all_nodes(inner)
