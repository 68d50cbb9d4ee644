"""What comes next? Windows of a series -> the hours after them, beside the forecasts that need no model.

Errors are those of standardised values (mean 0, deviation 1 over the training part), as the field reports them; what
the model takes and gives is in the data's own units, for its scale is inside.

Shapes: B batch, T rows of the series, L hours looked back upon, H hours ahead, C channels.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs.datasets import ett
from train_jobs.datasets.ett import SeriesDataset
from train_jobs.datasets.labelled import Notify
from train_jobs.models.forecaster import Forecaster, FramingConfig
from train_jobs.tasks.task import Batch, Findings, Metric, Part, Parts, Phase, in_pieces

if TYPE_CHECKING:
    from train_jobs.config import TrainConfig


class ForecastConfig(FramingConfig):
    """Forecast all hours ahead at once (direct multi-horizon)."""

    MODELS: ClassVar[frozenset[str]] = frozenset({"lstm", "rnn", "mlp"})
    ENSEMBLES: ClassVar[bool] = True

    kind: Literal["forecast"] = "forecast"
    lookback: int = Field(default=336, ge=1)
    """Hours that are looked back upon."""
    horizon: int = Field(default=24, ge=1)
    """Hours ahead that are forecast."""
    loss: Literal["mse", "mae", "huber"] = "mse"
    univariate: bool = False
    """The series' last column alone, in and out."""

    def load(self, spec: str, *, notify: Notify | None = None) -> SeriesDataset:
        return ett.load(spec, notify=notify)

    def build(self, config: TrainConfig, dataset: SeriesDataset, *, runs_dir: Path | None = None) -> Forecast:
        """Parts are those of the data; TrainConfig.validation says nothing here. Raises ConfigError for switches that
        mean nothing for series, and parts that are shorter than a window."""
        if config.flip or config.labels_per_class is not None:
            raise ConfigError(
                f"flip={config.flip} and labels_per_class={config.labels_per_class} are for labelled pictures; unset "
                "them for task.kind=forecast"
            )
        return Forecast(config, dataset, self)

    def skeleton(self, config: TrainConfig, shapes: dict[str, Any]) -> Forecaster:
        return self.around(config.model.build, tuple(shapes["inputs"]), tuple(shapes["outputs"]))


def windows(values_TC: Tensor, first: int, end: int, settings: ForecastConfig) -> Part:
    """Every window whose hours ahead lie within rows `first` to `end` - 1, as a view of the series; what is looked back
    upon may lie before them, as in the published protocol. Raises ConfigError if there is none."""
    lookback, horizon = settings.lookback, settings.horizon
    rows = values_TC[max(first - lookback, 0) : end]
    if len(rows) < lookback + horizon:
        raise ConfigError(
            f"task.lookback={lookback} and task.horizon={horizon} need {lookback + horizon} rows, and rows {first} to "
            f"{end - 1} of the series with what lies before are {len(rows)}; set them lower"
        )
    whole = rows.unfold(0, lookback + horizon, 1).transpose(1, 2)
    return Part(whole[:, :lookback], whole[:, lookback:])


def errors(model: nn.Module, part: Part) -> Tensor:
    """Forecast minus truth, (B, H, C), on the standardised scale."""
    return (model(part.x) - part.y) / model.preprocess.std  # type: ignore[no-any-return]


class ForecastLoss(nn.Module):
    """Batch -> sum of the windows' losses, each the mean over its hours and channels."""

    def __init__(self, model: nn.Module, settings: ForecastConfig) -> None:
        super().__init__()
        self.model = model
        self._loss = settings.loss

    def forward(self, batch: Batch) -> Tensor:
        off = errors(self.model, Part(batch.x, batch.y))
        if self._loss == "huber":
            size = off.abs()
            each = torch.where(size < 1, 0.5 * off.square(), size - 0.5)
        else:
            each = off.abs() if self._loss == "mae" else off.square()
        return each.flatten(1).mean(1).sum()


class Repeat(nn.Module):
    """A forecast without a model: the last `rows` of a window, over and over."""

    def __init__(self, rows: int, horizon: int, preprocess: nn.Module) -> None:
        super().__init__()
        self._rows, self._horizon = rows, horizon
        self.preprocess = preprocess

    def forward(self, x_BLC: Tensor) -> Tensor:
        return x_BLC[:, -self._rows :].repeat(1, math.ceil(self._horizon / self._rows), 1)[:, : self._horizon]


class Forecast:
    """The task of forecasting a series."""

    metric = Metric("mse", higher_is_better=False)

    def __init__(self, config: TrainConfig, dataset: SeriesDataset, settings: ForecastConfig) -> None:
        self._dataset, self._settings, self._recipe = dataset, settings, config.recipe
        values_TC = torch.from_numpy(dataset.values)
        if settings.univariate:
            values_TC = values_TC[:, -1:]
        training, validating, testing = dataset.borders
        self.parts = Parts(
            windows(values_TC, 0, training, settings), windows(values_TC, training, validating, settings),
            windows(values_TC, validating, testing, settings),
        )  # fmt: skip
        channels = values_TC.shape[1]
        self.shapes = {"inputs": [settings.lookback, channels], "outputs": [settings.horizon, channels]}
        model = settings.skeleton(config, self.shapes)
        seen = values_TC[:training].double()
        model.preprocess.normalise(seen.mean(0), seen.std(0, correction=0))
        self.model: nn.Module = model
        self.phases: tuple[Phase, ...] = (Phase("train", ForecastLoss(model, settings)),)

    def sums(self, model: nn.Module, part: Part) -> Tensor:
        total = torch.zeros(2, dtype=torch.float64)
        for piece in in_pieces(part):
            off = errors(model, piece).double().flatten(1)
            total += torch.stack([off.square().mean(1).sum(), off.abs().mean(1).sum()]).cpu()
        return torch.cat([total, torch.tensor([float(len(part))], dtype=torch.float64)])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        return {"mse": float(sums[0] / sums[2]), "mae": float(sums[1] / sums[2])}

    def findings(self, model: nn.Module) -> Findings:
        found = self.metrics(self.sums(model, self.parts.test))
        rows = {f"{self._recipe} (this run)": (found["mse"], found["mae"])}
        naive = {"last_value": (1, "repeat the last value")}
        if self._settings.lookback >= self._dataset.period:
            naive["last_period"] = (self._dataset.period, f"repeat the last {self._dataset.period} h")
        for name, (length, told) in naive.items():
            repeat = Repeat(length, self._settings.horizon, model.preprocess)  # type: ignore[arg-type]
            figures = self.metrics(self.sums(repeat, self.parts.test))
            found |= {f"{name}_{key}": value for key, value in figures.items()}
            rows[told] = (figures["mse"], figures["mae"])
        published = self._dataset.published.get(self._settings.univariate, {})
        there = {name: by[self._settings.horizon] for name, by in published.items() if self._settings.horizon in by}
        notes = [f"{name}: MSE {mse:.3f}, MAE {mae:.3f}" for name, (mse, mae) in (rows | there).items()]
        if any(mse > min(figures[0] for figures in list(rows.values())[1:]) for mse, _ in there.values()):
            notes.append("published models that a repetition beats are no measure: compare with the repetition")
        return Findings(found, tuple(notes))
