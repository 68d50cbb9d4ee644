"""Olive, alone, in its own environment: python olive_peer.py GIVEN OUT STARTED SECONDS (given.py says what those are).

Its ways from the cheap one to the costly one: its passes that quantize, its command that optimizes, and its search over
their settings with its own evaluator. It writes ONNX.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import Any

os.environ.setdefault("OLIVE_DISABLE_TELEMETRY", "1")

import onnx
from given import CALIBRATION, MAX_DROP, RESERVED_S, Given, read, try_all
from olive.data.component.dataset import BaseDataset  # type: ignore[import-not-found]
from olive.data.registry import Registry  # type: ignore[import-not-found]
from olive.engine.footprint import FootprintNode  # type: ignore[import-not-found]
from olive.workflows import run  # type: ignore[import-not-found]

_CALIBRATION = {"name": "calibration", "type": "DataContainer", "dataloader_config": {"batch_size": 1},
                "load_dataset_config": {"type": "pictures", "part": "calibration"}}  # fmt: skip
_VALIDATION = {"name": "validation", "type": "DataContainer", "dataloader_config": {"batch_size": 100},
               "load_dataset_config": {"type": "pictures", "part": "validation"},
               "post_process_data_config": {"type": "highest"}}  # fmt: skip


def _record_again(node: FootprintNode, **values: Any) -> None:
    for name, value in values.items():
        setattr(node, "model_config_data" if name == "model_config" else name, value)


# 0.13.0 fails in a search whenever two points share a pass: it sets a field by its alias, which pydantic refuses.
FootprintNode.update = _record_again


class Pictures(BaseDataset):  # type: ignore[misc]
    """({"image": one picture}, its label)."""

    def __init__(self, x: Any, y: Any, name: str) -> None:
        super().__init__(list(zip(x, y, strict=True)))
        self._name = name

    def __getitem__(self, index: int) -> Any:
        x, y = self.data[index]
        return {self._name: x}, int(y)


@Registry.register_dataset("pictures")  # type: ignore[untyped-decorator]
def pictures(part: str, folder: str = "", **_: Any) -> Pictures:
    given = read(Path(os.environ["PEER_GIVEN"]))
    name = onnx.load(str(given.onnx)).graph.input[0].name
    if part == "calibration":
        return Pictures(given.x_calibration, given.y_train[:CALIBRATION], name)
    return Pictures(given.x_validation, given.y_validation, name)


@Registry.register_post_process("highest")  # type: ignore[untyped-decorator]
def highest(output_data: Any, **_: Any) -> Any:
    scores = output_data if hasattr(output_data, "argmax") else next(iter(output_data.values()))
    return scores.argmax(-1)


def _config(given: Given, folder: Path, passes: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "input_model": {"type": "ONNXModel", "model_path": str(given.onnx)},
        "systems": {"here": {"type": "LocalSystem", "accelerators": [
            {"device": "cpu", "execution_providers": ["CPUExecutionProvider"]}]}},
        "target": "here", "host": "here", "data_configs": [_CALIBRATION, _VALIDATION], "passes": passes,
        "output_dir": str(folder / "olive"), "cache_dir": str(folder / "cache"), "clean_cache": True,
        "evaluate_input_model": False, "log_severity_level": 2, **more,
    }  # fmt: skip


def _kept(output: Any, folder: Path) -> Path:
    best = output.get_best_candidate()
    if best is None:
        raise RuntimeError("the workflow ended without a model")
    path = folder / "model.onnx"
    onnx.save(onnx.load(best.model_path), str(path))  # one file, with the weights inside
    shutil.rmtree(folder / "cache", ignore_errors=True)
    return path


def static_int8(given: Given, folder: Path) -> Path:
    """OnnxStaticQuantization, as it comes"""
    settings = {"type": "OnnxStaticQuantization", "data_config": "calibration"}
    return _kept(run(_config(given, folder, {"quantize": settings})), folder)


def static_int8_channels(given: Given, folder: Path) -> Path:
    """OnnxStaticQuantization per channel, unsigned activations, all operators that are worth it"""
    settings = {"type": "OnnxStaticQuantization", "data_config": "calibration", "per_channel": True,
                "precision": "int8", "activation_type": "uint8", "prepare_qdq_config": False}  # fmt: skip
    return _kept(run(_config(given, folder, {"quantize": settings})), folder)


def dynamic_int8(given: Given, folder: Path) -> Path:
    """OnnxDynamicQuantization, as it comes"""
    return _kept(run(_config(given, folder, {"quantize": {"type": "OnnxDynamicQuantization"}})), folder)


def optimize(given: Given, folder: Path) -> Path:
    """its command `optimize` for int8 on the CPU, which takes no calibration data but its own"""
    from olive.cli.api import optimize as command  # type: ignore[import-not-found]

    return _kept(command(str(given.onnx), precision="int8", provider="CPUExecutionProvider", device="cpu",
                         output_path=str(folder / "olive")), folder)  # fmt: skip


def search(given: Given, folder: Path) -> Path:
    """its search over OnnxQuantization's settings and graph optimizations: fastest by its own evaluator, at most 0.5
    points lost on the validation part"""
    goal = {"type": "max-degradation", "value": MAX_DROP}
    metrics = [
        {"name": "accuracy", "type": "accuracy", "backend": "torch_metrics", "data_config": "validation",
         "sub_types": [{"name": "accuracy_score", "priority": 2, "goal": goal,
                        "metric_config": {"task": "multiclass", "num_classes": 10}}]},
        {"name": "latency", "type": "latency", "data_config": "validation",
         "sub_types": [{"name": "avg", "priority": 1}],
         "user_config": {"io_bind": False}},
    ]  # fmt: skip
    passes = {
        "peephole": {"type": "OnnxPeepholeOptimizer"},
        "quantize": {"type": "OnnxQuantization", "data_config": "calibration"},
    }
    strategy = {
        "execution_order": "joint", "sampler": "tpe", "sampler_config": {"max_samples": 100, "seed": 0},
        "max_iter": 100, "max_time": max(1, int(given.left_s - 2 * RESERVED_S)),
    }  # fmt: skip
    # Without a type of its own the evaluator is taken for a resource, and 0.13.0 fails on that.
    evaluator = {"type": "OnnxEvaluator", "metrics": metrics}
    config = _config(given, folder, passes, evaluators={"both": evaluator}, evaluator="both", search_strategy=strategy)
    return _kept(run(config | {"evaluate_input_model": True}), folder)


if __name__ == "__main__":
    os.environ["PEER_GIVEN"] = sys.argv[1]
    try_all({
        "static-int8": static_int8, "static-int8-channels": static_int8_channels, "dynamic-int8": dynamic_int8,
        "optimize-int8": optimize, "search": search,
    })  # fmt: skip
