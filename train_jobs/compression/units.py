"""Recurrent networks and tied autoencoders: which rows and columns of which tensors are one hidden unit.

A unit is gone when nothing of it is left: of an LSTM's its row in all four gates, its column between the steps, and the
column of whoever reads it (the next layer, or the head). What stays computes what it did when that unit's output was
nought. Torch-Pruning (compression/prune.py) traces no recurrent cell, and no weight that is used a second time.

    >>> layer = Recurrent(RecurrentConfig(hidden=16), (8, 1), (2,))
    >>> [(units.name, units.size, len(units.slices)) for units in units_of(layer)]
    [('layers.0', 16, 6)]

Shapes: U units of a layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from train_jobs.models.autoencoder import Autoencoder
from train_jobs.models.coder import TiedDecoder
from train_jobs.models.recurrent import Recurrent

Saliency = Mapping[Tensor, Tensor]
"""By parameter, in its shape: what each of its values is worth; a parameter that says nothing is not in it."""


@dataclass(frozen=True)
class Slice:
    """Where units stand in one tensor: along `axis`, once for each of `gates`."""

    owner: nn.Module
    name: str
    axis: int
    gates: int = 1

    @property
    def parameter(self) -> nn.Parameter:
        found: nn.Parameter = getattr(self.owner, self.name)
        return found


@dataclass(frozen=True)
class Units:
    """The units of one layer, with all that depends on them."""

    name: str
    """The layer's, in the model."""
    size: int
    slices: tuple[Slice, ...]
    told: tuple[tuple[nn.Module, str], ...]
    """Attributes of modules that say how many there are."""
    parts: int = 1
    """A unit is one channel of each of so many parts; here it is one by itself."""

    def importance(self, saliency: Saliency) -> Tensor | None:
        """Sum over a unit's in- and outgoing weights (U,), its mean 1; biases say nothing. None if no weight does."""
        total, counted = torch.zeros(self.size), False
        for each in self.slices:
            weights = saliency.get(each.parameter)
            if weights is not None and weights.ndim > 1:
                total += weights.movedim(each.axis, 0).reshape(each.gates, self.size, -1).sum((0, 2))
                counted = True
        return total / total.mean().clamp_min(torch.finfo(total.dtype).tiny) if counted else None

    def keep(self, kept: Tensor) -> None:
        """Leave the units `kept` (int64, in order) and nothing of the others."""
        for each in self.slices:
            rows = torch.cat([kept + gate * self.size for gate in range(each.gates)])
            left = each.parameter.detach().index_select(each.axis, rows)
            setattr(each.owner, each.name, nn.Parameter(left))
        for module, attribute in self.told:
            setattr(module, attribute, len(kept))


def has_units(model: nn.Module) -> bool:
    """Does the model contain what this module is for?"""
    return any(isinstance(module, nn.RNNBase | TiedDecoder) for module in model.modules())


def units_of(model: nn.Module) -> list[Units]:
    """The hidden units of every recurrent network and tied autoencoder in the model; neither its inputs, its outputs
    nor an autoencoder's code. Raises InvalidRequest for a recurrent layer whose readers are not known."""
    found: list[Units] = []
    known: set[nn.Module] = set()
    for name, module in model.named_modules():
        before = f"{name}." if name else ""
        if isinstance(module, Recurrent):
            found += _recurrent(module, before)
            known.update(module.layers)
        elif isinstance(module, Autoencoder) and isinstance(module.decoder, TiedDecoder):
            found += _tied(module, module.decoder, before)
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase) and module not in known:
            raise InvalidRequest(
                f"{name} is a {type(module).__name__} of the model's own, and who reads its units is not known; leave "
                "pruning out, or build the model of train_jobs.models.Recurrent"
            )
    return found


def _recurrent(model: Recurrent, before: str) -> Iterator[Units]:
    """Each layer's units. Raises InvalidRequest if the head is no single layer any more."""
    if not isinstance(model.head, nn.Linear):
        raise InvalidRequest(f"{before}head is a {type(model.head).__name__}, no nn.Linear; prune before other passes")
    layers = [layer for layer in model.layers if isinstance(layer, nn.RNNBase)]
    for number, layer in enumerate(layers):
        gates = Slice(layer, "weight_hh_l0", 0).parameter.shape[0] // layer.hidden_size
        own = [
            *(Slice(layer, f"{kind}_l0", 0, gates) for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")),
            Slice(layer, "weight_hh_l0", 1),
        ]
        reader: nn.Module = model.head
        weight, inputs = "weight", "in_features"
        if number + 1 < len(layers):
            reader, weight, inputs = layers[number + 1], "weight_ih_l0", "input_size"
        yield Units(
            f"{before}layers.{number}", layer.hidden_size, (*own, Slice(reader, weight, 1)),
            ((layer, "hidden_size"), (reader, inputs)),
        )  # fmt: skip


def _tied(model: Autoencoder, decoder: TiedDecoder, before: str) -> Iterator[Units]:
    """The encoder's hidden units, which are the decoder's as well: its weights are the same ones, and its biases stand
    in the opposite order, the sample's last."""
    layers = [(name, layer) for name, layer in model.encoder.named_children() if isinstance(layer, nn.Linear)]
    for number, ((name, layer), (_, reader)) in enumerate(pairwise(layers)):
        mirror = len(layers) - 2 - number
        yield Units(
            f"{before}encoder.{name}", layer.out_features,
            (
                Slice(layer, "weight", 0), Slice(layer, "bias", 0), Slice(reader, "weight", 1),
                Slice(decoder.biases, str(mirror), 0),
            ),
            ((layer, "out_features"), (reader, "in_features")),
        )  # fmt: skip
