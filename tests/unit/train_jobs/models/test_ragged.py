"""Series of differing lengths in one batch: each is answered as if it were alone, however far it was padded."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cluster.variants import SequenceSpec
from train_jobs.models import Ensemble, Forecaster, MLPConfig, Recurrent, RecurrentConfig
from train_jobs.models.forecaster import FramingConfig
from train_jobs.models.ragged import ended, last_row, last_rows, last_step, mean_row, sequence_of

LONGEST, HORIZON, CHANNELS, PATCH = 24, 5, 3, 4
FRAMES: dict[str, dict[str, Any]] = {
    "last": {}, "together": {"channels": "together"}, "mean": {"normalise": "mean"}, "revin": {"normalise": "revin"},
    "none": {"normalise": "none"}, "season": {"season": 6},
}  # fmt: skip


def forecaster(*, layers: int = 2, patch: int = PATCH, **framing: Any) -> Forecaster:
    torch.manual_seed(0)
    body = RecurrentConfig(hidden=8, layers=layers, patch=patch)
    made = FramingConfig(**framing).around(body.build, (LONGEST, CHANNELS), (HORIZON, CHANNELS))
    made.preprocess.normalise(torch.tensor([20.0, 19.0, 21.0]), torch.tensor([5.0, 4.0, 6.0]))
    return made.eval()


def series(lengths: list[int], seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [20 + torch.randn(length, CHANNELS, generator=generator).cumsum(0) for length in lengths]


def padded(each: list[Tensor], rows: int = 0) -> Tensor:
    """To the longest of them, or to `rows`."""
    longest = max(rows, *map(len, each))
    made = torch.full((len(each), longest, CHANNELS), math.nan)
    for row, values in zip(made, each, strict=True):
        row[: len(values)] = values
    return made


def alone(model: nn.Module, each: list[Tensor]) -> Tensor:
    return torch.cat([model(values.unsqueeze(0)) for values in each])


@pytest.mark.parametrize("frame", list(FRAMES))
@torch.inference_mode()
def test_every_length_in_one_batch_gets_the_forecast_that_it_gets_alone(frame: str) -> None:
    model = forecaster(**FRAMES[frame])
    assert model.sequence is not None
    each = series([length for length in range(LONGEST + 1) if model.sequence.takes(length)])
    torch.testing.assert_close(model(padded(each)), alone(model, each), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model.penultimate(padded(each)), torch.cat(
        [model.penultimate(values.unsqueeze(0)) for values in each]
    ), rtol=1e-6, atol=1e-6)  # fmt: skip


@given(
    steps=st.lists(st.integers(1, 8), min_size=1, max_size=5), patch=st.sampled_from([1, 3]), layers=st.integers(1, 2),
    more=st.integers(0, 3), seed=st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=40, deadline=None)
@torch.inference_mode()
def test_how_far_it_was_padded_changes_nothing(
    steps: list[int], patch: int, layers: int, more: int, seed: int
) -> None:
    model = forecaster(layers=layers, patch=patch)
    each = series([patch * count for count in steps], seed)
    rows = max(map(len, each)) + patch * more
    torch.testing.assert_close(model(padded(each, rows)), alone(model, each), rtol=1e-6, atol=1e-6)


@torch.inference_mode()
def test_it_is_the_length_that_decides_and_not_the_window() -> None:
    """A model that went by the padding, or by noughts in its place, would answer otherwise."""
    model = forecaster()
    [values] = series([8])
    noughts = torch.cat([values, torch.zeros(8, CHANNELS)])
    assert not torch.allclose(model(noughts.unsqueeze(0)), model(padded([values], 16)), atol=0.1)
    assert not torch.allclose(alone(model, [values[-4:]]), alone(model, [values]), atol=1e-4), "it remembers"


def test_a_series_without_padding_learns_as_it_did() -> None:
    """Gradients too: those of the last state of an LSTM, nothing from what stands in its place."""
    model = RecurrentConfig(hidden=8, patch=PATCH).build((LONGEST, CHANNELS), (2,))
    x = padded(series([LONGEST, LONGEST]))
    model(x).square().sum().backward()
    learned = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    states = model.layers[0](x.reshape(2, LONGEST // PATCH, -1).transpose(0, 1))[0]
    model.head(states[-1]).square().sum().backward()
    for name, p in model.named_parameters():
        torch.testing.assert_close(learned[name], p.grad, msg=name)


def test_padding_gives_no_gradient_that_is_not_a_number() -> None:
    model = forecaster().train()
    model(padded(series([4, 12, 24]))).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_last_rows_means_and_states_are_each_series_own() -> None:
    each = series([2, 5, 3])
    x = padded(each, 7)
    torch.testing.assert_close(last_row(x), torch.stack([values[-1:] for values in each]))
    torch.testing.assert_close(last_rows(x, 2), torch.stack([values[-2:] for values in each]))
    torch.testing.assert_close(mean_row(x), torch.stack([values.mean(0, keepdim=True) for values in each]))
    last = last_step(x.nan_to_num().transpose(0, 1), ended(x.transpose(0, 1)))
    torch.testing.assert_close(last, torch.stack([values[-1] for values in each]))


def test_nobody_is_answered_by_his_neighbours_rows() -> None:
    """Whatever somebody sends, be it nothing but padding or too little for a season."""
    x = padded(series([3, 1, 3]))
    x[1] = math.nan
    assert last_row(x)[1].isnan().all()
    assert last_rows(x, 2)[1].isnan().all()
    assert last_step(x.transpose(0, 1), ended(x.transpose(0, 1)))[1].isnan().all()
    [short] = series([1])
    torch.testing.assert_close(last_rows(padded([*series([3]), short]), 3)[1], short.expand(3, CHANNELS))


def test_models_say_which_lengths_they_take() -> None:
    whole = SequenceSpec(multiple_of=PATCH, shortest=PATCH, longest=LONGEST)
    assert sequence_of(forecaster()) == whole
    assert sequence_of(Ensemble([forecaster(), forecaster()])) == whole
    assert sequence_of(forecaster(season=6)) == whole.model_copy(update={"shortest": 8}), "a season fits in"
    plain: Recurrent = RecurrentConfig(kind="rnn", patch=PATCH).build((LONGEST, CHANNELS), (2,))
    pictures = RecurrentConfig().build((1, 12, 10), (4,))
    one_step = RecurrentConfig(patch=LONGEST).build((LONGEST, CHANNELS), (2,))
    dense = FramingConfig().around(MLPConfig().build, (LONGEST, CHANNELS), (HORIZON, CHANNELS))
    for model in (plain, pictures, one_step, dense, nn.Linear(2, 2), None):
        assert sequence_of(model) is None
