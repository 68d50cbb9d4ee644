"""Recurrent networks: a series hour by hour or day by day, a picture row by row, into one state that decides.

LSTM: Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9(8), 1997, with the forget gate of Gers
et al. (2000). Several hours as one step: Lin et al., "SegRNN: Segment Recurrent Neural Network for Long-Term Time
Series Forecasting", 2023, section 3.2.

Series may differ in length (train_jobs/models/ragged.py): one that is shorter ends in rows of NaN. Each is answered by
its own last state, so neither the padding nor its neighbours change what is said to it.

Shapes: B batch, L rows of a sample, S steps, F features of a step, C channels, H height, W width, D hidden units.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn

from cluster.errors import ConfigError
from cluster.variants import SequenceSpec
from train_jobs.models.layers import Preprocess
from train_jobs.models.ragged import emptied, ended, last_step


class RecurrentConfig(BaseModel):
    """An LSTM, or the plain recurrent network that it improves on."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    kind: Literal["lstm", "rnn"] = "lstm"
    hidden: int = Field(default=128, ge=1)
    layers: int = Field(default=1, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Of what each layer gives to the next one, and the last one to the head."""
    activation: Literal["tanh", "relu"] = "tanh"
    """Of kind=rnn; an LSTM's gates leave no choice."""
    patch: int = Field(default=1, ge=1)
    """Rows that make one step: 24 hours of a series, say. Fewer steps are faster, and gradients reach further back."""

    @model_validator(mode="after")
    def _fits_together(self) -> RecurrentConfig:
        if self.kind == "lstm" and self.activation != "tanh":
            raise ValueError(f"activation={self.activation} is for kind=rnn; unset it")
        return self

    @property
    def family(self) -> str:
        return self.kind

    def build(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Recurrent:
        """For series (L, C) as floats or pictures (C, H, W) as uint8, and outputs of any shape. Raises ConfigError for
        other inputs, or rows that `patch` does not divide."""
        if len(inputs) not in (2, 3):
            raise ConfigError(
                f"model.kind={self.kind} takes series (rows, channels) or pictures (channels, rows, columns), not "
                f"{list(inputs)}; choose another model.kind (mlp takes any shape)"
            )
        rows = inputs[0] if len(inputs) == 2 else inputs[1]
        if rows % self.patch:
            raise ConfigError(
                f"model.patch={self.patch} does not divide the {rows} rows of a sample; set a divisor, or for a series "
                "another task.lookback"
            )
        return Recurrent(self, inputs, outputs)


class Recurrent(nn.Module):
    """(B, L, C) floats or (B, C, H, W) uint8 -> (B, *outputs), from the state after the last step."""

    def __init__(self, config: RecurrentConfig, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> None:
        super().__init__()
        self._kind, self._pictures = config.kind, len(inputs) == 3
        self.preprocess = Preprocess() if self._pictures else nn.Identity()
        self._rows, self._patch = inputs[1] if self._pictures else inputs[0], config.patch
        self._features = math.prod(inputs) // self._rows * config.patch
        self.layers = nn.ModuleList(_layer(config, before) for before in self._widths(config))
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(config.hidden, math.prod(outputs))
        self.outputs = outputs

    def _widths(self, config: RecurrentConfig) -> list[int]:
        return [self._features] + [config.hidden] * (config.layers - 1)

    @property
    def sequence(self) -> SequenceSpec | None:
        """Lengths of the series that it takes, in rows; pictures have one, and so have graphs of plain recurrent
        networks, which torch exports step by step."""
        if self._pictures or self._kind == "rnn" or self._rows == self._patch:
            return None
        return SequenceSpec(multiple_of=self._patch, shortest=self._patch, longest=self._rows)

    def penultimate(self, x: Tensor) -> Tensor:
        """What the last layer decides upon, (B, D)."""
        x = self.preprocess(x)
        rows = x.transpose(1, 2) if self._pictures else x  # a picture's first, as a series has them
        states_SBF = rows.reshape(-1, rows.shape[1] // self._patch, self._features).transpose(0, 1)
        if self.sequence is None:
            for layer in self.layers:
                states_SBF = self.dropout(_states(layer, states_SBF))
            return states_SBF[-1]
        ended_SB1 = ended(states_SBF)
        for layer in self.layers:
            # Nought between layers too: int8 cells are scaled by all that they read, padding included.
            states_SBF = self.dropout(_states(layer, emptied(states_SBF, ended_SB1)))
        return last_step(states_SBF, ended_SB1)

    def blocks(self) -> list[nn.Module]:
        """From the input to the head."""
        return [*self.layers, self.head]

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.penultimate(x)).reshape(-1, *self.outputs)  # type: ignore[no-any-return]


def _states(layer: nn.Module, steps_SBF: Tensor) -> Tensor:
    """What a layer holds after each step, (S, B, D). Mixed precision stops here on a CPU: not every one has a recurrent
    layer in bf16, and torch refuses instead of falling back."""
    if steps_SBF.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
        return layer(steps_SBF)[0]  # type: ignore[no-any-return]
    with torch.autocast("cpu", enabled=False):
        return layer(steps_SBF.float())[0]  # type: ignore[no-any-return]


def _layer(config: RecurrentConfig, before: int) -> nn.LSTM | nn.RNN:
    """One layer, begun so that gradients last: orthogonal matrices between steps (Saxe et al., ICLR 2014), and forget
    gates that stand open (Jozefowicz et al., "An Empirical Exploration of Recurrent Network Architectures", ICML 2015,
    section 3.2)."""
    if config.kind == "lstm":
        layer: nn.LSTM | nn.RNN = nn.LSTM(before, config.hidden)
    else:
        layer = nn.RNN(before, config.hidden, nonlinearity=config.activation)
    own = dict(layer.named_parameters())
    with torch.no_grad():
        for gate in own["weight_hh_l0"].chunk(len(own["weight_hh_l0"]) // config.hidden):
            nn.init.orthogonal_(gate)
        own["bias_hh_l0"].zero_()
        own["bias_ih_l0"].zero_()
        if config.kind == "lstm":
            own["bias_ih_l0"][config.hidden : 2 * config.hidden] = 1.0
    return layer
