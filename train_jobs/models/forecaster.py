"""Any network as a forecaster of series: it sees each window on a scale of its own, and answers with what is to be
added to a simple forecast.

Last value: Zeng et al., "Are Transformers Effective for Time Series Forecasting?", AAAI 2023, section 4 (NLinear). Mean
and deviation with a learned scale: Kim et al., "Reversible Instance Normalization for Accurate Time-Series Forecasting
against Distribution Shift", ICLR 2022, section 3.1 (RevIN).

A window may be shorter than others of its batch (train_jobs/models/ragged.py) if the network takes that: the scale is
that of the hours that are there.

Shapes: B batch, L hours looked back upon, H hours ahead, C channels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from cluster.errors import ConfigError
from cluster.variants import SequenceSpec
from train_jobs.models.ragged import last_row, last_rows, mean_row, sequence_of

_EPSILON = 1e-5
"""Added to a window's variance, so that a constant one can be divided by its deviation (as RevIN has it)."""


class FramingConfig(BaseModel):
    """How a window is shown to the network, and what the network's answer is added to."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    normalise: Literal["none", "last", "mean", "revin"] = "last"
    """What is subtracted from a window, channel by channel, and added to the answer again: its last value, or its mean;
    revin also divides by its standard deviation."""
    season: int = Field(default=0, ge=0)
    """Hours of a season: the answer is added to the value so many hours (or a multiple) before, and not to the last
    value or the mean. 0: none."""
    channels: Literal["shared", "together"] = "shared"
    """shared: the network sees the channels one by one, with the same weights. together: it sees all of them at once,
    and overfits sooner."""

    def around(
        self, build: Callable[[tuple[int, ...], tuple[int, ...]], nn.Module], inputs: tuple[int, ...],
        outputs: tuple[int, ...],
    ) -> Forecaster:  # fmt: skip
        """The network that `build` makes for given inputs and outputs, as a forecaster (L, C) -> (H, C). Raises
        ConfigError if a window is shorter than a season."""
        if self.season > inputs[0]:
            raise ConfigError(
                f"task.season={self.season} is longer than the window, task.lookback={inputs[0]}; look further back"
            )
        one = self.channels == "shared"
        body = build((inputs[0], 1) if one else inputs, (outputs[0], 1) if one else outputs)
        return Forecaster(body, self, inputs, outputs)


class Standardise(nn.Module):
    """Values (B, L, C) in the data's units -> mean 0 and deviation 1 over the training part, and back."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("std", torch.ones(channels))

    def normalise(self, mean_C: Tensor, std_C: Tensor) -> None:
        """Set what the training part has; a channel that never changes is only shifted."""
        self.get_buffer("mean").copy_(mean_C)
        self.get_buffer("std").copy_(torch.where(std_C > 0, std_C, torch.ones_like(std_C)))

    def forward(self, x_BLC: Tensor) -> Tensor:
        return (x_BLC - self.get_buffer("mean")) / self.get_buffer("std")

    def undo(self, scaled_BHC: Tensor) -> Tensor:
        """In the data's units again."""
        return scaled_BHC * self.get_buffer("std") + self.get_buffer("mean")

    def describe(self) -> str:
        """What it does, for the manifest."""
        columns = len(self.get_buffer("mean"))
        return f"(x - mean) / std for each of {columns} channels, and back; inside the graph"


class Forecaster(nn.Module):
    """float32 (B, L, C) -> (B, H, C), both in the data's own units."""

    averaging = "outputs"
    """How an ensemble of them answers: with the mean forecast."""

    def __init__(
        self, body: nn.Module, config: FramingConfig, inputs: tuple[int, ...], outputs: tuple[int, ...]
    ) -> None:
        super().__init__()
        self.preprocess = Standardise(inputs[1])
        self.body = body
        self._config, self._horizon, self._channels = config, outputs[0], inputs[1]
        if config.normalise == "revin":
            self.weight = nn.Parameter(torch.ones(inputs[1]))
            self.bias = nn.Parameter(torch.zeros(inputs[1]))

    def penultimate(self, x_BLC: Tensor) -> Tensor:
        """What the last layer decides upon (B, D); with shared channels side by side, (B, C x D)."""
        scaled = self.preprocess(x_BLC)
        features = self.body.penultimate(self._shown(scaled, *self._level_and_spread(scaled)))  # type: ignore[operator]
        return features.reshape(-1, self._channels * features.shape[1]) if self._shared else features  # type: ignore[no-any-return]

    def blocks(self) -> list[nn.Module]:
        """The network's, from the input to the head."""
        return list(self.body.blocks())  # type: ignore[operator]

    @property
    def sequence(self) -> SequenceSpec | None:
        """Lengths of windows: those that the network takes and a season fits into."""
        taken = sequence_of(self.body)
        if taken is None:
            return None
        seasons = -(-self._config.season // taken.multiple_of) * taken.multiple_of
        return taken.model_copy(update={"shortest": max(taken.shortest, seasons)})

    def forward(self, x_BLC: Tensor) -> Tensor:
        scaled = self.preprocess(x_BLC)
        level, spread = self._level_and_spread(scaled)
        answer = self.body(self._shown(scaled, level, spread))
        if self._shared:
            answer = answer.reshape(-1, self._channels, self._horizon).transpose(1, 2)
        if spread is not None:
            answer = (answer - self.bias) / (self.weight + _EPSILON**2) * spread
        return self.preprocess.undo(answer + self._simple(scaled, level))

    @property
    def _shared(self) -> bool:
        return self._config.channels == "shared"

    def _shown(self, scaled_BLC: Tensor, level_B1C: Tensor, spread_B1C: Tensor | None) -> Tensor:
        """What the network sees: (B, L, C), or (B x C, L, 1) where channels share it."""
        shown = scaled_BLC - level_B1C
        if spread_B1C is not None:
            shown = shown / spread_B1C * self.weight + self.bias
        return shown.transpose(1, 2).reshape(-1, shown.shape[1], 1) if self._shared else shown

    def _level_and_spread(self, scaled_BLC: Tensor) -> tuple[Tensor, Tensor | None]:
        """What is taken from a window, and what it is divided by: (B, 1, C) each; None: by nothing."""
        if self._config.normalise == "none":
            return torch.zeros_like(scaled_BLC[:, :1]), None
        if self._config.normalise == "last":
            return self._last(scaled_BLC), None
        level = self._mean(scaled_BLC)
        if self._config.normalise == "mean":
            return level, None
        return level, (self._mean((scaled_BLC - level).square()) + _EPSILON).sqrt()

    def _simple(self, scaled_BLC: Tensor, level_B1C: Tensor) -> Tensor:
        """The forecast that the answer is added to: (B, 1, C) or (B, H, C)."""
        season = self._config.season
        if not season:
            return level_B1C
        before = last_rows(scaled_BLC, season) if self._ragged else scaled_BLC[:, -season:]
        return before.repeat(1, math.ceil(self._horizon / season), 1)[:, : self._horizon]

    @property
    def _ragged(self) -> bool:
        return sequence_of(self.body) is not None

    def _last(self, x_BLC: Tensor) -> Tensor:
        return last_row(x_BLC) if self._ragged else x_BLC[:, -1:]

    def _mean(self, x_BLC: Tensor) -> Tensor:
        return mean_row(x_BLC) if self._ragged else x_BLC.mean(1, keepdim=True)
