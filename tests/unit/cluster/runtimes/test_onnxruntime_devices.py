"""Which execution providers a device means, and what is said where they are not there. This machine needs no GPU: what
ONNX Runtime offers is made up where it must offer one."""

from __future__ import annotations

import warnings
from pathlib import Path

import onnxruntime
import pytest
from onnx import TensorProto, helper

from cluster.artifacts import ArtifactStore
from cluster.errors import RuntimeUnavailable
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.runtimes.base import Device
from cluster.runtimes.onnxruntime_runtime import providers
from cluster.variants import TensorSpec, Variant

X = TensorSpec(name="x", datatype="FP32", shape=(-1, 2))
Y = TensorSpec(name="y", datatype="FP32", shape=(-1, 2))
ALL = ["TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"]


@pytest.fixture
def _all_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ALL)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_the_cpu_is_asked_alone() -> None:
    assert providers("cpu", (X,)) == ["CPUExecutionProvider"]


@pytest.mark.usefixtures("_all_offered")
def test_cuda_computes_fp32_in_full_and_leaves_the_rest_to_the_cpu() -> None:
    assert providers("cuda", (X,)) == [("CUDAExecutionProvider", {"use_tf32": "0"}), "CPUExecutionProvider"]


@pytest.mark.usefixtures("_all_offered")
def test_tensorrt_builds_one_engine_for_all_batches_and_keeps_it(tmp_path: Path) -> None:
    other = TensorSpec(name="z", datatype="FP32", shape=(-1, 3, 4))
    fixed = TensorSpec(name="f", datatype="FP32", shape=(5, 6))
    (name, options), *others = providers("tensorrt", (X, other, fixed))
    assert name == "TensorrtExecutionProvider"
    assert others == providers("cuda", (X,)), "what TensorRT has no kernel for"
    assert [options[f"trt_profile_{bound}_shapes"] for bound in ("min", "opt", "max")] == [
        "x:1x2,z:1x3x4", "x:32x2,z:32x3x4", "x:256x2,z:256x3x4"
    ]  # fmt: skip
    assert options["trt_engine_cache_path"] == str(tmp_path / "sluice/tensorrt")
    assert options["trt_int8_enable"] == "False"
    assert providers("tensorrt", (X,), "int8")[0][1]["trt_int8_enable"] == "True"


@pytest.mark.usefixtures("_all_offered")
def test_tensorrt_computes_in_bf16_what_was_made_for_it_alone() -> None:
    assert [providers("tensorrt", (X,), p)[0][1].get("trt_bf16_enable") for p in ("bf16", "fp32")] == ["True", None]


@pytest.mark.usefixtures("_all_offered")
def test_graphs_are_captured_by_the_provider_that_computes() -> None:
    (_, options), *_ = providers("cuda", (X,), graphs=True)
    assert options["enable_cuda_graph"] == "1"
    (_, first), (_, second), *_ = providers("tensorrt", (X,), graphs=True)
    assert (first["trt_cuda_graph_enable"], "enable_cuda_graph" in second) == ("True", False)
    assert "trt_cuda_graph_enable" not in providers("tensorrt", (X,))[0][1]


@pytest.mark.usefixtures("_all_offered")
def test_memory_is_bounded_where_it_is_told() -> None:
    (_, options), *_ = providers("cuda", (X,), memory_mib=3)
    assert options["gpu_mem_limit"] == str(3 * 2**20)
    (_, first), (_, second), *_ = providers("tensorrt", (X,), memory_mib=3)
    assert (first["trt_max_workspace_size"], second["gpu_mem_limit"]) == (str(3 * 2**20),) * 2


@pytest.mark.usefixtures("_all_offered")
@pytest.mark.parametrize("shape", [(-1, -1), (4, 2)])
def test_bounds_are_given_for_a_free_batch_alone(shape: tuple[int, ...]) -> None:
    (_, options), *_ = providers("tensorrt", (X.model_copy(update={"shape": shape}),))
    assert not [option for option in options if option.startswith("trt_profile")]


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_what_is_not_offered_is_refused_with_what_is(monkeypatch: pytest.MonkeyPatch, device: Device) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["ThatExecutionProvider", ALL[-1]])
    told = rf"device='{device}': .*only ThatExecutionProvider, CPUExecutionProvider; .*onnxruntime-gpu.*device='cpu'"
    with pytest.raises(RuntimeUnavailable, match=told):
        providers(device, (X,))


@pytest.mark.usefixtures("_all_offered")
def test_a_session_without_the_device_that_was_asked_for_is_refused(tmp_path: Path) -> None:
    """ONNX Runtime itself would go on with the CPU."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, 2]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Neg", ["x"], ["y"])], "g", ports[:1], ports[1:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    store = ArtifactStore(tmp_path / "store")
    variant = Variant(name="v", family="f", format="onnx", inputs=(X,), outputs=(Y,))
    variant = store.put(variant, {"model.onnx": model.SerializeToString()})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own, that it does not know the provider
        with pytest.raises(RuntimeUnavailable, match="could not load it and took CPUExecutionProvider"):
            load_runtime(store, variant, RuntimeConfig(device="cuda"))
