"""nn.Module -> the same module, fine-tuned to what int8 will make of it, and the ranges that its int8 graph takes.

Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018,
section 3: while training, the weights of each layer (per output channel) and what it reads (per tensor, ranges followed
by a moving average) are rounded to the int8 grid and computed with in fp32; gradients go through the rounding as if it
were not there, and stop at values that are cut off. Batch norms are folded into the layers before them first, and stay
as they are (section 3.2, with their statistics frozen from the first step on).

The exported graph is fp32, and `to_qdq` quantizes it by static quantization with the ranges of training in place of
calibrated ones: its grid is that of the training, so it computes what the module computed then. Nothing depends on how
an exporter writes a fake quantization. Two roundings of the graph are not trained for: of what a convolution gives to
anything but a ReLU, and of a residual sum.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from cluster.errors import InvalidRequest
from cluster.variants import TensorSpec
from train_jobs.compression.finetune import FinetuneConfig, finetune
from train_jobs.compression.quantize import BETWEEN, Calibration, QuantizeConfig
from train_jobs.compression.sparsify import masks
from train_jobs.compression.subject import Subject
from train_jobs.compression.weight_only import in_eight_bits

_LAYERS = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
_RECURRENT = (nn.LSTM, nn.GRU, nn.RNN)
_RANGE = "input_range"
_BATCH = 64
_FULL, _REDUCED = 127, 64
"""Levels on either side of nought of int8 weights, and of the 7-bit ones of QuantizeConfig.reduce_range."""


class QatConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    quantize: QuantizeConfig = QuantizeConfig(float_outputs=True)
    """Of the graph afterwards; the grid that is trained for is taken from it."""
    finetune: FinetuneConfig = FinetuneConfig(lr=5e-4)
    average: float = Field(default=0.99, ge=0, lt=1)
    """Share of a range that stays at each step; the rest is the batch's own."""

    @model_validator(mode="after")
    def _of_all_layers(self) -> QatConfig:
        if self.quantize.exclude:
            raise ValueError(
                f"exclude={list(self.quantize.exclude)} names nodes of a graph, and there is none while the module is "
                "trained for int8; unset it"
            )
        return self


@dataclass(frozen=True)
class Trained:
    """What to export, and what to quantize the graph with."""

    module: nn.Module
    """Plain fp32, its weights on the grid that they were trained for."""
    ranges: dict[str, tuple[float, float]]
    """Least and greatest value that each layer reads, by the layer's name in the module."""


def qat(
    model: nn.Module, subject: Subject, config: QatConfig, *, teacher: nn.Module | None = None,
    hold_zeros: bool = False, notify: Callable[[str], None] = lambda line: None,
) -> Trained:  # fmt: skip
    """`model` itself stays as it is; `hold_zeros`: so do its weights that are zero. Raises InvalidRequest if it has no
    layer that int8 computes, TrainingFailed as `finetune` does."""
    x = torch.from_numpy(subject.samples(config.quantize.samples))
    plain = folded(model, x[:2])
    rounding = rounded(plain, config, x)
    # A folded norm only scales a weight, and on every grid nought is nought.
    held = {_learnt(rounding, name): zero for name, zero in masks(plain).items()} if hold_zeros else None
    tuned = finetune(rounding, subject, config.finetune, teacher=teacher, frozen_zeros=held, notify=notify)
    return stripped(plain, tuned)


def to_qdq(
    graph: bytes, trained: Trained, samples: NDArray[np.generic], config: QatConfig, *, inputs: TensorSpec
) -> bytes:
    """The exported graph of `trained.module` in int8: the layers that were trained for it, with the ranges of their
    training; the matrices of recurrent cells stored in int8. What training did not round stays fp32.

    Raises InvalidRequest as `quantize` does, and if the graph has none of the module's layers.
    """
    calibration = Calibration(graph, samples, config.quantize, inputs=inputs)
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in calibration.graph.graph.initializer}
    layers = {_key(weight): name for name, weight in _weights(trained).items()}
    known: dict[str, tuple[float, float]] = {}
    untrained = []
    for node in calibration.graph.graph.node:
        if node.name not in calibration.layers or node.op_type == "Add":
            continue
        weight = weights.get(node.input[1])
        layer = None if weight is None else layers.get(_key(_as_torch_has_it(node, weight)))
        if layer is None:
            untrained.append(node.name)
        else:
            known[node.input[0]] = _union(known.get(node.input[0]), trained.ranges[layer])
    if not known:
        raise InvalidRequest(
            f"the graph has none of the layers {', '.join(trained.ranges)} that were trained for int8; export the "
            "module that came with the ranges"
        )
    for node in reversed(calibration.graph.graph.node):
        if node.op_type in BETWEEN - {"Relu"} and node.output[0] in known:
            known.setdefault(node.input[0], known[node.output[0]])  # the same values, so the same grid
    made = onnx.load_from_string(calibration.int8(exclude=tuple(untrained), ranges=known))
    in_eight_bits(made, ("LSTM", "GRU", "RNN"))
    return bytes(made.SerializeToString())


def _weights(trained: Trained) -> dict[str, NDArray[np.float32]]:
    parameters = dict(trained.module.named_parameters())
    return {name: parameters[f"{name}.weight"].detach().numpy() for name in trained.ranges}


def _as_torch_has_it(node: onnx.NodeProto, weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """A dense layer's matrix has a row for each output; exporters name, fold and turn what a module holds."""
    turned = any(each.name == "transB" and each.i for each in node.attribute)
    return weight.T if node.op_type in ("Gemm", "MatMul") and not turned else weight


def _key(weight: NDArray[np.float32]) -> tuple[tuple[int, ...], bytes]:
    return weight.shape, np.ascontiguousarray(weight).tobytes()


def _union(one: tuple[float, float] | None, other: tuple[float, float]) -> tuple[float, float]:
    return other if one is None else (min(one[0], other[0]), max(one[1], other[1]))


def _usable(scale: Tensor) -> Tensor:
    """1 in place of steps that are nought or so small that their inverse overflows, as ONNX Runtime's quantizer does:
    nought would not stay nought on such a grid."""
    return torch.where(scale >= torch.finfo(scale.dtype).tiny, scale, torch.ones_like(scale))


class Range(nn.Module):
    """What a layer reads -> the same on a grid of 256 levels between the least and the greatest value, of which nought
    is one; followed by a moving average in training."""

    def __init__(self, average: float) -> None:
        super().__init__()
        self._average = average
        self.watching = False
        """Takes the whole range of everything, and rounds nothing."""
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        low, high = self.get_buffer("low"), self.get_buffer("high")
        if self.watching or self.training:
            with torch.no_grad():
                least, greatest = x.amin().clamp(max=0), x.amax().clamp(min=0)
                if self.watching:
                    low.copy_(torch.minimum(low, least))
                    high.copy_(torch.maximum(high, greatest))
                else:
                    low.lerp_(least, 1 - self._average)
                    high.lerp_(greatest, 1 - self._average)
        if self.watching:
            return x
        scale = _usable((high - low) / 255)
        nought = torch.round(-low / scale).clamp(0, 255).to(torch.int32)
        return torch.fake_quantize_per_tensor_affine(x, scale, nought, 0, 255)


class Weight(nn.Module):
    """A weight -> the same on a grid of its own greatest value, a grid for each place along `axis`, or one for all."""

    def __init__(self, axis: int | None, levels: int) -> None:
        super().__init__()
        self._axis, self._levels = axis, levels

    def forward(self, weight: Tensor) -> Tensor:
        with torch.no_grad():
            others = [each for each in range(weight.ndim) if each != self._axis]
            highest = weight.abs().amax(others)
            scale = _usable(highest / self._levels)
            nought = torch.zeros_like(scale, dtype=torch.int32)
        if self._axis is None:
            return torch.fake_quantize_per_tensor_affine(weight, scale, nought, -self._levels, self._levels)
        return torch.fake_quantize_per_channel_affine(weight, scale, nought, self._axis, -self._levels, self._levels)


def rounded(model: nn.Module, config: QatConfig, x: Tensor) -> nn.Module:
    """A copy that computes as int8 will, its ranges begun with those of the samples `x` (N, ...). Raises InvalidRequest
    if it has no layer that int8 computes."""
    made = copy.deepcopy(model).eval()
    levels = _REDUCED if config.quantize.reduce_range else _FULL
    found = 0
    for layer in list(made.modules()):
        if isinstance(layer, _RECURRENT):
            for name in [name for name, _ in layer.named_parameters() if name.startswith("weight_")]:
                parametrize.register_parametrization(layer, name, Weight(0, _FULL))
            found += 1
        elif isinstance(layer, _LAYERS) and _computes(layer, config.quantize):
            axis = (1 if isinstance(layer, nn.ConvTranspose2d) else 0) if config.quantize.per_channel else None
            parametrize.register_parametrization(layer, "weight", Weight(axis, levels))
            layer.add_module(_RANGE, Range(config.average))
            layer.register_forward_pre_hook(_round_input)
            found += 1
    if not found:
        raise InvalidRequest(
            "the module has no layer that int8 computes (Conv2d, ConvTranspose2d, Linear, LSTM, GRU, RNN); leave "
            "quantization-aware training out"
        )
    _watch(made, x)
    return made


def _round_input(layer: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    return (layer.get_submodule(_RANGE)(arguments[0]), *arguments[1:])


def _computes(layer: nn.Module, config: QuantizeConfig) -> bool:
    """Does static quantization take this layer too?"""
    if isinstance(layer, nn.Conv2d):
        return layer.weight.shape[1] >= config.min_input_channels
    return not isinstance(layer, nn.ConvTranspose2d) or layer.groups == 1


@torch.no_grad()
def _watch(model: nn.Module, x: Tensor) -> None:
    ranges = [module for module in model.modules() if isinstance(module, Range)]
    for each in ranges:
        each.watching = True
    for start in range(0, len(x), _BATCH):
        model(x[start : start + _BATCH])
    for each in ranges:
        each.watching = False


def stripped(plain: nn.Module, rounding: nn.Module) -> Trained:
    """The rounded weights of `rounding`, in a copy of `plain` that it was made of, and its ranges."""
    ranges = {
        name.removesuffix(f".{_RANGE}"): (float(module.get_buffer("low")), float(module.get_buffer("high")))
        for name, module in rounding.named_modules()
        if isinstance(module, Range)
    }
    made = copy.deepcopy(plain)
    with torch.no_grad():
        # Read by name, a weight is the rounded one. Rounded again, by the graph's quantizer, it stays as it is.
        state = {name: _by_name(rounding, name).detach() for name in made.state_dict()}
    made.load_state_dict(state)
    return Trained(made.eval(), ranges)


def _learnt(rounding: nn.Module, name: str) -> str:
    """What a weight of the plain module is called where its rounding stands before it."""
    owner, _, own = name.rpartition(".")
    module = rounding.get_submodule(owner)
    if not parametrize.is_parametrized(module, own):
        return name
    return ".".join([*([owner] if owner else []), "parametrizations", own, "original"])


def _by_name(module: nn.Module, name: str) -> Tensor:
    owner, _, own = name.rpartition(".")
    found = getattr(module.get_submodule(owner), own)
    assert isinstance(found, Tensor)
    return found


def folded(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy whose batch norms are inside the layers before them, where `x` (B, ...) goes straight from one to the
    other; answers as before, to rounding."""
    made = copy.deepcopy(model).eval()
    pairs = _norms_behind_layers(made, x)
    for before, norm in pairs:
        layer, statistics = made.get_submodule(before), made.get_submodule(norm)
        assert isinstance(statistics, nn.modules.batchnorm._BatchNorm)
        if isinstance(layer, nn.Linear):
            joined: nn.Module = fuse_linear_bn_eval(layer, statistics)
        else:
            assert isinstance(layer, nn.Conv2d | nn.ConvTranspose2d)
            joined = fuse_conv_bn_eval(layer, statistics, transpose=isinstance(layer, nn.ConvTranspose2d))
        made.set_submodule(before, joined)
        made.set_submodule(norm, nn.Identity())
    return made.requires_grad_(True)


@torch.no_grad()
def _norms_behind_layers(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    """Names of (layer, batch norm) where the norm reads what the layer gives, and each runs once."""
    given: list[tuple[str, Tensor]] = []
    """Kept, so that no other tensor takes the place of one in memory."""
    found: list[tuple[str, str]] = []

    def after(name: str) -> Callable[..., None]:
        def note(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
            given.append((name, output))

        return note

    def before(name: str) -> Callable[..., None]:
        def note(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            found.extend((layer, name) for layer, tensor in given if tensor is arguments[0])

        return note

    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, _LAYERS):
            hooks.append(module.register_forward_hook(after(name)))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats:
            hooks.append(module.register_forward_pre_hook(before(name)))
    try:
        model(x)
    finally:
        for hook in hooks:
            hook.remove()
    ran = [name for name, _ in given]
    return [
        (layer, norm)
        for layer, norm in found
        if ran.count(layer) == 1 and [pair[1] for pair in found].count(norm) == 1
        and [pair[0] for pair in found].count(layer) == 1
    ]  # fmt: skip
