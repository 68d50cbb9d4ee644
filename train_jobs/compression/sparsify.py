"""nn.Module -> the same nn.Module with many weights at zero, and masks that hold them there while the rest learns:

    sparse = sparsify(model, config)
    tuned = finetune(sparse, subject, config.finetune, frozen_zeros=masks(sparse))

magnitude: the smallest weights, wherever they lie. Han et al., "Learning both Weights and Connections for Efficient
Neural Networks", NIPS 2015, section 3. 2:4: the two smallest of every four along the inputs, which sparse tensor cores
skip. Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021, section 3.

Zeros make a file compress better; an executor without kernels for them is no faster.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from train_jobs.compression.finetune import FinetuneConfig

_SHARE = 0.8
_OF_FOUR = 2


class SparsifyConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["magnitude", "2:4"] = "magnitude"
    sparsity: float = Field(default=_SHARE, gt=0, lt=1)
    """Share of the weights that becomes zero, with kind=magnitude; 2:4 is a half by its name."""
    scope: Literal["local", "global"] = "global"
    """local: the same share of each layer. global: the smallest weights of all layers together, each measured by the
    root mean square of its layer, as Han et al. set their thresholds: layers differ in the size of all their weights.
    2:4 is local."""
    finetune: FinetuneConfig = FinetuneConfig()
    """What the sparse model needs next: for the caller, `sparsify` itself does not do it."""

    @model_validator(mode="after")
    def _fits_together(self) -> SparsifyConfig:
        if self.kind == "2:4" and self.sparsity != _SHARE:
            raise ValueError(f"sparsity={self.sparsity} is for kind=magnitude, and 2:4 is a half by its name; unset it")
        return self


def sparsify(model: nn.Module, config: SparsifyConfig) -> nn.Module:
    """A copy, in eval mode and not yet fine-tuned, with zeros among the weights of its dense, convolutional and
    recurrent layers; biases and normalisations stay. A weight that several layers share is one weight.

    Raises InvalidRequest if there is no layer to take weights from, or one would lose all of them.
    """
    sparse = copy.deepcopy(model).eval()
    weights = list(_weights(sparse))
    chosen = _two_of_four(weights) if config.kind == "2:4" else _smallest(weights, config)
    if not chosen:
        way_out = "take kind=magnitude" if config.kind == "2:4" and weights else "leave this pass out"
        raise InvalidRequest(
            f"no layer of the model can be made sparse by kind={config.kind}, which takes dense, convolutional and "
            f"recurrent ones{' of inputs in fours' if config.kind == '2:4' else ''}; {way_out}"
        )
    with torch.no_grad():
        for name, parameter, zero in chosen:
            if bool(zero.all()):
                raise InvalidRequest(
                    f"sparsity={config.sparsity} leaves no weight of {name}; lower it, or set scope=local"
                )
            parameter.masked_fill_(zero, 0.0)
    return sparse


def masks(model: nn.Module) -> dict[str, Tensor]:
    """By parameter, of the layers that `sparsify` works on: which weights are zero (bool); where none is, no entry."""
    found = {name: parameter.detach() == 0 for name, parameter, _ in _weights(model)}
    return {name: zero for name, zero in found.items() if bool(zero.any())}


def zeros(model: nn.Module) -> float:
    """Share of the weights of dense, convolutional and recurrent layers that are zero; 0 where there are none."""
    weights = [parameter for _, parameter, _ in _weights(model)]
    total = sum(parameter.numel() for parameter in weights)
    return sum(int((parameter == 0).sum()) for parameter in weights) / total if total else 0.0


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, int]]:
    """(name, weight, axis of its inputs), each weight once, under the first of its names."""
    axes: dict[Tensor, int] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            axes.setdefault(module.weight, 1)
        elif isinstance(module, nn.modules.conv._ConvNd):
            axes.setdefault(module.weight, 0 if module.transposed else 1)
        elif isinstance(module, nn.RNNBase):
            for name, parameter in module.named_parameters():
                if name.startswith("weight"):
                    axes.setdefault(parameter, 1)
    for name, parameter in model.named_parameters():
        if parameter in axes:
            yield name, parameter, axes[parameter]


def _smallest(
    weights: list[tuple[str, nn.Parameter, int]], config: SparsifyConfig
) -> list[tuple[str, nn.Parameter, Tensor]]:
    """Exactly the share that was asked for, rounded down; of equals the first."""
    if config.scope == "local":
        return [(name, parameter, _least(parameter, config.sparsity)) for name, parameter, _ in weights]
    if not weights:
        return []
    every = _least(torch.cat([_relative(parameter) for _, parameter, _ in weights]), config.sparsity)
    parts = torch.split(every, [parameter.numel() for _, parameter, _ in weights])
    chosen = zip(weights, parts, strict=True)
    return [(name, parameter, zero.view_as(parameter)) for (name, parameter, _), zero in chosen]


def _relative(weight: Tensor) -> Tensor:
    values = weight.detach().flatten()
    return values / values.square().mean().sqrt().clamp_min(torch.finfo(values.dtype).tiny)


def _least(weight: Tensor, share: float) -> Tensor:
    sizes = weight.detach().abs().flatten()
    zero = torch.zeros(len(sizes), dtype=torch.bool)
    zero[torch.argsort(sizes, stable=True)[: int(share * len(sizes))]] = True
    return zero.view_as(weight)


def _two_of_four(weights: list[tuple[str, nn.Parameter, int]]) -> list[tuple[str, nn.Parameter, Tensor]]:
    """Layers whose inputs come in fours; others (a first convolution over one channel) stay dense."""
    chosen = []
    for name, parameter, axis in weights:
        if parameter.shape[axis] % 4:
            continue
        inputs_last = parameter.detach().abs().movedim(axis, -1)
        fours = inputs_last.reshape(-1, 4)
        zero = torch.zeros(fours.shape, dtype=torch.bool)
        zero.scatter_(1, torch.argsort(fours, dim=1, stable=True)[:, :_OF_FOUR], value=True)
        chosen.append((name, parameter, zero.reshape(inputs_last.shape).movedim(-1, axis)))
    return chosen
