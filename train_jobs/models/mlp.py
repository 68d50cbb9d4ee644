"""Feed-forward networks over any input: the baseline that tells what an architecture buys.

Shapes: B batch, D features, K outputs.
"""

from __future__ import annotations

import itertools
import math
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from train_jobs.models.layers import Activation, Preprocess, activation


class MLPConfig(BaseModel):
    """Dense layers; with none hidden it is a linear model."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["mlp"] = "mlp"
    hidden: tuple[int, ...] = (256, 128)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    activation: Activation = "relu"

    @property
    def family(self) -> str:
        return "mlp"

    def build(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> MLP:
        """For inputs and outputs of any shape; pictures (C, H, W) are taken as uint8."""
        return MLP(inputs, outputs, self)


class MLP(nn.Module):
    """(B, *inputs) -> (B, *outputs)."""

    def __init__(self, inputs: tuple[int, ...], outputs: tuple[int, ...], config: MLPConfig) -> None:
        super().__init__()
        self.preprocess = Preprocess() if len(inputs) == 3 else nn.Identity()
        sizes = (math.prod(inputs), *config.hidden)
        layers: list[nn.Module] = [nn.Flatten()]
        for before, after in itertools.pairwise(sizes):
            layers += [nn.Linear(before, after), activation(config.activation), nn.Dropout(config.dropout)]
        self.body = nn.Sequential(*layers)
        self.head = nn.Linear(sizes[-1], math.prod(outputs))
        self.outputs = outputs

    def penultimate(self, x: Tensor) -> Tensor:
        """What the last layer decides upon, (B, D)."""
        features_BD: Tensor = self.body(self.preprocess(x))
        return features_BD

    def blocks(self) -> list[nn.Module]:
        """From the input to the head."""
        return [*(layer for layer in self.body if isinstance(layer, nn.Linear)), self.head]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.penultimate(x)).reshape(-1, *self.outputs)  # type: ignore[no-any-return]
