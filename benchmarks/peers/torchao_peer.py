"""torchao, alone, in its own environment: python torchao_peer.py GIVEN OUT STARTED SECONDS (see given.py).

Its ways from the cheap one to the costly one; each is written as an exported program with a free batch, which
measure.py compiles as torchao's own documentation has it (torch.compile, frozen weights).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from cnn import finetune, trained
from given import RESERVED_S, Given, try_all
from torchao.quantization import Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig, quantize_  # type: ignore[import-not-found]
from torchao.quantization.pt2e import allow_exported_model_train_eval, move_exported_model_to_eval  # type: ignore[import-not-found]
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e, prepare_qat_pt2e  # type: ignore[import-not-found]
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (  # type: ignore[import-not-found]
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
)
from torchao.utils import unwrap_tensor_subclass  # type: ignore[import-not-found]


def _exported(model: Any, given: Given) -> torch.export.ExportedProgram:
    example = (torch.from_numpy(given.x_train[:2]),)
    return torch.export.export(model, example, dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))


def _saved(model: Any, given: Given, folder: Path) -> Path:
    torch.export.save(_exported(model, given), folder / "model.pt2")
    return folder / "model.pt2"


def _lean(model: Any) -> Any:
    """Without the fp32 weights that convert_pt2e leaves beside the int8 ones: they would be in the file."""
    used = {node.target for node in model.graph.nodes if node.op == "get_attr"}
    for name, module in list(model.named_modules()):
        for table in (module._parameters, module._buffers):
            for leaf in [leaf for leaf in table if (f"{name}." if name else "") + leaf not in used]:
                del table[leaf]
    return model


def _calibrated(prepared: Any, given: Given) -> Any:
    with torch.no_grad():
        for x in torch.split(torch.from_numpy(given.x_calibration), 64):
            prepared(x)
    return prepared


def _quantizer(*, is_qat: bool = False) -> X86InductorQuantizer:
    return X86InductorQuantizer().set_global(get_default_x86_inductor_quantization_config(is_qat=is_qat))


def static_int8(given: Given, folder: Path) -> Path:
    """prepare_pt2e and convert_pt2e with X86InductorQuantizer: static int8 of convolutions and matrices"""
    prepared = prepare_pt2e(_exported(trained(given.weights), given).module(), _quantizer())
    return _saved(_lean(convert_pt2e(_calibrated(prepared, given))), given, folder)


def dynamic_int8(given: Given, folder: Path) -> Path:
    """quantize_ with Int8DynamicActivationInt8WeightConfig: matrices alone"""
    model = trained(given.weights)
    quantize_(model, Int8DynamicActivationInt8WeightConfig())
    return _saved(unwrap_tensor_subclass(model), given, folder)


def weights_int8(given: Given, folder: Path) -> Path:
    """quantize_ with Int8WeightOnlyConfig: matrices alone"""
    model = trained(given.weights)
    quantize_(model, Int8WeightOnlyConfig())
    return _saved(unwrap_tensor_subclass(model), given, folder)


def qat(given: Given, folder: Path) -> Path:
    """prepare_qat_pt2e with X86InductorQuantizer, up to 3 epochs of training, convert_pt2e"""
    prepared = prepare_qat_pt2e(_exported(trained(given.weights), given).module(), _quantizer(is_qat=True))
    allow_exported_model_train_eval(prepared)
    tuned = finetune(prepared, given, epochs=3, lr=5e-4, seconds=given.left_s - RESERVED_S)
    move_exported_model_to_eval(tuned)
    return _saved(_lean(convert_pt2e(tuned)), given, folder)


if __name__ == "__main__":
    try_all({
        "static-int8": static_int8, "dynamic-int8": dynamic_int8, "weights-int8": weights_int8, "qat": qat,
    })  # fmt: skip
