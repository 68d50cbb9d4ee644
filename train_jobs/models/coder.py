"""What autoencoders are made of: an encoder, a decoder in mirror image, and the scale that both work on.

Shapes: B batch, Z latent, C channels, H height, W width; samples are pictures (C, H, W), uint8, or anything else, as
floats: windows (L,) of a series, rows of a table.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs.models.layers import Activation, Preprocess, activation


class CoderConfig(BaseModel):
    """What both kinds have in common."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    layers: Literal["conv", "dense"] = "conv"
    hidden: tuple[int, ...] | None = None
    """From the sample to the code: channels of the convolutions, each of which halves the picture, or units of the
    dense layers; () with dense: one linear layer each way. None: (16, 32) or (256, 128)."""
    latent: int = Field(default=32, ge=1)
    activation: Activation = "relu"
    scale: Literal["sample", "data"] = "data"
    """Of samples that are no pictures. data: standardised by the training part; sample: each by its own least and
    greatest value, to 0..1, so that only the shape of a window counts (as TSB-UAD has it)."""

    @property
    def family(self) -> str:
        return "autoencoder"

    @property
    def widths(self) -> tuple[int, ...]:
        """`hidden`, or what it is by default."""
        if self.hidden is not None:
            return self.hidden
        return (16, 32) if self.layers == "conv" else (256, 128)

    def check(self, inputs: tuple[int, ...], kind: str) -> None:
        """Raise ConfigError if these layers do not take such samples."""
        if self.layers == "dense":
            return
        halvings = len(self.widths)
        if len(inputs) != 3 or not halvings or any(size % 2**halvings for size in inputs[1:]):
            raise ConfigError(
                f"model.kind={kind} with layers=conv takes pictures whose height and width can be halved for each of "
                f"hidden={list(self.widths)}, not {list(inputs)}; take other channels, or layers=dense"
            )


class Scale(nn.Module):
    """Float samples (B, ...) -> the scale that the model works on, and back. Part of the model, like Preprocess."""

    def __init__(self, *, by_sample: bool) -> None:
        super().__init__()
        self._by_sample = by_sample
        self.register_buffer("low", torch.tensor(0.0))
        self.register_buffer("span", torch.tensor(1.0))

    def normalise(self, mean: float, std: float) -> None:
        """Set the data's mean and standard deviation; of no effect where each sample has a scale of its own."""
        self.get_buffer("low").fill_(mean)
        self.get_buffer("span").fill_(std if std > 0 else 1.0)

    def _range(self, x: Tensor) -> tuple[Tensor, Tensor]:
        if not self._by_sample:
            return self.get_buffer("low"), self.get_buffer("span")
        axes = tuple(range(1, x.ndim))
        low, span = x.amin(axes, keepdim=True), x.amax(axes, keepdim=True) - x.amin(axes, keepdim=True)
        return low, torch.where(span > 0, span, torch.ones_like(span))

    def forward(self, x: Tensor) -> Tensor:
        low, span = self._range(x)
        return (x - low) / span

    def undo(self, scaled: Tensor, x: Tensor) -> Tensor:
        """`scaled`, in the units of the x that it came from."""
        low, span = self._range(x)
        return scaled * span + low

    def describe(self) -> str:
        """What it does, for the manifest."""
        if self._by_sample:
            return "float -> (x - min) / (max - min) of each sample; inside the graph"
        low, span = float(self.get_buffer("low")), float(self.get_buffer("span"))
        return f"float -> (x - {low:.4f}) / {span:.4f}; inside the graph"


class Coder(nn.Module):
    """Encoder, decoder and the scale that they work on."""

    def __init__(self, config: CoderConfig, inputs: tuple[int, ...], code: int) -> None:
        super().__init__()
        self.config, self.inputs, self.latent = config, inputs, config.latent
        self.preprocess: Preprocess | Scale = (
            Preprocess() if len(inputs) == 3 else Scale(by_sample=config.scale == "sample")
        )
        self.encoder = encoder_of(config, inputs, code)

    def in_units(self, scaled: Tensor, x: Tensor) -> Tensor:
        """What the model made, in the units of its input x; pictures in 0..1."""
        return self.preprocess.undo(scaled, x) if isinstance(self.preprocess, Scale) else scaled

    def blocks(self) -> list[nn.Module]:
        """From the input to the output: what transfer learning freezes, and in which order it thaws."""
        kinds = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, TiedDecoder)
        return [module for module in self.modules() if isinstance(module, kinds)]


class TiedDecoder(nn.Module):
    """Only biases: the weights are the encoder's, so there is one parameter of each and nothing to keep in step."""

    def __init__(self, config: CoderConfig, inputs: tuple[int, ...]) -> None:
        super().__init__()
        self._inputs = inputs
        sizes = (*reversed(config.widths), math.prod(inputs))
        self.biases = nn.ParameterList(nn.Parameter(torch.zeros(size)) for size in sizes)
        self.activation = activation(config.activation)

    def transposed(self, z_BZ: Tensor, weights: list[Tensor]) -> Tensor:
        """The encoder's `weights`, from the sample to the code, taken backwards."""
        x = z_BZ
        for number, (weight, bias) in enumerate(zip(reversed(weights), self.biases, strict=True)):
            x = F.linear(x if number == 0 else self.activation(x), weight.t(), bias)
        return x.reshape(-1, *self._inputs)


def encoder_of(config: CoderConfig, inputs: tuple[int, ...], code: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    if config.layers == "dense":
        layers.append(nn.Flatten())
        size = math.prod(inputs)
        for units in config.widths:
            layers += [nn.Linear(size, units), activation(config.activation)]
            size = units
        return nn.Sequential(*layers, nn.Linear(size, code))
    channels, height, width = inputs
    for wider in config.widths:
        layers += [nn.Conv2d(channels, wider, 3, stride=2, padding=1), activation(config.activation)]
        channels, height, width = wider, height // 2, width // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * height * width, code))


def decoder_of(config: CoderConfig, inputs: tuple[int, ...]) -> nn.Sequential:
    if config.layers == "dense":
        sizes = (config.latent, *reversed(config.widths), math.prod(inputs))
        layers: list[nn.Module] = []
        for before, after in pairwise(sizes):
            layers += [nn.Linear(before, after), activation(config.activation)]
        return nn.Sequential(*layers[:-1], nn.Unflatten(1, inputs))
    shrunk = 2 ** len(config.widths)
    start = (config.widths[-1], inputs[1] // shrunk, inputs[2] // shrunk)
    layers = [nn.Linear(config.latent, math.prod(start)), activation(config.activation), nn.Unflatten(1, start)]
    channels = (*reversed(config.widths), inputs[0])
    for before, after in pairwise(channels):
        layers += [nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), activation(config.activation)]
    return nn.Sequential(*layers[:-1])
