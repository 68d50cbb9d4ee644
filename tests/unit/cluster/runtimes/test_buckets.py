"""Which bucket a batch goes to, what is padded and dropped, and what is refused; no GPU is needed for it.

The slots here compute for real, on the CPU: torch's and ONNX Runtime's own, with a graph's replay as plain execution.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper
from torch import nn

from cluster.errors import ConfigError
from cluster.runtimes import onnxruntime_cuda, torch_cuda
from cluster.runtimes.buckets import LARGEST, Buckets, Slot, bucket_of, shapes_of
from cluster.variants import TensorSpec, Variant

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 3))
Z = TensorSpec(name="z", datatype="FP32", shape=(-1, 3))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, 3))
VARIANT = Variant(name="v", family="f", format="onnx", inputs=(X, Z), outputs=(Y,))


def of_torch(bucket: int) -> Slot:
    """x - 2z, by torch_cuda's own buffers; what a graph would replay is run anew."""
    given = [torch.zeros(shape) for shape in shapes_of(VARIANT.inputs, bucket)]
    made = [torch.zeros(shapes_of(VARIANT.outputs, bucket)[0])]

    def replay() -> None:
        made[0].copy_(given[0] - 2 * given[1])

    return torch_cuda.slot_of(given, made, replay, lambda: None)


def of_onnxruntime() -> Callable[[int], Slot]:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 3]) for name in ("x", "z", "y")]
    nodes = [helper.make_node("Add", ["z", "z"], ["twice"]), helper.make_node("Sub", ["x", "twice"], ["y"])]
    graph = helper.make_graph(nodes, "g", ports[:2], ports[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda bucket: onnxruntime_cuda.slot_of(session, VARIANT, bucket, "cpu")


@pytest.fixture(params=["torch", "onnxruntime"])
def capture(request: pytest.FixtureRequest) -> Callable[[int], Slot]:
    return of_torch if request.param == "torch" else of_onnxruntime()


def batch(rows: int, seed: int = 0) -> dict[str, NDArray[np.float32]]:
    drawn = np.random.default_rng(seed).normal(size=(2, rows, 3)).astype(np.float32)
    return {"x": drawn[0], "z": drawn[1]}


@given(rows=st.integers(-1, 600), largest=st.sampled_from([1, 8, LARGEST]))
def test_a_bucket_is_the_least_power_of_two_that_holds_the_rows(rows: int, largest: int) -> None:
    found = bucket_of(rows, largest)
    powers = [1 << k for k in range(largest.bit_length())]
    assert found == next((power for power in powers if power >= rows >= 1), None)


def test_every_batch_is_answered_as_it_would_be_alone(capture: Callable[[int], Slot]) -> None:
    """Large before small: rows of an earlier batch lie in the buffers."""
    buckets = Buckets(VARIANT, capture, largest=8)
    answers = []
    for seed, rows in enumerate((8, 3, 1, 5, 2, 7)):
        inputs = batch(rows, seed)
        answer = buckets.infer(inputs)
        assert answer is not None
        answers.append((inputs, answer["y"]))
    for inputs, y in answers:  # afterwards: each is the caller's own
        np.testing.assert_allclose(y, inputs["x"] - 2 * inputs["z"], rtol=1e-6)


def test_a_bucket_is_captured_once_and_only_when_needed() -> None:
    asked: list[int] = []

    def capture(bucket: int) -> Slot:
        asked.append(bucket)
        return of_torch(bucket)

    buckets = Buckets(VARIANT, capture, largest=16)
    assert asked == [1]
    for rows in (3, 4, 16, 9, 1):
        buckets.infer(batch(rows))
    assert asked == [1, 4, 16]


def test_padding_is_nought_whatever_lay_there_before() -> None:
    slots: list[Slot] = []

    def capture(bucket: int) -> Slot:
        slots.append(of_torch(bucket))
        return slots[-1]

    buckets = Buckets(VARIANT, capture)
    buckets.infer(batch(4))
    buckets.infer(batch(3))
    assert [bool(buffer[3].any()) for buffer in slots[-1].inputs] == [False, False]
    assert all(buffer[:3].all() for buffer in slots[-1].inputs)


def test_what_no_bucket_holds_is_left_to_the_runtime(capture: Callable[[int], Slot]) -> None:
    buckets = Buckets(VARIANT, capture, largest=4)
    assert buckets.infer(batch(5)) is None
    assert buckets.infer({"x": batch(2)["x"], "z": batch(3)["z"]}) is None


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"inputs": (X.model_copy(update={"shape": (4, 3)}),)}, r"input 'x' of variant v has shape \[4, 3\]"),
        ({"inputs": (X.model_copy(update={"shape": (-1, -1)}),)}, r"input 'x' .* \[-1, -1\], and a graph"),
        ({"outputs": (Y.model_copy(update={"shape": (1, 3)}),)}, r"output 'y' .* \[1, 3\]"),
    ],
)
def test_a_variant_whose_batch_is_not_all_that_is_free_is_refused(changes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=f"cuda_graphs=true: {told}.*unset it"):
        Buckets(VARIANT.model_copy(update=changes), of_torch)


def test_what_cannot_be_captured_is_refused_at_once() -> None:
    def capture(bucket: int) -> Slot:
        raise RuntimeError("operation not permitted when stream is capturing")

    with pytest.raises(ConfigError, match=r"variant v cannot be captured as a graph .*not permitted.*unset it"):
        Buckets(VARIANT, capture)


def test_an_output_without_a_row_for_each_row_is_refused() -> None:
    module = nn.Flatten(0)

    def capture(bucket: int) -> Slot:
        given = [torch.zeros(shape) for shape in shapes_of(VARIANT.inputs, bucket)]
        return torch_cuda.slot_of(given, [module(given[0])], lambda: None, lambda: None)

    with pytest.raises(ConfigError, match=r"output 'y' has shape \[3\] for a batch of 1"):
        Buckets(VARIANT, capture)


def test_a_share_of_the_gpus_memory_is_at_most_all_of_it() -> None:
    assert torch_cuda.share(1024, 4 << 30) == 0.25
    with pytest.raises(ConfigError, match="gpu_memory_mib=5000 is more than the GPU's 4096 MiB"):
        torch_cuda.share(5000, 4 << 30)
