"""What pays nothing really computes in fp32, as the runtimes themselves say; whatever is in doubt may be measured."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from openvino.properties import hint

from cluster.hardware import FLAGS, Cpu, read_cpu
from cluster.machine import read_machine
from cluster.native import native, on_cpu, pays
from cluster.runtimes import RuntimeName, runtimes_for
from cluster.variants import Precision
from tests.unit.cluster import machines
from train_jobs.compression.cast import to_bf16

RUNTIMES: tuple[RuntimeName, ...] = get_args(RuntimeName)
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
CPUS = st.builds(
    Cpu, st.just("some CPU"), st.sampled_from(["AuthenticAMD/25/1/1", "GenuineIntel/6/143/8", "0x41/0xd0c/0x3/1", ""]),
    st.lists(st.sampled_from(FLAGS), unique=True).map(tuple),
)  # fmt: skip


@pytest.fixture(scope="module")
def bf16() -> bytes:
    """A convolution and a matrix, their weights in bf16."""
    rng = np.random.default_rng(0)
    kernel, matrix = (rng.standard_normal(shape).astype(np.float32) for shape in ((8, 4, 3, 3), (288, 10)))
    nodes = [
        helper.make_node("Conv", ["x", "kernel"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Flatten", ["c"], ["f"]),
        helper.make_node("MatMul", ["f", "matrix"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "two layers", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["b", 4, 6, 6])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["b", 10])],
        [numpy_helper.from_array(kernel, "kernel"), numpy_helper.from_array(matrix, "matrix")],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return to_bf16(made.SerializeToString())


def test_onnxruntime_folds_the_casts_away(bf16: bytes, tmp_path: Path) -> None:
    """So bf16 gains nothing there, on any CPU."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    ort.InferenceSession(bf16, options, providers=["CPUExecutionProvider"])
    executed = onnx.load(tmp_path / "optimized.onnx").graph
    assert "Cast" not in {node.op_type for node in executed.node}
    assert onnx.TensorProto.BFLOAT16 not in {tensor.data_type for tensor in executed.initializer}
    assert onnx.TensorProto.BFLOAT16 in {t.data_type for t in onnx.load_from_string(bf16).graph.initializer}
    assert not pays("onnxruntime", "bf16")


def test_openvino_computes_in_bf16_where_we_say_so(bf16: bytes) -> None:
    core = ov.Core()
    compiled = core.compile_model(
        core.read_model(model=bf16, weights=b""), "CPU", {hint.inference_precision(): ov.Type.bf16}
    )
    says = compiled.get_property(hint.inference_precision())
    ours = on_cpu(read_cpu(), "openvino", "bf16")
    if not ours.may_gain:
        assert says == ov.Type.f32
    elif ours.how != "unknown":
        assert says == ov.Type.bf16
    else:
        assert says in (ov.Type.f32, ov.Type.bf16, ov.Type.f16)


def test_torch_executes_none_of_the_reduced_graphs() -> None:
    assert "torch" not in runtimes_for("onnx")
    for pair in (on_cpu(read_cpu(), "torch", "bf16"), on_cpu(read_cpu(), "torch", "int8")):
        assert (pair.how, pair.may_gain) == ("not executable", False)


@pytest.mark.parametrize(
    ("cpu", "int8", "bf16", "bf16_may_gain"),
    [
        (machines.OLD_AMD, "emulated", "emulated", False),
        (Cpu("Xeon", "GenuineIntel/6/85/4", ("avx2", "avx512f")), "emulated", "emulated", True),
        (Cpu("Xeon", "GenuineIntel/6/85/7", ("avx2", "avx512f", "avx512_vnni")), "native", "emulated", True),
        (Cpu("Xeon", "GenuineIntel/6/143/8", FLAGS[:7]), "native", "native", True),
        (Cpu("Core", "GenuineIntel/6/151/2", ("avx2", "avx_vnni")), "native", "unknown", True),
        (Cpu("ARM Neoverse N1", "0x41/0xd0c/0x3/1", ("asimddp",)), "native", "emulated", False),
        (Cpu("ARM Neoverse V1", "0x41/0xd40/0x1/1", ("asimddp", "bf16", "i8mm")), "native", "unknown", True),
        (Cpu("ARM Cortex-A72", "0x41/0xd08/0x0/3", ()), "emulated", "emulated", False),
        (machines.SILENT, "unknown", "unknown", True),
    ],
    ids=["Zen 2", "Skylake", "Cascade Lake", "Sapphire Rapids", "Alder Lake", "N1", "V1", "A72", "silent"],
)
def test_what_the_flags_of_well_known_cpus_mean(cpu: Cpu, int8: str, bf16: str, bf16_may_gain: bool) -> None:
    assert on_cpu(cpu, "onnxruntime", "int8").how == on_cpu(cpu, "openvino", "int8").how == int8
    openvino = on_cpu(cpu, "openvino", "bf16")
    assert (openvino.how, openvino.may_gain) == (bf16, bf16_may_gain)


@pytest.mark.parametrize(("count", "fp32", "int8", "bf16"), [
    (7, "AVX-512F", "AMX int8", "AMX bf16"), (5, "AVX-512F", "AVX-512 VNNI", "AVX-512 BF16"),
    (3, "AVX-512F", "AVX-512 VNNI", "AVX-512 without BF16"), (1, "AVX2", "no VNNI", "no BF16"),
])  # fmt: skip
def test_the_reason_names_the_best_of_what_there_is(count: int, fp32: str, int8: str, bf16: str) -> None:
    cpu = Cpu("Xeon", "GenuineIntel/6/143/8", FLAGS[:count])
    whys = [on_cpu(cpu, "openvino", precision).why for precision in ("fp32", "int8", "bf16")]
    assert all(why.startswith(start) for why, start in zip(whys, (fp32, int8, bf16), strict=True)), whys


@given(CPUS)
def test_only_what_cannot_gain_is_left_out(cpu: Cpu) -> None:
    """fp32 and int8 never are, and every answer has its reason."""
    for runtime in RUNTIMES:
        for precision in PRECISIONS:
            pair = on_cpu(cpu, runtime, precision)
            assert pair.why
            assert pair.may_gain or pair.how in ("emulated", "not executable")
            assert pair.may_gain or precision == "bf16" or (runtime, precision) == ("torch", "int8")


@given(CPUS, st.sampled_from(FLAGS), st.sampled_from(RUNTIMES), st.sampled_from(PRECISIONS))
def test_an_instruction_set_more_never_leaves_out_more(
    cpu: Cpu, flag: str, runtime: RuntimeName, precision: Precision
) -> None:
    richer = dataclasses.replace(cpu, flags=(*cpu.flags, flag))
    assert on_cpu(richer, runtime, precision).may_gain >= on_cpu(cpu, runtime, precision).may_gain


def test_pays_answers_for_this_machine() -> None:
    here = {(pair.runtime, pair.precision): pair.may_gain for pair in native(read_machine())}
    assert here == {(r, p): pays(r, p) for r in RUNTIMES for p in PRECISIONS}
    assert len(here) == 9


def test_a_runtime_that_is_not_installed_executes_nothing(tmp_path: Path) -> None:
    machine = read_machine(machines.two_sockets(tmp_path))
    lacking = dataclasses.replace(machine, libraries=machine.libraries | {"openvino": "not installed"})
    pairs = [pair for pair in native(lacking) if pair.runtime == "openvino"]
    assert {pair.how for pair in pairs} == {"not executable"}
    assert not any(pair.may_gain for pair in pairs)
    assert all("pip install openvino" in pair.why for pair in pairs)
    assert {pair.how for pair in native(lacking) if pair.runtime == "onnxruntime"} == {"native", "emulated"}
