"""Forecasting: windows that do not leak, the known naive figures, and one curve at any number of workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from cluster.errors import ConfigError
from tests.unit.train_jobs import gloo
from tests.unit.train_jobs.curves import apart
from tests.unit.train_jobs.tasks import forecast_scenarios as scenarios
from train_jobs import runs
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset, ett
from train_jobs.datasets.ett import SeriesDataset, seasonal
from train_jobs.loop import TrainResult, train
from train_jobs.models import Ensemble, Forecaster, MLPConfig
from train_jobs.tasks import Batch, ForecastConfig
from train_jobs.tasks.forecast import Forecast, windows

REAL = (Path(os.environ.get("SLUICE_DATA_DIR", "none")) / "ett").is_dir()
LINEAR = TrainConfig(
    recipe="linear", dataset="seasonal", model=MLPConfig(hidden=()), task=ForecastConfig(lookback=168, horizon=24),
    epochs=4, batch_size=32, lr=2e-3, schedule="cosine", num_workers=1,
)  # fmt: skip


def task_of(config: TrainConfig, dataset: SeriesDataset) -> Forecast:
    assert isinstance(config.task, ForecastConfig)
    return config.task.build(config, dataset)


@pytest.fixture(scope="module")
def trained() -> TrainResult:
    return train(LINEAR, seasonal())


@pytest.fixture(scope="module")
def etth1() -> SeriesDataset:
    """The real one where SLUICE_DATA_DIR has it; else one as long, made here, for which nobody published figures."""
    if REAL:
        return ett.load("etth1")
    made = seasonal(14_400)
    return SeriesDataset("etth1", made.source, made.values, made.columns, (8640, 11_520, 14_400), spec="etth1")


def test_windows_are_views_and_each_part_forecasts_its_own_rows_alone() -> None:
    values = torch.arange(200.0)[:, None] * torch.tensor([1.0, 1000.0])
    settings = ForecastConfig(lookback=30, horizon=7)
    train_part, validation = windows(values, 0, 120, settings), windows(values, 120, 160, settings)
    assert (len(train_part), len(validation)) == (120 - 37 + 1, 40 - 7 + 1)
    for part, first, last in ((train_part, 30, 119), (validation, 120, 159)):
        assert part.x.untyped_storage().data_ptr() == values.untyped_storage().data_ptr(), "a view, not a copy"
        assert part.y[:, :, 0].min() == first, "the first hour that is forecast"
        assert part.y[:, :, 0].max() == last
        assert torch.equal(part.x[:, -1, 0] + 1, part.y[:, 0, 0]), "forecasts begin where the window ends"
        assert torch.equal(part.x[:, :, 0] * 1000, part.x[:, :, 1])
    assert train_part.x.max() < 120 * 1000, "no window of the training part sees a row of validation"
    assert validation.x[0, 0, 0] == 90, "what is looked back upon may lie before the border, as in the protocol"


def test_the_scale_is_that_of_the_training_rows_alone() -> None:
    data = seasonal()
    task = task_of(LINEAR, data)
    end = data.borders[0]
    seen = data.values[:end].astype(np.float64)
    wild = data.values.copy()
    wild[end:] += 1000
    other = task_of(LINEAR, SeriesDataset("seasonal", "", wild, data.columns, data.borders, spec="seasonal"))
    for made in (task, other):
        assert isinstance(made.model, Forecaster)
        np.testing.assert_allclose(made.model.preprocess.mean, seen.mean(0), rtol=1e-6)
        np.testing.assert_allclose(made.model.preprocess.std, seen.std(0), rtol=1e-6)


MANIFEST: list[tuple[int, bool, str, tuple[float, float]]] = [
    (24, False, "last_period", (0.424, 0.389)), (24, False, "last_value", (1.222, 0.671)),
    (48, False, "last_period", (0.465, 0.407)), (48, False, "last_value", (1.267, 0.695)),
    (168, False, "last_period", (0.571, 0.462)), (168, False, "last_value", (1.325, 0.730)),
    (24, True, "last_value", (0.034, 0.139)), (48, True, "last_value", (0.050, 0.171)),
    (168, True, "last_value", (0.087, 0.229)),
]  # fmt: skip
"""Figures of ETTh1 measured apart from this code."""


@pytest.mark.parametrize(("horizon", "univariate", "naive", "known"), MANIFEST)
def test_naive_forecasts_have_the_known_figures_whatever_is_looked_back_upon(
    horizon: int, univariate: bool, naive: str, known: tuple[float, float], etth1: SeriesDataset
) -> None:
    """On ETTh1 the figures measured elsewhere; on the made series those of a plain computation over all windows."""
    config = LINEAR.model_copy(
        update={"dataset": "etth1", "task": ForecastConfig(lookback=96, horizon=horizon, univariate=univariate)}
    )
    task = task_of(config, etth1)
    assert len(task.parts.test) == 2880 - horizon + 1, "all windows"
    with torch.inference_mode():
        found = task.findings(task.model.eval()).metrics
    got = (found[f"{naive}_mse"], found[f"{naive}_mae"])
    if REAL:
        assert got == pytest.approx(known, abs=6e-4)
    z = etth1.values.astype(np.float64)
    z = ((z - z[:8640].mean(0)) / z[:8640].std(0))[:, -1 if univariate else 0 :]
    back = 1 if naive == "last_value" else 24
    off = [
        z[t - back + h % back] - z[t + h] for t in range(11_520, 14_400 - horizon + 1, 50) for h in range(horizon)
    ]
    every_fiftieth = task.sums(_naive(back, horizon, task), task.parts.test.share(0, 50))
    assert task.metrics(every_fiftieth)["mse"] == pytest.approx(np.mean(np.square(off)), rel=1e-5)
    assert task.metrics(every_fiftieth)["mae"] == pytest.approx(np.mean(np.abs(off)), rel=1e-5)


def _naive(rows: int, horizon: int, task: Forecast) -> torch.nn.Module:
    from train_jobs.tasks.forecast import Repeat

    return Repeat(rows, horizon, task.model.preprocess)  # type: ignore[arg-type]


def test_sums_add_up_over_workers_to_the_mean_over_all_hours_and_channels(trained: TrainResult) -> None:
    task, part = trained.task, trained.task.parts.validation
    with torch.inference_mode():
        whole = task.sums(trained.model, part)
        shares = sum(task.sums(trained.model, part.share(rank, 3)) for rank in range(3))
        off = ((trained.model(part.x) - part.y) / trained.model.preprocess.std).double()  # type: ignore[operator]
    torch.testing.assert_close(whole, shares)
    assert task.metrics(whole) == pytest.approx({"mse": float(off.square().mean()), "mae": float(off.abs().mean())})


@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_the_loss_is_the_one_that_is_named(loss: Literal["mse", "mae", "huber"], trained: TrainResult) -> None:
    config = LINEAR.model_copy(update={"task": ForecastConfig(lookback=168, horizon=24, loss=loss)})
    task = task_of(config, seasonal())
    x, y = task.parts.train.x[:9], task.parts.train.y[:9]
    std = task.model.preprocess.std
    wanted, got = y / std, task.model(x) / std  # type: ignore[operator]
    known = {"mse": torch.nn.MSELoss, "mae": torch.nn.L1Loss, "huber": torch.nn.HuberLoss}[loss]()(got, wanted)
    summed = task.phases[0].loss(Batch(x, y, torch.arange(9), 9, 0, 0))
    torch.testing.assert_close(summed, 9 * known)


def test_it_learns_more_than_a_repetition_and_says_so(trained: TrainResult) -> None:
    found = trained.findings
    assert found is not None
    assert found.metrics["mse"] < 0.8 * found.metrics["last_period_mse"] < found.metrics["last_value_mse"]
    assert [note.split(":")[0] for note in found.notes] == [
        "linear (this run)", "repeat the last value", "repeat the last 24 h",
    ]  # fmt: skip


def test_what_it_takes_and_gives_is_in_the_data_s_own_units(trained: TrainResult) -> None:
    part = trained.task.parts.test
    forecast = trained.model(part.x[:200])
    spread = part.y[:200].std((0, 1))
    assert ((forecast - part.y[:200]).abs().mean((0, 1)) < 0.7 * spread).all()
    assert forecast[..., 2].mean() > 15, "warmth is about 30, not about 0"


def test_published_figures_stand_beside_and_are_told_to_be_no_measure(etth1: SeriesDataset) -> None:
    data = SeriesDataset(etth1.name, "", etth1.values, etth1.columns, etth1.borders, published=ett._PUBLISHED)
    config = LINEAR.model_copy(update={"dataset": "etth1", "task": ForecastConfig(lookback=24, horizon=168)})
    task = task_of(config, data)
    with torch.inference_mode():
        notes = "\n".join(task.findings(task.model.eval()).notes)
    assert 'LSTMa (Zhou et al., "Informer", AAAI 2021, table 2): MSE 1.212, MAE 0.867' in notes
    assert "DLinear" not in notes, "it has no figure for 168 hours"
    assert ("no measure" in notes) or not REAL


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": True}, r"flip=True and labels_per_class=None are for labelled pictures"),
        ({"labels_per_class": 5}, r"flip=False and labels_per_class=5 are for labelled pictures"),
        ({"task": ForecastConfig(lookback=168, horizon=700)}, r"need 868 rows, and rows 1800 to 2399 .* are 768"),
        ({"task": ForecastConfig(lookback=168, season=336)}, r"task.season=336 is longer than the window"),
    ],
)
def test_what_means_nothing_for_a_series_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        task_of(LINEAR.model_copy(update=changes), seasonal())


def test_a_finished_run_is_loaded_without_its_data_also_an_ensemble_of_snapshots(tmp_path: Path) -> None:
    config = LINEAR.model_copy(update={"snapshots": 2, "epochs": 2})
    result = train(config, seasonal())
    assert isinstance(result.model, Ensemble)
    (tmp_path / "both").mkdir()
    runs.finish(tmp_path / "both", config, "made", result)
    loaded = runs.load("both", tmp_path)
    x = result.task.parts.test.x[:5]
    assert torch.equal(loaded.model(x), result.model(x))
    torch.testing.assert_close(loaded.model(x), sum(member(x) for member in result.model.members) / 2)
    assert loaded.metrics["mse"] == result.findings.metrics["mse"]  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def alone(few_digits: LabelledDataset) -> dict[str, dict[str, Any]]:
    return scenarios.all_curves(few_digits)


@pytest.fixture(scope="module")
def groups(few_digits: LabelledDataset) -> dict[int, list[dict[str, dict[str, Any]]]]:
    return gloo.run(scenarios.all_curves, few_digits, world_sizes=(2, 4), timeout_s=240.0)


def test_the_last_batch_leaves_workers_without_a_window() -> None:
    for config in (scenarios.LSTM, scenarios.RNN, scenarios.MLP):
        task = task_of(config, seasonal(scenarios.POINTS))
        assert len(task.parts.train) % config.batch_size == 1


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("name", list(scenarios.CONFIGS))
def test_several_workers_follow_the_curve_of_one(
    alone: dict[str, Any], groups: dict[int, list[dict[str, Any]]], name: str, size: int,
    record_property: Callable[[str, object], None],
) -> None:  # fmt: skip
    record_property("apart", apart(alone[name], [rank[name] for rank in groups[size]]))
    one = alone[name]
    assert one["loss"][-1] < 0.99 * one["loss"][0], "no flat line"
    for other in (rank[name] for rank in groups[size]):
        assert other["loss"] == pytest.approx(one["loss"], abs=1e-5)
        for mine, its in zip(one["metrics"], other["metrics"], strict=True):
            assert its == pytest.approx(mine, abs=1e-5)
        for key, tensor in one["weights"].items():
            torch.testing.assert_close(other["weights"][key], tensor, rtol=1e-5, atol=1e-5)


def test_a_run_goes_on_in_the_midst_of_an_epoch(alone: dict[str, Any]) -> None:
    config = scenarios.LSTM.model_copy(update={"checkpoint_steps": 5})
    series = seasonal(scenarios.POINTS)
    state = scenarios.curve(config, series)["states"][1]  # type: ignore[attr-defined]
    assert (state["epoch"], state["step"]) == (0, 10)
    resumed = scenarios.curve(config, series, resume=state)  # type: ignore[attr-defined]
    assert resumed["loss"] == pytest.approx(alone["lstm"]["loss"], abs=1e-9)
