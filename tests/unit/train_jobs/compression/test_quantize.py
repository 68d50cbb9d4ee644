"""int8: per channel, calibrated on the pictures it was given, smaller, and nearly as right as its parent."""

from __future__ import annotations

import io
import logging
from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from cluster.errors import InvalidRequest
from cluster.runtimes import runtimes_for
from cluster.variants import TensorSpec
from tests.unit.train_jobs.compression.graphs import FAMILIES, chain, constants, decibels, normal, operators, run
from train_jobs.compression.quantize import Calibration, QuantizeConfig, narrow_convolutions, quantize
from train_jobs.datasets import LabelledDataset
from train_jobs.export import INPUT, to_onnx
from train_jobs.loop import TrainResult


@pytest.fixture(scope="module")
def fp32(trained: TrainResult) -> bytes:
    return to_onnx(trained.model)


def quantized(fp32: bytes, pictures: NDArray[np.uint8], **settings: Any) -> bytes:
    return quantize(fp32, pictures, QuantizeConfig(**settings), inputs=INPUT)


@pytest.fixture(scope="module")
def int8(fp32: bytes, digits: LabelledDataset) -> bytes:
    return quantized(fp32, digits.x_train)


def labels(graph: bytes, pictures: NDArray[np.uint8]) -> NDArray[np.int64]:
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    return np.asarray(np.argmax(session.run(None, {"image": pictures})[0], axis=1))


class Weights:
    """The kernels of a quantized graph: values, scales, and along which axis the scales run."""

    def __init__(self, graph: bytes) -> None:
        self.model = onnx.load(io.BytesIO(graph))
        self.constants = {t.name: numpy_helper.to_array(t) for t in self.model.graph.initializer}
        self.by_layer: list[tuple[NDArray[np.int8], NDArray[np.float32], int]] = []
        for node in self.model.graph.node:
            if node.op_type == "DequantizeLinear" and node.input[0] in self.constants:
                values, scales = self.constants[node.input[0]], self.constants[node.input[1]]
                if values.dtype == np.int8:
                    axis = next((a.i for a in node.attribute if a.name == "axis"), 1)
                    self.by_layer.append((values, scales, axis))

    def activation_scales(self) -> list[float]:
        return [
            float(self.constants[node.input[1]])
            for node in self.model.graph.node
            if node.op_type == "QuantizeLinear" and node.input[1] in self.constants
        ]


def test_every_output_channel_has_a_scale_of_its_own(int8: bytes) -> None:
    layers = Weights(int8).by_layer
    assert sorted(values.shape for values, _, _ in layers) == sorted(
        [(64, 32, 3, 3), (64, 64, 3, 3), (64, 576), (10, 64)]
    )
    for values, scales, axis in layers:
        assert axis == 0, "the output channel"
        assert scales.shape == (values.shape[0],)
        assert len(np.unique(scales)) > 1


def test_the_scales_are_the_channels_own_ranges(int8: bytes, fp32: bytes) -> None:
    originals = {t.dims[0] * 1000 + len(t.dims): numpy_helper.to_array(t)
                 for t in onnx.load(io.BytesIO(fp32)).graph.initializer if list(t.dims) == [64, 64, 3, 3]}  # fmt: skip
    (original,) = originals.values()
    values, scales, _ = next(layer for layer in Weights(int8).by_layer if layer[0].shape == (64, 64, 3, 3))
    restored = values * scales[:, None, None, None]
    assert np.all(np.abs(restored - original) <= 0.5 * scales[:, None, None, None] + 1e-7)


def test_weights_keep_to_seven_bits(int8: bytes, fp32: bytes, digits: LabelledDataset) -> None:
    assert all(np.abs(values).max() <= 64 for values, _, _ in Weights(int8).by_layer)
    eight = Weights(quantized(fp32, digits.x_train, reduce_range=False)).by_layer
    assert max(np.abs(values).max() for values, _, _ in eight) > 64


def test_per_tensor_is_told_apart(fp32: bytes, digits: LabelledDataset) -> None:
    layers = Weights(quantized(fp32, digits.x_train, per_channel=False)).by_layer
    assert all(scales.shape == () for _, scales, _ in layers)


def test_the_first_convolution_stays_fp32_unless_told_otherwise(
    int8: bytes, fp32: bytes, digits: LabelledDataset
) -> None:
    kernels = [t for t in onnx.load(io.BytesIO(int8)).graph.initializer if list(t.dims) == [32, 1, 3, 3]]
    assert [t.data_type for t in kernels] == [onnx.TensorProto.FLOAT]
    everything = Weights(quantized(fp32, digits.x_train, min_input_channels=1)).by_layer
    assert (32, 1, 3, 3) in [values.shape for values, _, _ in everything]


def test_narrow_convolutions_are_found_by_their_kernels(fp32: bytes) -> None:
    model = onnx.load(io.BytesIO(fp32))
    assert len(narrow_convolutions(model, 4)) == 1
    assert len(narrow_convolutions(model, 33)) == 2
    assert narrow_convolutions(model, 1) == []


def test_it_is_smaller_and_agrees_with_its_parent(int8: bytes, fp32: bytes, digits: LabelledDataset) -> None:
    assert len(int8) < 0.4 * len(fp32)
    agree = np.mean(labels(int8, digits.x_test) == labels(fp32, digits.x_test))
    assert agree > 0.97


def test_the_activations_are_calibrated_on_the_pictures_given(fp32: bytes, digits: LabelledDataset) -> None:
    real = Weights(quantized(fp32, digits.x_train)).activation_scales()
    black = Weights(quantized(fp32, np.zeros_like(digits.x_train))).activation_scales()
    assert len(real) == len(black) > 3
    assert real[0] > 1.5 * black[0], "black pictures excite the first layers less"


def test_only_the_first_samples_calibrate(fp32: bytes, digits: LabelledDataset) -> None:
    few = quantized(fp32, digits.x_train, samples=10)
    assert Weights(few).activation_scales() == Weights(quantized(fp32, digits.x_train[:10])).activation_scales()
    assert Weights(few).activation_scales() != Weights(quantized(fp32, digits.x_train)).activation_scales()


@pytest.mark.parametrize("calibration", ["percentile", "entropy"])
def test_every_calibration_makes_a_graph_that_works(fp32: bytes, digits: LabelledDataset, calibration: str) -> None:
    graph = quantized(fp32, digits.x_train, calibration=calibration, samples=128)
    assert np.mean(labels(graph, digits.x_test) == labels(fp32, digits.x_test)) > 0.9


@pytest.mark.parametrize(
    ("pictures", "message"),
    [
        (np.zeros((5, 1, 32, 32), np.uint8), r"are uint8 \[5, 1, 32, 32\]; input 'image' takes UINT8 \[-1, 1, 28, 28"),
        (np.zeros((5, 28, 28), np.uint8), r"uint8 \[5, 28, 28\]"),
        (np.zeros((5, 1, 28, 28), np.float32), r"are float32 \[5, 1, 28, 28\]"),
        (np.zeros((0, 1, 28, 28), np.uint8), r"uint8 \[0, 1, 28, 28\].*at least one"),
    ],
)
def test_pictures_that_do_not_fit_are_refused(fp32: bytes, pictures: NDArray[Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        quantized(fp32, pictures)


def test_free_dimensions_take_samples_of_any_size(fp32: bytes, digits: LabelledDataset) -> None:
    free = INPUT.model_copy(update={"shape": (-1, 1, -1, -1)})
    samples = digits.x_train[:32]
    assert quantize(fp32, samples, QuantizeConfig(), inputs=free) == quantized(fp32, samples)
    with pytest.raises(InvalidRequest, match=r"uint8 \[32, 28, 28\]"):
        quantize(fp32, samples[:, 0], QuantizeConfig(), inputs=free)


def test_it_says_nothing_and_leaves_logging_as_it_was(
    fp32: bytes, digits: LabelledDataset, capfd: pytest.CaptureFixture[str]
) -> None:
    logging.disable(logging.NOTSET)
    level = logging.root.level
    quantized(fp32, digits.x_train, samples=8)
    assert (logging.root.level, logging.root.manager.disable) == (level, logging.NOTSET)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("runtime", runtimes_for("onnx"))
@pytest.mark.parametrize("calibration", ["minmax", "percentile", "entropy"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_and_calibration_makes_a_graph_that_every_runtime_runs(
    family: str, calibration: str, runtime: str
) -> None:
    """A hundred samples: not a multiple of the batches that they come in."""
    small = FAMILIES[family]()
    made = made_once(family, calibration)
    assert decibels(small.run(small.graph), small.run_in(runtime, made, precision="int8")) > 15
    assert operators(made).count("LSTM") == (2 if family == "forecaster" else 0), "cells stay fp32"


@cache
def made_once(family: str, calibration: str) -> bytes:
    small = FAMILIES[family]()
    config = QuantizeConfig.model_validate({"calibration": calibration})
    return quantize(small.graph, small.samples, config, inputs=small.inputs)


ROWS = TensorSpec(name="x", datatype="FP32", shape=(-1, 16))


def two_layers() -> bytes:
    return chain(
        helper.make_node("Gemm", ["x", "w"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Gemm", ["r", "v"], ["y"], name="last"), inputs=[16], w=normal(16, 8), v=normal(8, 4, seed=1),
    )  # fmt: skip


def input_step(graph: bytes) -> float:
    return float(constants(graph)["x_scale"])


def int8_matrices(graph: bytes) -> set[str]:
    return {name.removesuffix("_quantized") for name, array in constants(graph).items()
            if array.dtype == np.int8 and array.ndim > 1}  # fmt: skip


def test_excluded_layers_stay_fp32() -> None:
    x = normal(64, 16, seed=2)
    calibration = Calibration(two_layers(), x, QuantizeConfig(), inputs=ROWS)
    assert calibration.layers == ("first", "last")
    assert int8_matrices(calibration.int8()) == {"w", "v"}
    assert int8_matrices(calibration.int8(exclude=("first",))) == {"v"}
    config = QuantizeConfig(exclude=("first",))
    assert calibration.int8(exclude=("first",)) == quantize(two_layers(), x, config, inputs=ROWS)
    with pytest.raises(InvalidRequest, match=r"exclude=\['relu'\] names no layer; layers: first, last"):
        calibration.int8(exclude=("relu",))
    with pytest.raises(InvalidRequest, match=r"exclude=\['first', 'last'\] leaves nothing to quantize"):
        calibration.int8(exclude=("first", "last"))


def test_ranges_take_the_place_of_what_was_calibrated() -> None:
    calibration = Calibration(two_layers(), normal(64, 16), QuantizeConfig(), inputs=ROWS)
    made = calibration.int8(ranges={"x": (-2.0, 8.0), "nowhere": (0.0, 1.0)})
    assert input_step(made) == pytest.approx(10 / 255)
    assert int(constants(made)["x_zero_point"]) == 51
    assert input_step(calibration.int8()) != pytest.approx(10 / 255, rel=0.01), "the next graph has its own again"


@pytest.mark.parametrize("family", FAMILIES)
def test_float_outputs_lose_less_and_only_where_no_layer_reads_them(family: str) -> None:
    small = FAMILIES[family]()
    made = quantize(small.graph, small.samples, QuantizeConfig(float_outputs=True), inputs=small.inputs)
    rounded = made_once(family, "minmax")
    fewer = operators(rounded).count("QuantizeLinear") - operators(made).count("QuantizeLinear")
    assert fewer == {"cnn": 1, "forecaster": 1, "generator": 3, "autoencoder": 1}[family]
    expected = small.run(small.graph)
    least = decibels(expected, small.run(rounded)) - 1
    for runtime in runtimes_for("onnx"):
        assert decibels(expected, small.run_in(runtime, made, precision="int8")) > least
    onnx.checker.check_model(onnx.load_from_string(made), full_check=True)


def test_a_relu_that_went_into_the_rounding_is_not_lost_with_it() -> None:
    graph = chain(
        helper.make_node("Gemm", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["y"]), inputs=[16],
        w=normal(16, 8),
    )  # fmt: skip
    x = normal(64, 16, seed=1)
    made = quantize(graph, x, QuantizeConfig(float_outputs=True), inputs=ROWS)
    assert run(made, x)["y"].min() >= 0
    assert decibels(run(graph, x), run(made, x)) > 25


def test_a_residual_sum_is_a_layer_and_another_sum_is_not() -> None:
    graph = chain(
        helper.make_node("Conv", ["x", "w"], ["a"], name="first"), helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("Conv", ["r", "v"], ["b"], name="second"),
        helper.make_node("Add", ["b", "r"], ["s"], name="sum"), helper.make_node("Mul", ["s", "two"], ["t"]),
        helper.make_node("Add", ["t", "s"], ["y"], name="scaled"),
        inputs=[4, 6, 6], w=normal(4, 4, 1, 1), v=normal(4, 4, 1, 1, seed=1), two=np.float32([2.0]),
    )  # fmt: skip
    spec, x = TensorSpec(name="x", datatype="FP32", shape=(-1, 4, 6, 6)), normal(64, 4, 6, 6, seed=2)
    calibration = Calibration(graph, x, QuantizeConfig(), inputs=spec)
    assert calibration.layers == ("first", "second", "sum")
    made = calibration.int8()
    assert {"s_scale", "b_scale"} <= constants(made).keys()
    assert not {"t_scale", "y_scale"} & constants(made).keys()
    assert decibels(run(graph, x), run(made, x)) > 20


def test_a_transposed_convolution_in_groups_stays_fp32() -> None:
    graph = chain(
        helper.make_node("ConvTranspose", ["x", "w", "b"], ["a"], group=2, name="grouped"),
        helper.make_node("Relu", ["a"], ["r"]), helper.make_node("ConvTranspose", ["r", "v"], ["y"], name="whole"),
        inputs=[4, 6, 6], w=normal(4, 3, 2, 2), b=normal(6), v=normal(6, 2, 2, 2, seed=1),
    )  # fmt: skip
    spec, x = TensorSpec(name="x", datatype="FP32", shape=(-1, 4, 6, 6)), normal(64, 4, 6, 6, seed=2)
    calibration = Calibration(graph, x, QuantizeConfig(), inputs=spec)
    assert calibration.layers == ("whole",)
    assert decibels(run(graph, x), run(calibration.int8(), x)) > 20


def test_layers_without_a_name_get_one_of_what_they_give() -> None:
    graph = onnx.load_from_string(two_layers())
    for node in graph.graph.node:
        node.name = ""
    calibration = Calibration(graph.SerializeToString(), normal(64, 16), QuantizeConfig(), inputs=ROWS)
    assert len(set(calibration.layers)) == 2
    assert int8_matrices(calibration.int8(exclude=calibration.layers[:1])) == {"v"}


def test_a_graph_that_takes_something_else_is_refused() -> None:
    other = ROWS.model_copy(update={"name": "z"})
    with pytest.raises(InvalidRequest, match=r"the graph takes \['x'\], and calibration samples are for 'z' alone"):
        quantize(two_layers(), normal(64, 16), QuantizeConfig(), inputs=other)


def test_a_graph_with_narrow_convolutions_alone_is_refused() -> None:
    graph = chain(helper.make_node("Conv", ["x", "w"], ["y"]), inputs=[3, 6, 6], w=normal(4, 3, 1, 1))
    spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 3, 6, 6))
    with pytest.raises(InvalidRequest, match=r"none of the operators that are quantized: .* min_input_channels=4"):
        quantize(graph, normal(4, 3, 6, 6), QuantizeConfig(), inputs=spec)
