"""RuntimeConfig: threads, inter-op threads and streams are said, counted and refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.runtimes import RuntimeConfig, runtimes_for

configs = st.builds(
    RuntimeConfig, name=st.just("onnxruntime"), threads=st.integers(1, 1024), inter_op_threads=st.integers(1, 1024),
    streams=st.integers(1, 1024), arena=st.booleans(), device=st.sampled_from(["cpu", "cuda", "tensorrt"]),
) | st.builds(RuntimeConfig, threads=st.integers(1, 1024), pin=st.booleans()) | st.builds(
    RuntimeConfig, name=st.sampled_from(["torch", "openvino"]), threads=st.integers(1, 1024),
    streams=st.integers(1, 1024),
) | st.builds(
    RuntimeConfig, name=st.just("torch"), compile=st.booleans(), channels_last=st.booleans(),
    device=st.sampled_from(["cpu", "cuda"]),
) | st.builds(
    RuntimeConfig, name=st.sampled_from(["torch", "onnxruntime"]), device=st.just("cuda"), cuda_graphs=st.booleans(),
    gpu_memory_mib=st.none() | st.integers(1024, 4096), streams=st.integers(1, 1024),
)  # fmt: skip


def test_the_default_is_one_thread_of_onnx_runtime() -> None:
    config = RuntimeConfig()
    assert config.model_dump() == {"name": "onnxruntime", "threads": 1, "inter_op_threads": 1, "streams": 1}
    assert RuntimeConfig(pin=True, arena=False).model_dump().items() >= {"pin": True, "arena": False}.items()
    assert not RuntimeConfig().pin, "and neither is written where it is off: keys from before stay"
    assert RuntimeConfig().arena
    assert config.cores == 1
    later = {"compile": True, "channels_last": True, "device": "cuda", "cuda_graphs": True, "gpu_memory_mib": 9}
    assert RuntimeConfig.model_validate({"name": "torch", **later}).model_dump().items() >= later.items()


@pytest.mark.parametrize(
    "fields",
    [
        *({name: wrong} for name in ("threads", "inter_op_threads", "streams") for wrong in (0, -1, 1025, 1.5, "many")),
        {"name": "tensorrt"},
        {"thread": 1},
    ],
    ids=str,
)
def test_a_wrong_config_is_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError) as caught:
        RuntimeConfig.model_validate(fields)
    assert caught.value.errors()[0]["loc"] == tuple(fields)


@pytest.mark.parametrize("name", ["torch", "openvino"])
def test_inter_op_threads_are_onnx_runtimes_alone(name: str) -> None:
    RuntimeConfig.model_validate({"name": name, "inter_op_threads": 1})
    with pytest.raises(ValidationError, match=f"inter_op_threads=2: {name} runs .*use streams, or runtime onnxruntime"):
        RuntimeConfig.model_validate({"name": name, "inter_op_threads": 2})


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"name": "torch", "pin": True}, "torch does not place its threads"),
        ({"name": "openvino", "arena": False}, "arena=false is for runtime onnxruntime"),
        ({"name": "torch", "arena": False}, "arena=false is for runtime onnxruntime"),
        ({"compile": True}, "compile=true is for runtime torch"),
        ({"name": "openvino", "channels_last": True}, "channels_last=true is for runtime torch"),
        ({"name": "torch", "device": "tensorrt"}, "device='tensorrt': torch computes on cpu or cuda here"),
        ({"name": "openvino", "device": "cuda"}, "device='cuda': openvino computes on cpu here"),
        ({"cuda_graphs": True}, "cuda_graphs=True is for a GPU, and device='cpu' has none"),
        ({"name": "openvino", "cuda_graphs": True}, "cuda_graphs=True is for a GPU"),
        ({"name": "torch", "gpu_memory_mib": 64}, "gpu_memory_mib=64 is for a GPU"),
        ({"device": "cuda", "gpu_memory_mib": 3, "streams": 4}, "each of streams=4 needs some"),
        ({"pin": True, "streams": 2}, "the threads of streams=2 would share cores"),
    ],
)
def test_what_a_runtime_has_no_switch_for_is_refused(fields: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        RuntimeConfig.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "cores", "said"),
    [
        ({}, 1, "onnxruntime"),
        ({"threads": 4}, 4, "onnxruntime 1x4"),
        ({"streams": 3}, 3, "onnxruntime 3x1"),
        ({"streams": 2, "threads": 4, "name": "openvino"}, 8, "openvino 2x4"),
        ({"inter_op_threads": 3, "threads": 2}, 3, "onnxruntime 1x2 inter-op 3"),
        ({"inter_op_threads": 2, "threads": 3, "streams": 2}, 6, "onnxruntime 2x3 inter-op 2"),
        ({"threads": 2, "pin": True, "arena": False}, 2, "onnxruntime 1x2 pinned no arena"),
        ({"name": "torch", "compile": True, "channels_last": True}, 1, "torch compiled channels-last"),
        ({"device": "tensorrt", "threads": 2}, 2, "onnxruntime 1x2 on tensorrt"),
        ({"device": "cuda", "cuda_graphs": True, "gpu_memory_mib": 512}, 1, "onnxruntime on cuda graphs in 512 MiB"),
    ],
)
def test_it_counts_its_cores_and_says_what_it_is(fields: dict[str, object], cores: int, said: str) -> None:
    config = RuntimeConfig.model_validate(fields)
    assert (config.cores, str(config)) == (cores, said)


@given(config=configs)
def test_the_streams_share_what_memory_they_may_have(config: RuntimeConfig) -> None:
    lane = config.lane
    assert lane.streams == 1
    assert RuntimeConfig.model_validate(lane.model_dump()) == lane, "it is a config in its own right"
    if config.gpu_memory_mib is None:
        assert lane == config.model_copy(update={"streams": 1})
    elif config.name == "torch":
        assert lane.gpu_memory_mib == config.gpu_memory_mib, "of the whole process"
    else:
        assert lane.gpu_memory_mib is not None
        assert config.gpu_memory_mib - config.streams < lane.gpu_memory_mib * config.streams <= config.gpu_memory_mib


@given(one=configs, other=configs)
def test_what_is_said_tells_any_two_apart(one: RuntimeConfig, other: RuntimeConfig) -> None:
    """The search names a choice by it."""
    assert (str(one) == str(other)) == (one == other)
    assert RuntimeConfig.model_validate_json(one.model_dump_json()) == one
    assert (hash(one) == hash(other)) or one != other


def test_which_runtimes_execute_which_format() -> None:
    assert runtimes_for("onnx") == ["onnxruntime", "openvino"]
    assert runtimes_for("torch_export") == ["torch"]
    assert runtimes_for("gguf") == []
