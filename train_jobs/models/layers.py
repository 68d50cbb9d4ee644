"""What several families are made of: activations by name, and pictures as numbers.

Shapes: B batch, C channels, H height, W width.
"""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

Activation = Literal["relu", "gelu", "tanh", "sigmoid"]
_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU, "gelu": nn.GELU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
}  # fmt: skip


def activation(name: Activation) -> nn.Module:
    """A fresh layer of that name."""
    return _ACTIVATIONS[name]()


class Preprocess(nn.Module):
    """uint8 (B, C, H, W) in 0..255 -> float, normalised. Part of the model, so serving cannot skew from training.

    One multiplication and one addition, (x / 255 - mean) / std written out; both numbers travel with the weights.
    """

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.tensor(1.0 / 255.0))
        self.register_buffer("shift", torch.tensor(0.0))

    def normalise(self, mean: float, std: float) -> None:
        """Set the mean and standard deviation that pictures in 0..1 have; without this call they stay in 0..1."""
        self.get_buffer("scale").fill_(1.0 / (255.0 * std))
        self.get_buffer("shift").fill_(-mean / std)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        scale, shift = self.get_buffer("scale"), self.get_buffer("shift")
        return x_BCHW.to(scale.dtype) * scale + shift

    def describe(self) -> str:
        """What it does, for the manifest."""
        scale, shift = float(self.get_buffer("scale")), float(self.get_buffer("shift"))
        std = 1.0 / (255.0 * scale)
        return f"uint8 0..255 -> (x / 255 - {-shift * std:.4f}) / {std:.4f}; inside the graph"


def batch_norms(model: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    """The layers of a model that keep running statistics of the batches they see."""
    return [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


def mean_and_std(x: Tensor) -> tuple[float, float]:
    """Of uint8 pictures on the scale 0..1, from counts of the 256 values: exact, so the same on every machine."""
    share = np.bincount(x.numpy().ravel(), minlength=256) / x.numel()
    values = np.arange(256) / 255.0
    mean = float(share @ values)
    return mean, math.sqrt(float(share @ (values - mean) ** 2))
