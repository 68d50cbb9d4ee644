"""An autoencoder's variant -> the same with a third output: the score above which a sample is odd.

    scores of training samples in this very variant -> their 99% quantile -> a constant of the graph, one for each row
    the same in each runtime that it is measured in -> the manifest's, which is answered there

Each variant has its own: an int8 model's scores are others than those of the model that it was made of, and a threshold
moves with them. It stands in the graph, so whoever runs the graph alone has one; and in the manifest, with how it came
about. But int8 is computed otherwise in each runtime, so each has its own too, and says it in the constant's place
(cluster/runtimes/threshold.py). One training sample in a hundred lies above it, by definition: that is what a false
alarm costs.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from cluster.runtimes import Runtime
from cluster.variants import THRESHOLD
from train_jobs.compression.subject import ReconstructSubject

QUANTILE = 0.99
_SAMPLES, _BATCH = 5000, 250
_SCORE = "score"


class Threshold(NamedTuple):
    """As the manifest tells it."""

    value: float
    quantile: float
    samples: int


def of(model: nn.Module | bytes, subject: ReconstructSubject) -> Threshold:
    """Of a module, or an ONNX graph with an output called score. Raises InvalidRequest if scores are no numbers."""
    pieces = _pieces(subject)
    value = _quantile(_of_graph(model, pieces) if isinstance(model, bytes) else _of_module(model, pieces))
    return Threshold(value, QUANTILE, sum(map(len, pieces)))


def in_runtime(runtime: Runtime, subject: ReconstructSubject) -> float:
    """What a loaded variant is to answer: of the scores that this runtime computes. Raises InvalidRequest as `of` does.
    """
    return _quantile([runtime.infer({subject.inputs.name: piece})[_SCORE] for piece in _pieces(subject)])


def told(model: Any, value: float) -> Any:
    """The module or graph with `value` as its last answer, for each row."""
    return _on_graph(model, value) if isinstance(model, bytes) else WithThreshold(model, value).eval()


class WithThreshold(nn.Module):
    """(B, ...) -> the module's answers, and the threshold (B,)."""

    def __init__(self, module: nn.Module, value: float) -> None:
        super().__init__()
        self.module = module
        self.register_buffer("threshold", torch.tensor([value], dtype=torch.float32))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        reconstruction, score_B = self.module(x)
        return reconstruction, score_B, self.get_buffer("threshold").expand(x.shape[0]).clone()


def _pieces(subject: ReconstructSubject) -> list[NDArray[np.generic]]:
    samples = subject.spread(_SAMPLES)
    return [samples[first : first + _BATCH] for first in range(0, len(samples), _BATCH)]


def _quantile(scores: list[NDArray[np.generic]]) -> float:
    scores_N = np.concatenate(scores).astype(np.float32)
    odd = int((~np.isfinite(scores_N)).sum())
    if odd:
        raise InvalidRequest(
            f"the score is NaN or infinite for {odd} of {len(scores_N)} training samples, so no threshold parts them; "
            "leave out the pass that made it"
        )
    return float(np.quantile(scores_N, QUANTILE, method="higher"))


def _of_module(module: nn.Module, pieces: list[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    with torch.inference_mode():
        return [module.eval()(torch.from_numpy(piece))[1].numpy() for piece in pieces]


def _of_graph(graph: bytes, pieces: list[NDArray[np.generic]]) -> list[NDArray[np.generic]]:
    session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
    entry = session.get_inputs()[0].name
    return [session.run([_SCORE], {entry: piece})[0] for piece in pieces]


def _on_graph(graph: bytes, value: float) -> bytes:
    model = onnx.load_model_from_string(graph)
    inner = model.graph
    inner.initializer.append(numpy_helper.from_array(np.array([value], np.float32), "threshold_value"))
    inner.node.append(helper.make_node("Shape", [_SCORE], ["threshold_shape"], name="threshold_shape"))
    inner.node.append(
        helper.make_node("Expand", ["threshold_value", "threshold_shape"], [THRESHOLD.name], name=THRESHOLD.name)
    )
    score = next(each for each in inner.output if each.name == _SCORE)
    batch = score.type.tensor_type.shape.dim[0].dim_param or "batch"
    inner.output.append(helper.make_tensor_value_info(THRESHOLD.name, TensorProto.FLOAT, [batch]))
    return bytes(model.SerializeToString())
