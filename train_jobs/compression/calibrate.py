"""Samples -> the range of each activation of a graph, which the 256 levels of int8 are spread over.

minmax: the least and the greatest value. percentile: where all but one in 100,000 absolute values end. entropy: the
range whose levels tell most of what the values told, by Kullback-Leibler divergence (Migacz, "8-bit Inference with
TensorRT", GTC 2017, slides 28 to 34), which cuts more off.

ONNX Runtime's tools have the three as well, but keep all activations of all samples until they are counted, and their
entropy search has one range to choose from, the widest. Here samples go through in batches, and what is kept is a
histogram for each tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Literal

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from cluster.errors import InvalidRequest

Method = Literal["minmax", "percentile", "entropy"]
Ranges = Mapping[str, tuple[float, float]]
"""Least and greatest value of tensors, by name."""
Samples = Mapping[str, NDArray[np.generic]]
"""Arrays (N, ...) by the names of a graph's inputs."""

_BATCH = 64
_BINS = 2048
_PERCENT = 99.999
_STEP = 16
"""Bins from one candidate of the entropy search to the next."""


def calibrated(model: onnx.ModelProto, samples: Samples, operators: list[str], method: Method) -> Ranges:
    """The ranges of all float tensors that `operators` read or give.

    Raises InvalidRequest if ONNX Runtime cannot run the graph, or a value is not finite, by the tensor's name.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    beside = [name for node in model.graph.node if node.op_type in operators for name in (*node.input, *node.output)]
    names = [name for name in dict.fromkeys(beside) if name and name not in constants]
    extremes: dict[str, tuple[float, float]] = {}
    for values in activations(model, samples, names):
        for name, array in values.items():
            low, high = extremes.get(name, (np.inf, -np.inf))
            extremes[name] = (min(low, float(array.min())), max(high, float(array.max())))
    _check_finite(model, samples, extremes)
    if method == "minmax":
        return extremes
    reach = {name: max(-low, high) for name, (low, high) in extremes.items()}
    counts = {name: np.zeros(_BINS, np.int64) for name in reach}
    for values in activations(model, samples, names):
        for name, array in values.items():
            sizes = np.abs(array[array != 0])
            counts[name] += np.histogram(sizes, _BINS, range=(0.0, reach[name] or 1.0))[0]
    ranges = {}
    for name, (low, high) in extremes.items():
        bins = _percentile(counts[name]) if method == "percentile" else _most_telling(counts[name], signed=low < 0)
        end = reach[name] * bins / _BINS
        ranges[name] = (max(low, -end), min(high, end))
    return ranges


def activations(model: onnx.ModelProto, samples: Samples, names: list[str]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Those of the tensors `names` that are float32, batch by batch. Raises InvalidRequest if ONNX Runtime cannot run
    the graph."""
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    del watched.graph.output[:]
    watched.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    options = ort.SessionOptions()
    # Each operator by itself, in the order of the graph: fused ones would not give what lies between them.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(watched.SerializeToString(), options, providers=["CPUExecutionProvider"])
        for start in range(0, max(map(len, samples.values())), _BATCH):
            batch = {name: array[start : start + _BATCH] for name, array in samples.items()}
            arrays = dict(zip(names, session.run(names, batch), strict=True))
            yield {name: array for name, array in arrays.items() if array.dtype == np.float32 and array.size}
    except Exception as error:
        told = " ".join(str(error).split())[:300]
        raise InvalidRequest(f"ONNX Runtime cannot run this graph on the samples: {told}") from error


def _check_finite(model: onnx.ModelProto, samples: Samples, ranges: Ranges) -> None:
    makers = {name: node.name for node in model.graph.node for name in node.output}
    for name in [*samples, *makers]:  # in the graph's order: what comes after the first is not finite either
        if name in ranges and not np.isfinite(ranges[name]).all():
            raise InvalidRequest(
                f"tensor {name!r} of {makers.get(name, 'the input')} is not finite on the calibration samples; bring "
                "samples that the model was made for"
            )


def _percentile(counts: NDArray[np.int64]) -> int:
    """How many bins from nought hold that share of the values."""
    share = np.cumsum(counts) / max(1, counts.sum())
    return min(len(counts), int(np.searchsorted(share, _PERCENT / 100)) + 1)


def _most_telling(counts: NDArray[np.int64], *, signed: bool) -> int:
    """How many bins from nought to spread the levels over, so that the least is lost.

    The levels are shared by both signs where there are both. For each number of bins: what lies beyond is counted as
    the last one; the distribution is compared with what is left of it when each level's bins become alike.
    """
    levels = 128 if signed else 256
    best, least = len(counts), np.inf
    for bins in range(len(counts), levels - 1, -_STEP):
        kept = counts[:bins].astype(np.float64)
        told = kept.copy()
        told[-1] += counts[bins:].sum()
        level = np.arange(bins) * levels // bins
        filled = kept > 0
        alike = np.bincount(level, kept, levels) / np.maximum(1, np.bincount(level, filled, levels))
        left = np.where(filled, alike[level], 0.0)
        lost = _divergence(told, left)
        if lost < least:
            best, least = bins, lost
    return best


def _divergence(told: NDArray[np.float64], left: NDArray[np.float64]) -> float:
    """Kullback-Leibler, of counts. A bin that lost all it told counts as if a ten-thousandth of it were left."""
    here = told > 0
    p, q = told[here] / told.sum(), left[here] / max(left.sum(), 1.0)
    return float(np.sum(p * np.log(p / np.maximum(q, 1e-4 * p))))
