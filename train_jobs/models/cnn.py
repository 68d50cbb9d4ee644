"""The classic small CNN: three 3x3 convolutions (32, 64, 64), max pooling, dense 64, a score for each class.

Shapes: B batch, C channels, H height, W width, K classes.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs.models.layers import Activation, Preprocess, activation


class CNNConfig(BaseModel):
    """The convolutional classifier, wider or narrower."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["cnn"] = "cnn"
    width: float = Field(default=1.0, gt=0, le=16)
    """Multiplies the channels of every layer: 0.25 is a student, 2 a teacher."""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    activation: Activation = "relu"

    @property
    def family(self) -> str:
        return "cnn"

    def build(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> CNN:
        """For pictures (C, H, W) and K classes. Raises ConfigError for other shapes."""
        if len(inputs) != 3 or len(outputs) != 1 or min(inputs[1:]) < 18:
            raise ConfigError(
                f"model.kind=cnn takes pictures of 18x18 or more and gives a score per class, not {list(inputs)} -> "
                f"{list(outputs)}; choose another model.kind (mlp takes any shape)"
            )
        return CNN(outputs[0], self.dropout, inputs=inputs, width=self.width, act=self.activation)


class CNN(nn.Module):
    """uint8 (B, C, H, W) -> logits (B, K)."""

    def __init__(
        self, classes: int = 10, dropout: float = 0.0, *, inputs: tuple[int, ...] = (1, 28, 28), width: float = 1.0,
        act: Activation = "relu",
    ) -> None:  # fmt: skip
        super().__init__()
        channels, height, rows = inputs
        first, second, dense = (max(1, round(width * size)) for size in (32, 64, 64))
        left = [((((size - 2) // 2) - 2) // 2) - 2 for size in (height, rows)]
        self.preprocess = Preprocess()
        # Pooling and ReLU commute exactly. The first block pools first: ReLU then has a quarter of the work, and int8
        # can begin behind it, where the executor cannot pull the quantization back above the pooling. The second
        # pools last: its convolution's output has no negative half then, and all eight bits go to the other one.
        self.features = nn.Sequential(
            nn.Conv2d(channels, first, 3), nn.MaxPool2d(2), activation(act),
            nn.Conv2d(first, second, 3), activation(act), nn.MaxPool2d(2),
            nn.Conv2d(second, second, 3), activation(act),
        )  # fmt: skip
        self.head = nn.Sequential(
            nn.Flatten(), nn.Linear(second * left[0] * left[1], dense), activation(act), nn.Dropout(dropout),
            nn.Linear(dense, classes),
        )  # fmt: skip

    def penultimate(self, x_BCHW: Tensor) -> Tensor:
        """What the last layer decides upon, (B, 64 x width): features for distillation and distances."""
        dense_BD: Tensor = self.head[:-1](self.features(self.preprocess(x_BCHW)))
        return dense_BD

    def blocks(self) -> list[nn.Module]:
        """From the input to the head: what transfer learning freezes, and in which order it thaws."""
        return [*(self.features[i] for i in (0, 3, 6)), self.head[1], self.head[4]]

    def forward(self, x_BCHW: Tensor) -> Tensor:
        logits_BK: Tensor = self.head(self.features(self.preprocess(x_BCHW)))
        return logits_BK
