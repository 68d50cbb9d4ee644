"""Streams keep the contract of the runtime that they are made of."""

from __future__ import annotations

from tests.contracts import test_onnxruntime, test_openvino, test_torch
from tests.contracts.runtime_contract import eager, model, pictures

__all__ = ["eager", "model", "pictures"]  # fixtures


class TestStreamedOnnxRuntime(test_onnxruntime.TestOnnxRuntime):
    streams = 2


class TestStreamedOpenVino(test_openvino.TestOpenVino):
    streams = 2


class TestStreamedTorch(test_torch.TestTorch):
    streams = 2
