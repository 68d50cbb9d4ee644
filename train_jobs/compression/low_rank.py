"""nn.Module -> the same nn.Module with wide layers as two narrow ones, where that saves parameters:

    nn.Linear            -> two: Sainath et al., "Low-Rank Matrix Factorization for Deep Neural Network Training with
                            High-Dimensional Output Targets", ICASSP 2013, section 2
    nn.Conv2d            -> k x k to r channels, then 1 x 1: Zhang et al., "Accelerating Very Deep Convolutional
                            Networks for Classification and Detection", TPAMI 2016, section 3.1
    nn.ConvTranspose2d   -> its mirror image: 1 x 1 to r channels, then k x k

The factors are those of the weights' own singular values, the nearest of their rank, and not of the layer's responses,
as Zhang et al. have it: no data is needed, and fine-tuning follows. Recurrent layers, grouped convolutions, and weights
that are used in two places (a tied autoencoder's) stay as they are.
"""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, cast

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from cluster.variants import TensorSpec
from train_jobs.compression.channels import layers_run
from train_jobs.compression.finetune import FinetuneConfig
from train_jobs.export import example_of
from train_jobs.models.autoencoder import Autoencoder
from train_jobs.models.coder import TiedDecoder

Layer = nn.Linear | nn.Conv2d | nn.ConvTranspose2d


class LowRankConfig(BaseModel):
    """Parameters of the pass, as they stand in the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    energy: float = Field(default=0.9, gt=0, le=1)
    """The rank of each layer is the smallest that keeps so much of the sum of its squared singular values."""
    rank_share: float | None = Field(default=None, gt=0, le=1)
    """The rank of each layer is this share of its highest one, and `energy` says nothing. None: by energy."""
    first: bool = False
    """Also the layer that runs first: what it loses, no later one gives back."""
    last: bool = False
    """Also the layer that runs last and makes the answers."""
    finetune: FinetuneConfig = FinetuneConfig()
    """What the factored model needs next: for the caller, `low_rank` itself does not do it."""


def low_rank(model: nn.Module, config: LowRankConfig, *, inputs: TensorSpec) -> nn.Module:
    """A copy, in eval mode and not yet fine-tuned, with two layers in the place of every one that gets smaller by it.

    Raises InvalidRequest if the model does not take such inputs, or no layer gets smaller.
    """
    factored = copy.deepcopy(model).eval()
    try:
        ran = list(dict.fromkeys(layers_run(factored, example_of(inputs))))
    except Exception as error:
        raise InvalidRequest(
            f"the model does not run on {inputs.name!r} ({error!r})"[:400] + "; leave this pass out"
        ) from error
    spared = [*([] if config.first else ran[:1]), *([] if config.last else ran[-1:]), *_used_twice(factored)]
    made: dict[nn.Module, nn.Sequential] = {}
    for layer in ran:
        if layer in spared or not _takes(layer):
            continue
        plain = cast(Layer, layer)
        rank = _rank(_matrix(plain), config)
        if rank * sum(_matrix(plain).shape) < plain.weight.numel():
            made[layer] = factor(plain, rank)
    if not made:
        raise InvalidRequest(
            f"no layer gets smaller as two at energy={config.energy:g}, rank_share={config.rank_share}; lower them, or "
            f"set first=true (now {config.first}) or last=true (now {config.last})"
        )
    if factored in made:
        return made[factored]
    for parent in list(factored.modules()):
        for name, child in list(parent.named_children()):
            if child in made:
                setattr(parent, name, made[child])
    return factored


def factor(layer: Layer, rank: int) -> nn.Sequential:
    """Two layers that are together the nearest to `layer` of this rank, with its bias in the second. Raises
    InvalidRequest for a rank that it has not."""
    matrix = _matrix(layer)
    if not 1 <= rank <= min(matrix.shape):
        raise InvalidRequest(f"rank={rank} is not in 1 to {min(matrix.shape)}, which a layer {tuple(matrix.shape)} has")
    left, values, right = torch.linalg.svd(matrix.double(), full_matrices=False)
    root = values[:rank].sqrt()  # half to each: neither has weights much greater than the other's
    left, right = (left[:, :rank] * root).to(matrix), (root[:, None] * right[:rank]).to(matrix)
    first, second = _pair(layer, rank)
    with torch.no_grad():
        if isinstance(layer, nn.ConvTranspose2d):  # its weight has the inputs first
            first.weight.copy_(left.t().reshape(first.weight.shape))
            second.weight.copy_(right.reshape(second.weight.shape))
        else:
            first.weight.copy_(right.reshape(first.weight.shape))
            second.weight.copy_(left.reshape(second.weight.shape))
        if layer.bias is not None:
            assert second.bias is not None
            second.bias.copy_(layer.bias)
    return nn.Sequential(first, second)


def _pair(layer: Layer, rank: int) -> tuple[Layer, Layer]:
    bias = layer.bias is not None
    like: dict[str, Any] = {"device": layer.weight.device, "dtype": layer.weight.dtype}
    if isinstance(layer, nn.Linear):
        return (
            nn.Linear(layer.in_features, rank, bias=False, **like),
            nn.Linear(rank, layer.out_features, bias=bias, **like),
        )
    geometry: dict[str, Any] = {
        "kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding, "dilation": layer.dilation,
    }  # fmt: skip
    if isinstance(layer, nn.ConvTranspose2d):
        return (
            nn.Conv2d(layer.in_channels, rank, 1, bias=False, **like),
            nn.ConvTranspose2d(
                rank, layer.out_channels, output_padding=cast(Any, layer.output_padding), bias=bias, **geometry, **like
            ),
        )
    return (
        nn.Conv2d(layer.in_channels, rank, bias=False, padding_mode=layer.padding_mode, **geometry, **like),
        nn.Conv2d(rank, layer.out_channels, 1, bias=bias, **like),
    )


def _matrix(layer: Layer) -> Tensor:
    """The weight as (outputs, inputs x kernel); a transposed convolution's as (inputs, outputs x kernel)."""
    return layer.weight.detach().flatten(1)


def _rank(matrix: Tensor, config: LowRankConfig) -> int:
    most = min(matrix.shape)
    if config.rank_share is not None:
        return max(1, round(config.rank_share * most))
    energy = torch.linalg.svdvals(matrix.double()).square().cumsum(0)
    return min(most, int((energy < config.energy * energy[-1]).sum()) + 1)


def _takes(layer: nn.Module) -> bool:
    """Subclasses may compute something else."""
    if type(layer) in (nn.Conv2d, nn.ConvTranspose2d):
        return cast(nn.Conv2d, layer).groups == 1
    return type(layer) is nn.Linear


def _used_twice(model: nn.Module) -> list[nn.Module]:
    """Layers whose weight somebody else reads as well."""
    holders = [module for module in model.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)]
    count = Counter(id(module.weight) for module in holders)
    shared: list[nn.Module] = [module for module in holders if count[id(module.weight)] > 1]
    for module in model.modules():
        if isinstance(module, Autoencoder) and isinstance(module.decoder, TiedDecoder):
            shared += [layer for layer in module.encoder if isinstance(layer, nn.Linear)]
    return shared
