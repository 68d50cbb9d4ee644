"""NNCF, alone, in its own environment: python nncf_peer.py GIVEN OUT STARTED SECONDS (given.py says what those are).

Its ways from the cheap one to the costly one: calibrated int8 of the ONNX graph and of OpenVINO's, either with accuracy
control, and training with quantizers in torch, with and without its pruning before. What it writes is ONNX where it
began with ONNX, OpenVINO's own format elsewhere.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nncf  # type: ignore[import-not-found]
import numpy as np
import onnx
import onnxruntime as ort
import openvino as ov
import torch
from cnn import finetune, trained
from given import CALIBRATION, MAX_DROP, RESERVED_S, Given, try_all


def _feed(given: Given, name: str) -> nncf.Dataset:
    return nncf.Dataset([given.x_calibration[i : i + 1] for i in range(CALIBRATION)], lambda x: {name: x})


def _saved_onnx(model: onnx.ModelProto, folder: Path) -> Path:
    onnx.save(model, str(folder / "model.onnx"))
    return folder / "model.onnx"


def _saved_ir(model: ov.Model, folder: Path) -> Path:
    ov.save_model(model, folder / "model.xml", compress_to_fp16=False)
    return folder / "model.xml"


def _read_ir(given: Given) -> tuple[ov.Model, str]:
    model = ov.Core().read_model(given.onnx)
    return model, model.input(0).any_name


def onnx_int8(given: Given, folder: Path) -> Path:
    """nncf.quantize on the ONNX graph, as it comes"""
    model = onnx.load(str(given.onnx))
    made = nncf.quantize(model, _feed(given, model.graph.input[0].name), subset_size=CALIBRATION)
    return _saved_onnx(made, folder)


def openvino_int8(given: Given, folder: Path) -> Path:
    """nncf.quantize on OpenVINO's graph, as it comes"""
    model, name = _read_ir(given)
    return _saved_ir(nncf.quantize(model, _feed(given, name), subset_size=CALIBRATION), folder)


def openvino_int8_mixed(given: Given, folder: Path) -> Path:
    """nncf.quantize on OpenVINO's graph, preset mixed, thorough bias correction"""
    model, name = _read_ir(given)
    made = nncf.quantize(
        model, _feed(given, name), subset_size=CALIBRATION, preset=nncf.QuantizationPreset.MIXED,
        fast_bias_correction=False,
    )  # fmt: skip
    return _saved_ir(made, folder)


def openvino_int8_controlled(given: Given, folder: Path) -> Path:
    """nncf.quantize_with_accuracy_control on OpenVINO's graph, at most 0.5 points lost on the validation part"""
    model, name = _read_ir(given)
    batches = [(given.x_validation[i : i + 1], given.y_validation[i : i + 1]) for i in range(len(given.x_validation))]

    def validate(compiled: Any, items: Iterable[Any]) -> tuple[float, list[float]]:
        right = [float(np.argmax(compiled(x)[0]) == y[0]) for x, y in items]
        return float(np.mean(right)), right

    made = nncf.quantize_with_accuracy_control(
        model, _feed(given, name), nncf.Dataset(batches), validate, max_drop=MAX_DROP, subset_size=CALIBRATION
    )
    return _saved_ir(made, folder)


def onnx_int8_controlled(given: Given, folder: Path) -> Path:
    """nncf.quantize_with_accuracy_control on the ONNX graph, at most 0.5 points lost on the validation part"""
    model = onnx.load(str(given.onnx))
    name = model.graph.input[0].name
    batches = [(given.x_validation[i : i + 1], given.y_validation[i : i + 1]) for i in range(len(given.x_validation))]

    def validate(candidate: onnx.ModelProto, items: Iterable[Any]) -> tuple[float, list[float]]:
        session = ort.InferenceSession(candidate.SerializeToString(), providers=["CPUExecutionProvider"])
        output = [candidate.graph.output[0].name]
        right = [float(np.argmax(session.run(output, {name: x})[0]) == y[0]) for x, y in items]
        return float(np.mean(right)), right

    made = nncf.quantize_with_accuracy_control(
        model, _feed(given, name), nncf.Dataset(batches), validate, max_drop=MAX_DROP, subset_size=CALIBRATION
    )
    return _saved_onnx(made, folder)


def _example(given: Given) -> torch.Tensor:
    return torch.from_numpy(given.x_train[:2])


def _quantized_torch(model: torch.nn.Module, given: Given) -> Any:
    batches = [torch.from_numpy(given.x_calibration[i : i + 64]) for i in range(0, CALIBRATION, 64)]
    return nncf.quantize(model, nncf.Dataset(batches), subset_size=len(batches))


def _to_ir(model: Any, given: Given, folder: Path) -> Path:
    shape = [-1, *given.x_train.shape[1:]]
    stripped = nncf.strip(model.eval(), do_copy=False, example_input=_example(given))
    return _saved_ir(ov.convert_model(stripped, example_input=_example(given), input=[(shape, ov.Type.u8)]), folder)


def torch_qat(given: Given, folder: Path) -> Path:
    """nncf.quantize on the torch model, then up to 3 epochs of training with its quantizers, to OpenVINO"""
    model = _quantized_torch(trained(given.weights), given)
    tuned = finetune(model, given, epochs=3, lr=5e-4, seconds=given.left_s - RESERVED_S)
    return _to_ir(tuned, given, folder)


def torch_pruned_qat(given: Given, folder: Path) -> Path:
    """nncf.prune (single weights by magnitude, half of them), 3 epochs, nncf.quantize, up to 2 epochs, to OpenVINO"""
    model = nncf.prune(
        trained(given.weights), mode=nncf.PruneMode.UNSTRUCTURED_MAGNITUDE_GLOBAL, ratio=0.5,
        examples_inputs=_example(given),
    )  # fmt: skip
    model = nncf.strip(finetune(model, given, epochs=3, lr=1e-3).eval(), do_copy=False, example_input=_example(given))
    quantized = _quantized_torch(model, given)
    tuned = finetune(quantized, given, epochs=2, lr=5e-4, seconds=given.left_s - RESERVED_S)
    return _to_ir(tuned, given, folder)


if __name__ == "__main__":
    try_all({
        "onnx-int8": onnx_int8, "openvino-int8": openvino_int8, "openvino-int8-mixed": openvino_int8_mixed,
        "openvino-int8-controlled": openvino_int8_controlled, "onnx-int8-controlled": onnx_int8_controlled,
        "torch-qat": torch_qat, "torch-pruned-qat": torch_pruned_qat,
    })  # fmt: skip
