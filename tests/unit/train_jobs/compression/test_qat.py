"""Quantization-aware training: the rounding of int8 in every pass, and a graph that computes what was trained."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import helper
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from cluster.runtimes import runtimes_for
from cluster.variants import TensorSpec
from tests.unit.train_jobs.compression.graphs import (
    FAMILIES,
    Answers,
    Small,
    chain,
    constants,
    decibels,
    exported,
    matrices,
    normal,
    operators,
    run,
)
from train_jobs.compression.finetune import FinetuneConfig
from train_jobs.compression.qat import QatConfig, Range, Trained, Weight, folded, qat, rounded, stripped, to_qdq
from train_jobs.compression.quantize import QuantizeConfig, quantize
from train_jobs.compression.sparsify import SparsifyConfig, masks, sparsify
from train_jobs.compression.subject import ClassifySubject
from train_jobs.datasets import LabelledDataset
from train_jobs.export import INPUT, output_spec, to_onnx
from train_jobs.loop import TrainResult
from train_jobs.models import AutoencoderConfig, GANConfig, RecurrentConfig

SHORT = FinetuneConfig(epochs=1, lr=5e-4)


def told(module: nn.Module, x: NDArray[np.generic], names: list[str]) -> Answers:
    with torch.inference_mode():
        answers = module.eval()(torch.from_numpy(x))
    answers = answers if isinstance(answers, tuple) else (answers,)
    return {name: answer.numpy() for name, answer in zip(names, answers, strict=True)}


def settings(small: Small, **changes: Any) -> QatConfig:
    return QatConfig(quantize=QuantizeConfig(float_outputs=True, samples=len(small.samples), **changes))


def graph_and_rounding(small: Small) -> tuple[bytes, Answers]:
    """An int8 graph with the ranges that its samples gave, and what its rounding module answers to them."""
    config = settings(small)
    plain = folded(small.module, torch.from_numpy(small.samples[:2]))
    rounding = rounded(plain, config, torch.from_numpy(small.samples))
    trained = stripped(plain, rounding)
    graph = exported(trained.module, small.inputs, small.outputs)
    made = to_qdq(graph, trained, small.samples, config, inputs=small.inputs)
    return made, told(rounding, small.samples, [each.name for each in small.outputs])


@cache
def of_family(family: str) -> tuple[bytes, Answers]:
    return graph_and_rounding(FAMILIES[family]())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_int8_graph_computes_what_the_rounding_module_computes(family: str) -> None:
    small, (graph, expected) = FAMILIES[family](), of_family(family)
    exact = told(small.module, small.samples, [each.name for each in small.outputs])
    for runtime in runtimes_for("onnx"):
        got = small.run_in(runtime, graph, precision="int8")
        assert decibels(expected, got) > decibels(exact, expected) + 6, "nearer to what was trained than to fp32"


def again(trained: Trained, config: QatConfig, x: NDArray[np.generic]) -> nn.Module:
    """The module as it was rounded at the end of its training."""
    made = rounded(trained.module, config, torch.from_numpy(x))
    for name, (low, high) in trained.ranges.items():
        layer = made.get_submodule(name).get_submodule("input_range")
        layer.get_buffer("low").fill_(low)
        layer.get_buffer("high").fill_(high)
    return made


@pytest.fixture(scope="module")
def subject(digits: LabelledDataset) -> ClassifySubject:
    return ClassifySubject(digits, family="cnn", inputs=INPUT, outputs=output_spec(10))


def accuracy(answers: NDArray[np.generic], digits: LabelledDataset) -> float:
    return float(np.mean(answers.argmax(1) == digits.y_test))


def test_a_classifier_trained_so_answers_in_int8_as_in_its_training(
    trained: TrainResult, subject: ClassifySubject, digits: LabelledDataset
) -> None:
    config = QatConfig(finetune=SHORT)
    before = {name: tensor.clone() for name, tensor in trained.model.state_dict().items()}
    lines: list[str] = []
    made = qat(trained.model, subject, config, notify=lines.append)
    assert len(lines) == 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in trained.model.state_dict().items())
    assert made.module.state_dict().keys() == before.keys(), "plain again"
    assert made.ranges.keys() == {"features.3", "features.6", "head.1", "head.4"}, "but for the narrow first layer"
    assert not torch.equal(made.module.get_parameter("features.3.weight"), before["features.3.weight"])
    graph = to_qdq(to_onnx(made.module), made, digits.x_train, config, inputs=INPUT)
    expected = told(again(made, config, digits.x_train), digits.x_test, ["logits"])["logits"]
    got = run(graph, digits.x_test)["logits"]
    assert np.mean(got.argmax(1) == expected.argmax(1)) >= 0.99
    assert decibels({"y": expected}, {"y": got}) > 40
    fp32 = told(trained.model, digits.x_test, ["logits"])["logits"]
    assert accuracy(got, digits) >= accuracy(fp32, digits) - 0.01


def activation_steps(graph: bytes) -> dict[str, float]:
    return {
        name: float(array) for name, array in constants(graph).items() if name.endswith("_scale") and array.ndim == 0
    }


def test_the_ranges_of_training_are_those_of_the_graph(trained: TrainResult, digits: LabelledDataset) -> None:
    config = QatConfig()
    plain = folded(trained.model, torch.from_numpy(digits.x_train[:2]))
    made = stripped(plain, rounded(plain, config, torch.from_numpy(digits.x_train)))
    wide = Trained(made.module, {name: (2 * low, 2 * high) for name, (low, high) in made.ranges.items()})
    graph = to_onnx(made.module)
    steps, doubled = (
        activation_steps(to_qdq(graph, each, digits.x_train, config, inputs=INPUT)) for each in (made, wide)
    )
    assert len(steps) >= 4
    assert doubled.keys() == steps.keys()
    for name, step in steps.items():
        assert doubled[name] == pytest.approx(2 * step, rel=1e-5)


class Rebuild:
    """A subject that asks a module to answer what the module that came answered."""

    family, labels, needs_teacher = "x", (), False

    def __init__(self, small: Small) -> None:
        self._small, self._x = small, torch.from_numpy(small.samples)
        self.inputs, self.outputs = small.inputs, small.outputs
        with torch.inference_mode():
            self._y = small.module(self._x).clone()

    def samples(self, count: int) -> NDArray[np.generic]:
        return self._x[:count].numpy()

    def size(self, validation: float) -> int:
        return len(self._x)

    def lessons(self, *, epoch: int, batch_size: int, seed: int, validation: float) -> Iterator[tuple[Tensor, Tensor]]:
        yield from zip(self._x.split(batch_size), self._y.clone().split(batch_size), strict=True)

    def loss(self, answer: Any, x: Tensor, y: Tensor) -> Tensor:
        return (answer - y).square().mean()  # type: ignore[no-any-return]

    def apart(self, answer: Any, teachers: Any, *, temperature: float) -> Tensor:
        return (answer - teachers).abs().mean()  # type: ignore[no-any-return]

    def features(self, module: nn.Module, x: Tensor) -> None:
        return None

    def judge(self) -> Any:
        raise NotImplementedError

    @torch.inference_mode()
    def validation(self, module: nn.Module, *, seed: int, validation: float) -> float:
        return -float((module.eval()(self._x) - self._y).square().mean())


@pytest.mark.parametrize("family", ["forecaster", "generator"])
def test_cells_and_generators_are_trained_for_int8_too(family: str) -> None:
    small = FAMILIES[family]()
    config = settings(small).model_copy(update={"finetune": FinetuneConfig(epochs=4, lr=1e-3)})
    made = qat(small.module, Rebuild(small), config)  # type: ignore[arg-type]
    graph = to_qdq(exported(made.module, small.inputs, small.outputs), made, small.samples, config, inputs=small.inputs)
    names = [each.name for each in small.outputs]
    rounding = again(made, config, small.samples)
    expected = told(rounding, small.samples, names)
    got = small.run(graph)
    assert decibels(expected, got) > 30
    assert decibels(told(small.module, small.samples, names), got) > 15


@pytest.mark.parametrize("family", ["forecaster", "generator"])
def test_noughts_are_held_where_they_are_wanted(family: str) -> None:
    """In cells, and in layers that batch norms are folded into, too."""
    small = FAMILIES[family]()
    sparse = sparsify(small.module, SparsifyConfig(sparsity=0.7, scope="local"))
    config = settings(small).model_copy(update={"finetune": FinetuneConfig(epochs=4, lr=1e-3)})
    held, free = (
        qat(sparse, Rebuild(small), config, hold_zeros=hold).module for hold in (True, False)  # type: ignore[arg-type]
    )  # fmt: skip
    wanted = masks(folded(sparse, torch.from_numpy(small.samples[:2])))
    assert wanted
    assert all(bool((held.get_parameter(name)[zero] == 0).all()) for name, zero in wanted.items())
    assert not all(bool((free.get_parameter(name)[zero] == 0).all()) for name, zero in wanted.items())


def test_a_cell_keeps_its_matrices_in_int8_and_computes_in_fp32() -> None:
    graph, _ = of_family("forecaster")
    assert operators(graph).count("LSTM") == 2
    assert {array.itemsize for array in matrices(graph).values()} == {1}


def test_gradients_go_through_the_rounding_and_stop_where_values_are_cut_off() -> None:
    torch.manual_seed(0)
    layer = Range(0.9).eval()
    layer.get_buffer("low").fill_(-1.0)
    layer.get_buffer("high").fill_(1.0)
    x = torch.tensor([-3.0, -0.5, 0.0, 0.25, 7.0], requires_grad=True)
    made = layer(x)
    made.sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0.0, 1.0, 1.0, 1.0, 0.0]
    assert made[[0, 4]].detach().numpy() == pytest.approx([-1.0, 1.0], abs=0.01)
    weight = torch.randn(3, 4, requires_grad=True)
    Weight(0, 127)(weight).sum().backward()
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.ones(3, 4))


@given(st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=20), st.floats(0, 0.99))
@example([-1.1754943508222875e-38], 0.0)
def test_a_range_follows_the_batches_and_always_spans_nought(values: list[float], average: float) -> None:
    layer, x = Range(average).train(), torch.tensor(values)
    for _ in range(3):
        layer(x)
    share = 1 - average**3
    low, high = float(layer.get_buffer("low")), float(layer.get_buffer("high"))
    assert low == pytest.approx(share * min(0.0, *values), abs=1e-4)
    assert high == pytest.approx(share * max(0.0, *values), abs=1e-4)
    layer.eval()
    made = layer(x)
    assert (float(layer.get_buffer("low")), float(layer.get_buffer("high"))) == (low, high), "only in training"
    assert float(layer(torch.zeros(1))) == 0.0
    step = (high - low) / 255
    inside = (x >= low) & (x <= high)
    assert torch.all((made - x)[inside].abs() <= 0.51 * step + 1e-6)


@pytest.mark.parametrize("levels", [127, 64])
def test_weights_are_rounded_as_the_graph_s_quantizer_rounds_them(levels: int) -> None:
    module = nn.Linear(16, 8)
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 16))
    graph = exported(module, spec, (TensorSpec(name="y", datatype="FP32", shape=(-1, 8)),))
    made = constants(
        quantize(graph, np.ones((4, 16), np.float32), QuantizeConfig(reduce_range=levels == 64), inputs=spec)
    )
    restored = made["weight_quantized"] * made["weight_scale"][:, None]
    with torch.no_grad():
        np.testing.assert_allclose(Weight(0, levels)(module.weight).numpy(), restored, atol=1e-6)


class Normalised(nn.Module):
    """Batch norms behind a convolution, a transposed one and a dense layer; one that nothing stands before."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.ConvTranspose2d(8, 6, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten())
        self.third = nn.Sequential(nn.Linear(6 * 7 * 7, 5), nn.BatchNorm1d(5))

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x)))  # type: ignore[no-any-return]


def test_batch_norms_go_into_the_layers_before_them() -> None:
    torch.manual_seed(0)
    module = Normalised()
    x = torch.randn(32, 4, 8, 8)
    for _ in range(20):
        module(x)
    module.eval()
    made = folded(module, x[:2])
    assert sum(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in made.modules()) == 1
    assert sum(isinstance(each, nn.modules.batchnorm._BatchNorm) for each in module.modules()) == 4
    with torch.inference_mode():
        np.testing.assert_allclose(made(x).numpy(), module(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_generator_with_batch_norms_is_folded_whole() -> None:
    torch.manual_seed(0)
    module = GANConfig(latent=8, width=8, layers="dense", norm="batch").build((8,), (1, 8, 8)).average
    x = torch.randn(16, 8)
    for _ in range(5):
        module.train()(x)
    made = folded(module, x)
    assert not any(isinstance(each, nn.BatchNorm1d) for each in made.modules())
    with torch.inference_mode():
        np.testing.assert_allclose(made(x).numpy(), module.eval()(x).numpy(), rtol=1e-4, atol=1e-5)


def test_a_layer_that_runs_twice_keeps_its_norm() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.norm = nn.Linear(4, 4), nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.norm(self.layer(x)))  # type: ignore[no-any-return]

    made = folded(Twice(), torch.ones(2, 4))
    assert isinstance(made.get_submodule("norm"), nn.BatchNorm1d)


def test_a_rounding_module_can_be_copied_and_trained_on() -> None:
    """Fine-tuning begins with a copy."""
    small = FAMILIES["forecaster"]()
    rounding = copy.deepcopy(rounded(small.module, settings(small), torch.from_numpy(small.samples)))
    x = torch.from_numpy(small.samples)
    rounding.train()(x).sum().backward()
    found = {name: parameter.grad for name, parameter in rounding.named_parameters()}
    assert found
    assert all(grad is not None and grad.abs().sum() > 0 for grad in found.values())


def test_what_cannot_be_trained_for_int8_is_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"no layer that int8 computes .* leave quantization-aware training out"):
        rounded(nn.Sequential(nn.Flatten(), nn.ReLU()), QatConfig(), torch.ones(2, 3))
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 8))
    graph = chain(helper.make_node("Gemm", ["x", "w"], ["y"]), inputs=[8], w=normal(8, 4))
    other = Trained(nn.Sequential(nn.Linear(8, 4)), {"0": (0.0, 1.0)})
    with pytest.raises(InvalidRequest, match="has none of the layers 0 that were trained for int8; export the module"):
        to_qdq(graph, other, normal(4, 8), QatConfig(), inputs=spec)
    with pytest.raises(ValidationError, match=r"exclude=\['node'\] names nodes of a graph"):
        QatConfig(quantize=QuantizeConfig(exclude=("node",)))
    with pytest.raises(ValidationError, match="average"):
        QatConfig(average=1.0)


def test_what_training_did_not_round_stays_fp32() -> None:
    """A decoder that reads its encoder's matrices turned around has no layers of its own; a plain recurrent network
    becomes one product after another, of which no range was trained."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoencoderConfig(layers="dense", hidden=(12,), latent=4, tied=True, output="identity")
        tied = config.build((16,), (16,))
        plain = RecurrentConfig(kind="rnn", hidden=16).build((5, 3), (4,))
    for module, shape, outputs, layers in (
        (tied, (16,), {"reconstruction": (-1, 16), "score": (-1,)}, 2), (plain, (5, 3), {"y": (-1, 4)}, 1)
    ):  # fmt: skip
        inputs = TensorSpec(name="x", datatype="FP32", shape=(-1, *shape))
        specs = tuple(TensorSpec(name=name, datatype="FP32", shape=size) for name, size in outputs.items())
        small = Small(module.eval(), inputs, specs, normal(50, *shape))
        graph, expected = graph_and_rounding(small)
        stored = [name for name, array in constants(graph).items() if name.endswith("_quantized") and array.ndim == 2]
        assert len(stored) == layers
        assert decibels(expected, small.run(graph)) > 40
