"""fp32 ONNX -> int8 ONNX in which the layers that int8 hurts most stay fp32, as few of them as accuracy asks for.

Each layer is quantized alone once, and the layers are put in the order of what that does to the answers (the
sensitivity analysis of Wu et al., "Integer Quantization for Deep Learning Inference: Principles and Empirical
Evaluation", 2020, section 5.1, where layers are returned to floating point in that order as well). How many of them
must go back is found by bisection, so a score is asked for a few times only.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import InvalidRequest
from cluster.variants import TensorSpec
from train_jobs.compression.quantize import Calibration, QuantizeConfig

Score = Callable[[bytes], float]
"""How good is a graph? Higher is better. On training or validation samples: the test set judges what comes out."""
_BATCH = 64


class MixedConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_drop: float = Field(default=0.005, ge=0)
    """How far the score may lie below that of the fp32 graph, in the score's own units."""
    max_layers: int | None = Field(default=None, ge=1)
    """So many layers may stay fp32; None: all but one."""
    sensitivity: Literal["noise", "score"] = "noise"
    """What puts the layers in order. noise: how much of the answers' energy a layer in int8 alone makes wrong (the
    inverse of its signal-to-noise ratio), on `judged` samples; score: the score then, once for each layer."""
    judged: int = Field(default=256, ge=1)
    """Samples that measure noise: the first ones."""
    quantize: QuantizeConfig = QuantizeConfig()


def mixed(
    model: bytes, samples: NDArray[np.generic], config: MixedConfig, *, inputs: TensorSpec, score: Score
) -> tuple[bytes, list[str]]:
    """The quantized graph, and the layers of it that stay fp32, the most sensitive one first: none if int8 alone is
    good enough.

    `samples` (N, ...) calibrate. Raises InvalidRequest as `quantize` does, and if the score stays too low with as many
    layers in fp32 as may.
    """
    calibration = Calibration(model, samples, config.quantize, inputs=inputs)
    least = score(model) - config.max_drop
    made = calibration.int8()
    if score(made) >= least:
        return made, []
    order = sensitive(calibration, model, samples, config, entry=inputs.name, score=score)
    most = min(len(order) - 1, config.max_layers or len(order))
    graphs: dict[int, bytes] = {}
    scores: dict[int, float] = {}

    def is_enough(count: int) -> bool:
        graphs[count] = calibration.int8(exclude=tuple(order[:count]))
        scores[count] = score(graphs[count])
        return scores[count] >= least

    count = fewest(is_enough, most)
    if count is None:
        best = f"{scores[most]:.4f} with {most} of {len(order)} layers in fp32" if most else "it has one layer alone"
        raise InvalidRequest(
            f"int8 does not reach a score of {least:.4f} (max_drop={config.max_drop}): {best}; raise max_drop or "
            "max_layers, or leave int8 out"
        )
    return graphs[count], order[:count]


def sensitive(
    calibration: Calibration, model: bytes, samples: NDArray[np.generic], config: MixedConfig, *, entry: str,
    score: Score,
) -> list[str]:  # fmt: skip
    """The layers, the one first that does most harm when it alone is quantized; of equals the one nearer to the input.
    """
    chosen = [name for name in calibration.layers if name not in config.quantize.exclude]
    alone = {name: calibration.int8(exclude=tuple(other for other in chosen if other != name)) for name in chosen}
    if config.sensitivity == "score":
        harm = {name: -score(graph) for name, graph in alone.items()}
    else:
        x = samples[: config.judged]
        expected = answers(model, entry, x)
        harm = {name: noise(expected, answers(graph, entry, x)) for name, graph in alone.items()}
    return sorted(chosen, key=lambda name: -harm[name] if math.isfinite(harm[name]) else -math.inf)


def noise(expected: list[NDArray[np.generic]], got: list[NDArray[np.generic]]) -> float:
    """Share of the outputs' energy that is wrong, the mean over the outputs; -10 log10 of it is their signal-to-noise
    ratio in dB. Not finite if an answer is not."""
    shares = []
    for want, have in zip(expected, got, strict=True):
        signal, off = want.astype(np.float64), have.astype(np.float64) - want.astype(np.float64)
        shares.append(float(np.square(off).sum() / max(np.square(signal).sum(), np.finfo(np.float64).tiny)))
    return float(np.mean(shares))


def answers(model: bytes, entry: str, x: NDArray[np.generic]) -> list[NDArray[np.generic]]:
    """All outputs of the graph for `x`, in batches, in ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    batches = [session.run(None, {entry: x[start : start + _BATCH]}) for start in range(0, len(x), _BATCH)]
    return [np.concatenate(parts) for parts in zip(*batches, strict=True)]


def fewest(is_enough: Callable[[int], bool], most: int) -> int | None:
    """The least number from 1 to `most` that is enough, where more is never worse; None if not even `most` is. Asks
    about log2(most) times, and never twice about one number."""
    if most < 1 or not is_enough(most):
        return None
    too_few, enough = 0, most
    while enough - too_few > 1:
        middle = (too_few + enough) // 2
        if is_enough(middle):
            enough = middle
        else:
            too_few = middle
    return enough
