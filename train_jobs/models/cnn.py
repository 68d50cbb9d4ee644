"""The classic small CNN: three 3x3 convolutions (32, 64, 64), max pooling, dense 64, ten classes.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


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


class CNN(nn.Module):
    """uint8 (B, 1, 28, 28) -> logits float32 (B, K)."""

    def __init__(self, classes: int = 10, dropout: float = 0.0) -> None:
        super().__init__()
        self.preprocess = Preprocess()
        # Pooling and ReLU commute exactly. The first block pools first: ReLU then has a quarter of the work, and int8
        # can begin behind it, where the executor cannot pull the quantization back above the pooling. The second
        # pools last: its convolution's output has no negative half then, and all eight bits go to the other one.
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * 3 * 3, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, classes)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(self.preprocess(x_BCHW)))
        return logits_BK
