"""A traced graph -> which channels of which layers go together: Torch-Pruning's groups, for compression/prune.py.

Fang et al., "DepGraph: Towards Any Structural Pruning", CVPR 2023, section 3. Two things Torch-Pruning does not know by
itself are told it here: that the groups of a group normalisation stay equally large, and that a dense layer followed by
nn.Unflatten (the beginning of a decoder or generator) makes channels of several rows each.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from train_jobs.compression.units import Saliency
from train_jobs.models.coder import Coder
from train_jobs.models.ensemble import Ensemble


def layers_run(model: nn.Module, example: Tensor) -> list[nn.Module]:
    """The dense and convolutional layers in the order in which they ran, the last of which makes the answers."""
    ran: list[nn.Module] = []
    hooks = [
        module.register_forward_hook(lambda module, *_: ran.append(module))
        for module in model.modules()
        if isinstance(module, nn.Linear | nn.modules.conv._ConvNd)
    ]
    try:
        with torch.inference_mode():
            model(example)
    finally:
        for hook in hooks:
            hook.remove()
    return ran


class Traced:
    """The graph of a model, some of whose layers are wrapped until `unwrap`. Needs gradients to be enabled."""

    def __init__(self, model: nn.Module, example: Tensor) -> None:
        self._fixed = _fixed_layers(model, example)
        self._wrapped = list(_wrap_starts(model, self._fixed))
        self._names = {module: name for name, module in model.named_modules()}
        self._graph = tp.DependencyGraph().build_dependency(
            model, example_inputs=example, customized_pruners={_Start: _START_PRUNER}, ignored_params=[]
        )

    def groups(self) -> list[Channels]:
        """As they are now; channels are numbered anew after every removal."""
        roots = (nn.modules.conv._ConvNd, nn.Linear, _Start)
        groups = self._graph.get_all_groups(ignored_layers=self._fixed, root_module_types=roots)
        found = [Channels(self._graph, group, self._names[group[0].dep.target.module]) for group in groups]
        return [channels for channels in found if channels.divisible]

    def unwrap(self) -> None:
        """The model is itself again."""
        for parent, name, start in self._wrapped:
            setattr(parent, name, start.linear)


class Channels:
    """Channels that are one through several layers; `size` is counted within each of `parts` equal groups."""

    def __init__(self, graph: Any, group: Any, name: str) -> None:
        self.name = name
        self.parts = math.lcm(*(_parts(dep.target.module) for dep, _ in group.items))
        self._graph, self._group, self._channels = graph, group, len(group[0].idxs)
        self.size = self._channels // self.parts

    @property
    def divisible(self) -> bool:
        """Can each part lose as many as the others, and something be left?"""
        return self.size > 1 and self._channels % self.parts == 0

    def importance(self, saliency: Saliency) -> Tensor | None:
        """Mean over the layers of a channel's sums, then over the parts (size,), its mean 1. None if no layer says."""
        total, counted = torch.zeros(self._channels), 0
        for item in self._group.items:
            each = _per_channel(item.dep, saliency)
            if each is not None:
                total.scatter_add_(0, torch.tensor(item.root_idxs), each[item.idxs].to(total.dtype))
                counted += 1
        if not counted:
            return None
        total = total / counted
        return (total / total.mean().clamp_min(torch.finfo(total.dtype).tiny)).view(self.parts, -1).mean(0)

    def keep(self, kept: Tensor) -> None:
        """Leave the channels `kept` of each part. Raises InvalidRequest if a layer that reads some of them would lose
        all that it reads."""
        stays = torch.zeros(self.size, dtype=torch.bool).index_fill_(0, kept, value=True).repeat(self.parts)
        root = self._group[0].dep
        gone = self._graph.get_pruning_group(root.target.module, root.handler, (~stays).nonzero().flatten().tolist())
        if not self._graph.check_pruning_group(gone):
            raise InvalidRequest(
                f"a layer that reads some of the channels of {self.name} would lose all of them; lower the ratio"
            )
        gone.prune()


def _parts(module: Any) -> int:
    """Groups of channels that must stay equally large; a depthwise convolution's groups are its channels, and go."""
    if isinstance(module, nn.GroupNorm):
        return module.num_groups
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups != module.out_channels:
        return module.groups
    return 1


def _per_channel(dep: Any, saliency: Saliency) -> Tensor | None:
    """Sums of a layer's saliency by the channels that the dependency is about: those it makes, or those it reads.
    Depthwise convolutions do not count, as in Torch-Pruning; nor do biases."""
    layer, handler = dep.target.module, dep.handler
    if isinstance(layer, nn.modules.batchnorm._BatchNorm | nn.LayerNorm):
        return saliency.get(layer.weight)
    if isinstance(layer, _Start):
        return layer.per_channel(saliency) if handler == _START_PRUNER.prune_out_channels else None
    makes = handler in (tp.prune_linear_out_channels, tp.prune_conv_out_channels)
    reads = handler in (tp.prune_linear_in_channels, tp.prune_conv_in_channels)
    weights = saliency.get(layer.weight) if makes or reads else None
    if weights is None:
        return None
    first = makes != getattr(layer, "transposed", False)  # a transposed convolution's inputs come first
    sums = weights.movedim(0 if first else 1, 0).flatten(1).sum(1)
    # A grouped convolution's second axis spans one group only.
    return sums if first else sums.repeat(getattr(layer, "groups", 1))


class _Start(nn.Module):
    """A dense layer whose output is unflattened, seen as what makes those channels."""

    def __init__(self, linear: nn.Linear, unflatten: nn.Unflatten) -> None:
        super().__init__()
        self.linear = linear
        self._unflatten = (unflatten,)  # not a child: the model has it already

    @property
    def channels(self) -> int:
        (unflatten,) = self._unflatten
        return int(unflatten.unflattened_size[0])

    def forward(self, x: Tensor) -> Tensor:
        made: Tensor = self.linear(x)
        return made

    def per_channel(self, saliency: Saliency) -> Tensor | None:
        weights = saliency.get(self.linear.weight)
        return None if weights is None else weights.reshape(self.channels, -1).sum(1)

    def drop(self, channels: list[int]) -> None:
        """Remove these channels, each of which is as many rows of the dense layer as it has pixels."""
        (unflatten,) = self._unflatten
        left, pixels = self.channels - len(channels), tuple(unflatten.unflattened_size[1:])
        area = math.prod(pixels)
        tp.prune_linear_out_channels(self.linear, [c * area + pixel for c in channels for pixel in range(area)])
        unflatten.unflattened_size = (left, *pixels)


class _StartPruner(tp.BasePruningFunc):  # type: ignore[misc]
    """Tells Torch-Pruning how a _Start shrinks."""

    def prune_out_channels(self, layer: _Start, idxs: list[int]) -> _Start:
        layer.drop(idxs)
        return layer

    def prune_in_channels(self, layer: _Start, idxs: list[int]) -> _Start:
        tp.prune_linear_in_channels(layer.linear, idxs)
        return layer

    def get_out_channels(self, layer: _Start) -> int:
        return layer.channels

    def get_in_channels(self, layer: _Start) -> int:
        return layer.linear.in_features


_START_PRUNER = _StartPruner()


def _fixed_layers(model: nn.Module, example: Tensor) -> list[nn.Module]:
    """Layers whose channels mean something outside: the answers (of every member of an ensemble), an autoencoder's
    code."""
    members = list(model.members) if isinstance(model, Ensemble) else [model]
    fixed = [layer for member in members for layer in layers_run(member, example)[-1:]]
    for module in model.modules():
        if isinstance(module, Coder):
            fixed += [layer for layer in module.encoder.modules() if isinstance(layer, nn.Linear)][-1:]
    return fixed


def _wrap_starts(model: nn.Module, fixed: list[nn.Module]) -> Iterator[tuple[nn.Module, str, _Start]]:
    """Put a _Start in the place of every dense layer that an nn.Unflatten makes channels of. One with more than an
    activation in between keeps all of its channels: it is appended to `fixed`."""
    for chain in [module for module in model.modules() if isinstance(module, nn.Sequential)]:
        dense: tuple[nn.Module, str, nn.Linear] | None = None
        plain = True
        for parent, name, layer in list(_in_a_row(chain)):
            if isinstance(layer, nn.Linear):
                dense, plain = (parent, name, layer), True
            elif not isinstance(layer, nn.Unflatten):
                plain = plain and not list(layer.parameters())
            elif dense is not None:
                holder, held, linear = dense
                dense = None
                if plain and linear not in fixed and layer.dim == 1 and len(layer.unflattened_size) > 1:
                    start = _Start(linear, layer)
                    setattr(holder, held, start)
                    yield holder, held, start
                else:
                    fixed.append(linear)


def _in_a_row(chain: nn.Sequential) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(holder, name, layer) of a sequence, and of sequences within it: a layer may be two by now."""
    for name, layer in chain.named_children():
        if isinstance(layer, nn.Sequential):
            yield from _in_a_row(layer)
        else:
            yield chain, name, layer
