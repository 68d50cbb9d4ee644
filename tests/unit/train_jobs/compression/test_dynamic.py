"""Dynamic int8: weights quantized, activations as they come, recurrent cells too."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper
from pydantic import ValidationError

from cluster.errors import InvalidRequest
from cluster.runtimes import runtimes_for
from tests.unit.train_jobs.compression.graphs import (
    FAMILIES,
    chain,
    constants,
    decibels,
    matrices,
    normal,
    operators,
    run,
)
from train_jobs.compression.dynamic import DynamicConfig, dynamic


@pytest.mark.parametrize("runtime", runtimes_for("onnx"))
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_answers_nearly_as_in_fp32(family: str, runtime: str) -> None:
    small = FAMILIES[family]()
    made = dynamic(small.graph, DynamicConfig())
    assert decibels(small.run(small.graph), small.run_in(runtime, made)) > 20


def test_cells_and_matrices_compute_in_int8() -> None:
    made = dynamic(FAMILIES["forecaster"]().graph, DynamicConfig())
    kinds = operators(made)
    assert kinds.count("DynamicQuantizeLSTM") == 2
    assert "MatMulInteger" in kinds
    assert not {"LSTM", "Gemm", "MatMul"} & set(kinds)
    assert {array.dtype for array in matrices(made).values()} == {np.dtype(np.int8)}


@pytest.mark.parametrize("reduce_range", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_a_cell_has_a_scale_for_each_row_or_one_alone_of_seven_bits_or_eight(
    per_channel: bool, reduce_range: bool
) -> None:
    made = dynamic(FAMILIES["forecaster"]().graph, DynamicConfig(per_channel=per_channel, reduce_range=reduce_range))
    stored = constants(made)
    for node in onnx.load_from_string(made).graph.node:
        if node.op_type == "DynamicQuantizeLSTM":
            for weights, scale in ((node.input[1], node.input[8]), (node.input[2], node.input[10])):
                assert stored[scale].size == (192 if per_channel else 1)
                assert np.abs(stored[weights].astype(int)).max() == (64 if reduce_range else 127)


def test_a_scale_for_each_row_loses_less() -> None:
    """Rows of unlike reach: one scale for all is too coarse for most of them."""
    reach = np.repeat(10.0 ** np.linspace(-2, 0, 32), 4).astype(np.float32)[:, None]
    graph = cell(normal(1, 128, 8) * reach, normal(1, 128, 32, seed=1) * reach * 0.1)
    x = normal(10, 6, 8, seed=2)
    fine, coarse = (dynamic(graph, DynamicConfig(per_channel=each)) for each in (True, False))
    assert decibels(run(graph, x), run(fine, x)) > decibels(run(graph, x), run(coarse, x)) + 3


def test_what_a_sample_is_answered_depends_a_little_on_its_batch() -> None:
    """As the module says: not a defect to find later."""
    small = FAMILIES["forecaster"]()
    made = dynamic(small.graph, DynamicConfig())
    alone = np.concatenate([run(made, small.samples[i : i + 1])["forecast"] for i in range(20)])
    together = run(made, small.samples)["forecast"][:20]
    assert np.abs(alone - together).max() > 0
    assert decibels({"y": together}, {"y": alone}) > 20


def test_excluded_layers_stay_fp32() -> None:
    small = FAMILIES["autoencoder"]()
    names = [node.name for node in onnx.load_from_string(small.graph).graph.node if node.op_type == "Gemm"]
    assert len(names) == 2
    assert operators(dynamic(small.graph, DynamicConfig())).count("MatMulInteger") == 2
    assert operators(dynamic(small.graph, DynamicConfig(exclude=(names[0],)))).count("MatMulInteger") == 1
    with pytest.raises(InvalidRequest, match=rf"exclude=\['nowhere'\] names no node; .*: {names[0]}, {names[1]}"):
        dynamic(small.graph, DynamicConfig(exclude=("nowhere",)))


def test_convolutions_where_asked_for() -> None:
    small = FAMILIES["cnn"]()
    made = dynamic(small.graph, DynamicConfig(operators=("Conv", "MatMul")))
    assert operators(made).count("ConvInteger") == 3
    assert decibels(small.run(small.graph), small.run(made)) > 20


def cell(w: np.ndarray, r: np.ndarray, *, layout: int = 0) -> bytes:  # type: ignore[type-arg]
    """x (B, S, F) -> what an LSTM holds after each step."""
    units = r.shape[2]
    turned = helper.make_node("Transpose", ["x"], ["t"], perm=[1, 0, 2])
    lstm = helper.make_node(
        "LSTM", ["x" if layout else "t", "w", "r"], ["y"], hidden_size=units, **({"layout": 1} if layout else {})
    )
    return chain(*([lstm] if layout else [turned, lstm]), inputs=["steps", w.shape[2]], w=w, r=r)


def test_a_cell_that_takes_batches_first_is_refused() -> None:
    """ONNX Runtime's tool drops the attribute, and the graph would answer something else."""
    graph = cell(normal(1, 16, 3), normal(1, 16, 4), layout=1)
    with pytest.raises(InvalidRequest, match=r"LSTM 'LSTM_y' has layout=1.*or set exclude=\['LSTM_y'\]"):
        dynamic(graph, DynamicConfig())


def test_what_has_nothing_to_quantize_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="no MatMul or LSTM with constant weights that could be quantized"):
        dynamic(chain(helper.make_node("Relu", ["x"], ["y"]), inputs=[3]), DynamicConfig())
    with pytest.raises(InvalidRequest, match="ONNX Runtime cannot quantize this graph"):
        dynamic(b"no graph", DynamicConfig())


@pytest.mark.parametrize("wrong", [{"operators": ["Relu"]}, {"bits": 8}])
def test_a_config_out_of_bounds_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        DynamicConfig.model_validate(wrong)
