"""The classic small CNN: three 3x3 convolutions (32, 64, 64), max pooling, dense 64, ten classes.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Preprocess(nn.Module):
    """uint8 (B, C, H, W) in 0..255 -> float32, normalised. Part of the model, so serving cannot skew from training."""

    def __init__(self, mean: float, std: float) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        mean, std = self.get_buffer("mean"), self.get_buffer("std")
        return (x_BCHW.to(torch.float32) / 255.0 - mean) / std


class CNN(nn.Module):
    """uint8 (B, 1, 28, 28) -> logits float32 (B, K)."""

    def __init__(self, classes: int = 10, dropout: float = 0.0, mean: float = 0.2860, std: float = 0.3530) -> None:
        super().__init__()
        self.preprocess = Preprocess(mean, std)
        self.features = nn.Sequential(
            nn.Conv2d(1, 32, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(32, 64, 3), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(64, 64, 3), nn.ReLU(),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(64 * 3 * 3, 64), nn.ReLU(), nn.Dropout(dropout), nn.Linear(64, classes)
        )

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(self.preprocess(x_BCHW)))
        return logits_BK
