"""Latents -> pictures, and the network that tells them from real ones.

The convolutional pair follows Radford, Metz and Chintala, "Unsupervised Representation Learning with Deep Convolutional
Generative Adversarial Networks" (DCGAN), ICLR 2016, section 3, without its batch normalisation: that would make a
picture depend on the batch it is drawn in, and a run on its number of workers. The dense pair is the baseline.

Shapes: B batch, Z latent, C channels, H height, W width.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cluster.errors import ConfigError

Norm = Literal["none", "group", "batch"]
_GROUPS = 8
_SLOPE = 0.2  # of the leaky ReLU: DCGAN, section 3


class GANConfig(BaseModel):
    """Generator and discriminator, wider or narrower."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["gan"] = "gan"
    layers: Literal["conv", "dense"] = "conv"
    latent: int = Field(default=64, ge=1)
    width: int = Field(default=32, ge=_GROUPS, multiple_of=_GROUPS)
    """Channels of the convolutions at half the picture's size, half as many as at a quarter; 1/16 and 1/8 of the dense
    layers' units."""
    norm: Norm = "group"
    """In the generator. group: each picture by itself, so that a run is the same at any number of workers; batch: as
    DCGAN has it, by each worker's own share."""

    @property
    def family(self) -> str:
        return "gan"

    def build(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> GAN:
        """For latents (Z,) and pictures (C, H, W). Raises ConfigError for other shapes."""
        if len(inputs) != 1 or len(outputs) != 3:
            raise ConfigError(
                f"model.kind=gan makes pictures (C, H, W) of latents (Z,), not {list(outputs)} of {list(inputs)}; "
                "bring pictures as data"
            )
        if self.layers == "conv" and (outputs[1] % 4 or outputs[2] % 4):
            raise ConfigError(
                f"model.layers=conv doubles a picture's size twice, and {list(outputs[1:])} is no multiple of 4; take "
                "model.layers=dense, or pictures of another size (pictures/?size=32x32)"
            )
        make = (_conv_generator, _conv_discriminator) if self.layers == "conv" else (_dense_generator, _dense_judge)
        return GAN(make[0](self, inputs[0], outputs), make[1](self, outputs))


class GAN(nn.Module):
    """float32 latents (B, Z) -> float32 pictures (B, C, H, W) in 0..1, made by the averaged generator.

    `average` follows `generator` as an exponential moving average of its weights (Yazici et al., "The Unusual
    Effectiveness of Averaging in GAN Training", ICLR 2019, section 3): steadier than any single step's. It is what is
    judged, kept and served.
    """

    def __init__(self, generator: nn.Module, discriminator: nn.Module) -> None:
        super().__init__()
        self.generator = generator
        self.discriminator = discriminator
        self.average = copy.deepcopy(generator).requires_grad_(False)

    @torch.no_grad()
    def follow(self, decay: float) -> None:
        """Move `average` towards `generator`; decay 0 makes it equal."""
        for mean, now in zip(self.average.parameters(), self.generator.parameters(), strict=True):
            mean.lerp_(now, 1.0 - decay)
        for kept, buffer in zip(self.average.buffers(), self.generator.buffers(), strict=True):
            kept.copy_(buffer)

    def forward(self, z_BZ: Tensor) -> Tensor:
        x_BCHW: Tensor = self.average(z_BZ)
        return x_BCHW


class _Centre(nn.Module):
    """Pictures in 0..1 -> -1..1, where a layer without a bias learned yet is even-handed."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2.0 - 1.0


def _norm(kind: Norm, channels: int, *, flat: bool = False) -> nn.Module:
    if kind == "none":
        return nn.Identity()
    if kind == "group":
        return nn.GroupNorm(_GROUPS, channels)
    return nn.BatchNorm1d(channels) if flat else nn.BatchNorm2d(channels)


def _conv_generator(config: GANConfig, latent: int, outputs: tuple[int, ...]) -> nn.Module:
    channels, height, width = outputs
    start = (2 * config.width, height // 4, width // 4)
    return nn.Sequential(
        nn.Linear(latent, math.prod(start)), nn.Unflatten(1, start), _norm(config.norm, start[0]), nn.ReLU(),
        nn.ConvTranspose2d(start[0], config.width, 4, stride=2, padding=1), _norm(config.norm, config.width), nn.ReLU(),
        nn.ConvTranspose2d(config.width, channels, 4, stride=2, padding=1), nn.Sigmoid(),
    )  # fmt: skip


def _conv_discriminator(config: GANConfig, inputs: tuple[int, ...]) -> nn.Module:
    channels, height, width = inputs
    return nn.Sequential(
        _Centre(),
        nn.Conv2d(channels, config.width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE),
        nn.Conv2d(config.width, 2 * config.width, 4, stride=2, padding=1), nn.LeakyReLU(_SLOPE),
        nn.Flatten(), nn.Linear(2 * config.width * (height // 4) * (width // 4), 1), nn.Flatten(0),
    )  # fmt: skip


def _dense_generator(config: GANConfig, latent: int, outputs: tuple[int, ...]) -> nn.Module:
    first, second = 8 * config.width, 16 * config.width
    return nn.Sequential(
        nn.Linear(latent, first), _norm(config.norm, first, flat=True), nn.ReLU(),
        nn.Linear(first, second), _norm(config.norm, second, flat=True), nn.ReLU(),
        nn.Linear(second, math.prod(outputs)), nn.Sigmoid(), nn.Unflatten(1, outputs),
    )  # fmt: skip


def _dense_judge(config: GANConfig, inputs: tuple[int, ...]) -> nn.Module:
    first, second = 16 * config.width, 8 * config.width
    return nn.Sequential(
        _Centre(), nn.Flatten(), nn.Linear(math.prod(inputs), first), nn.LeakyReLU(_SLOPE),
        nn.Linear(first, second), nn.LeakyReLU(_SLOPE), nn.Linear(second, 1), nn.Flatten(0),
    )  # fmt: skip
