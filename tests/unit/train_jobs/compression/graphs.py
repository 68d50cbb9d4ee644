"""A small graph of each family, exported from Sluice's own models with random weights, and what tests of graph passes
do with graphs: run them in each runtime, and measure in decibels how far two answers are apart."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from cluster.artifacts import ArtifactStore
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.variants import Precision, TensorSpec, Variant
from train_jobs.export import to_onnx
from train_jobs.models import AutoencoderConfig, CNNConfig, GANConfig, RecurrentConfig
from train_jobs.models.forecaster import FramingConfig

Answers = dict[str, NDArray[np.generic]]


@dataclass(frozen=True)
class Small:
    """A module, what it takes and gives, and samples of the former."""

    module: nn.Module
    inputs: TensorSpec
    outputs: tuple[TensorSpec, ...]
    samples: NDArray[np.generic]

    @cached_property
    def graph(self) -> bytes:
        """Exported once, where a test asks for it: that takes seconds."""
        return exported(self.module, self.inputs, self.outputs)

    def run(self, graph: bytes) -> Answers:
        """The samples' answers in ONNX Runtime."""
        return run(graph, self.samples)

    def run_in(self, name: str, graph: bytes, *, precision: Precision = "fp32") -> Answers:
        """The samples' answers in that runtime, loaded as serving does."""
        return run_in(name, graph, self.samples, inputs=self.inputs, outputs=self.outputs, precision=precision)


def run(graph: bytes, x: NDArray[np.generic]) -> Answers:
    """What a graph of one input answers to `x` in ONNX Runtime."""
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


def run_in(
    name: str, graph: bytes, x: NDArray[np.generic], *, inputs: TensorSpec, outputs: tuple[TensorSpec, ...],
    precision: Precision = "fp32",
) -> Answers:  # fmt: skip
    """What a graph answers to `x` in that runtime."""
    with tempfile.TemporaryDirectory() as folder:
        store = ArtifactStore(Path(folder))
        variant = Variant(
            name="small/x", family="x", format="onnx", precision=precision, inputs=(inputs,), outputs=outputs
        )
        stored = store.put(variant, {"model.onnx": graph})
        runtime = load_runtime(store, stored, RuntimeConfig(name=name))  # type: ignore[arg-type]
        answers = runtime.infer({inputs.name: x})
        runtime.close()
    return answers


def decibels(expected: Answers, got: Answers) -> float:
    """Signal to noise of the worst output."""
    assert expected.keys() == got.keys()
    worst = math.inf
    for name, want in expected.items():
        off = got[name].astype(np.float64) - want.astype(np.float64)
        assert np.isfinite(off).all()
        worst = min(worst, 10 * math.log10(np.square(want, dtype=np.float64).sum() / max(np.square(off).sum(), 1e-30)))
    return worst


def operators(graph: bytes) -> list[str]:
    return [node.op_type for node in onnx.load_from_string(graph).graph.node]


def constants(graph: bytes) -> dict[str, NDArray[np.generic]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in onnx.load_from_string(graph).graph.initializer}


def matrices(graph: bytes) -> dict[str, NDArray[np.generic]]:
    """Constants that spread in more than one direction: no biases or scales, of whatever shape."""
    return {name: array for name, array in constants(graph).items() if array.size > max(array.shape, default=1)}


def exported(module: nn.Module, inputs: TensorSpec, outputs: tuple[TensorSpec, ...]) -> bytes:
    return to_onnx(module, inputs, [each.name for each in outputs])


def _small(
    build: Callable[[], nn.Module], inputs: TensorSpec, outputs: dict[str, tuple[int, ...]],
    samples: NDArray[np.generic],
) -> Small:  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = build().eval()
    specs = tuple(TensorSpec(name=name, datatype="FP32", shape=shape) for name, shape in outputs.items())
    return Small(module, inputs, specs, samples)


def pictures(count: int, size: int) -> NDArray[np.uint8]:
    """Bright blobs on black."""
    draw = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size]
    at = draw.uniform(0.2 * size, 0.8 * size, (count, 2, 1, 1))
    width = draw.uniform(0.05 * size, 0.2 * size, (count, 1, 1))
    greys = 255 * np.exp(-((y - at[:, 0]) ** 2 + (x - at[:, 1]) ** 2) / width**2)
    return greys.astype(np.uint8)[:, None]


@cache
def cnn() -> Small:
    """Pictures -> scores: convolutions, pooling, dense layers."""
    inputs = TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28))
    return _small(
        lambda: CNNConfig(width=0.25).build((1, 28, 28), (10,)), inputs, {"logits": (-1, 10)}, pictures(100, 28)
    )


@cache
def forecaster() -> Small:
    """Windows -> the hours after them: two LSTM layers, whose matrices an exporter leaves in pieces, and a dense one.
    """
    walks = 0.3 * normal(100, 12, 3).cumsum(1)
    return _small(
        lambda: FramingConfig(normalise="none", channels="together").around(
            RecurrentConfig(hidden=48, layers=2).build, (12, 3), (6, 3)
        ),
        TensorSpec(name="window", datatype="FP32", shape=(-1, 12, 3)), {"forecast": (-1, 6, 3)}, walks,
    )  # fmt: skip


@cache
def generator() -> Small:
    """Latents -> pictures: a dense layer, group norms, transposed convolutions."""
    latents = normal(100, 16)
    return _small(
        lambda: GANConfig(latent=16, width=8).build((16,), (1, 16, 16)).average,
        TensorSpec(name="latent", datatype="FP32", shape=(-1, 16)), {"image": (-1, 1, 16, 16)}, latents,
    )  # fmt: skip


@cache
def autoencoder() -> Small:
    """Pictures -> their reconstruction and a score: strided and transposed convolutions around dense layers."""
    return _small(
        lambda: AutoencoderConfig(hidden=(8, 16), latent=8).build((1, 16, 16), (1, 16, 16)),
        TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 16, 16)),
        {"reconstruction": (-1, 1, 16, 16), "score": (-1,)}, pictures(100, 16),
    )  # fmt: skip


FAMILIES: dict[str, Callable[[], Small]] = {
    "cnn": cnn, "forecaster": forecaster, "generator": generator, "autoencoder": autoencoder,
}  # fmt: skip


def chain(*nodes: onnx.NodeProto, inputs: list[object], opset: int = 18, **weights: NDArray[np.generic]) -> bytes:
    """A graph written by hand, from x (of `inputs` after the batch) to y, its nodes named by what they give."""
    for node in nodes:
        node.name = node.name or f"{node.op_type}_{node.output[0]}"
    graph = helper.make_graph(
        list(nodes), "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *inputs])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    return bytes(made.SerializeToString())


def normal(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)
