"""Recurrent networks against their equations, and the frame that makes any network a forecaster."""

from __future__ import annotations

import io
from typing import Any, Literal

import numpy as np
import onnxruntime
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.errors import ConfigError
from cluster.variants import TensorSpec
from train_jobs.export import to_onnx, to_torch_archive
from train_jobs.models import Ensemble, Forecaster, MLPConfig, Recurrent, RecurrentConfig
from train_jobs.models.forecaster import FramingConfig

LOOKBACK, HORIZON, CHANNELS = 48, 30, 3
SERIES = ((LOOKBACK, CHANNELS), (HORIZON, CHANNELS))
KINDS: list[Literal["lstm", "rnn"]] = ["lstm", "rnn"]
NORMALISE: list[Literal["none", "last", "mean", "revin"]] = ["none", "last", "mean", "revin"]


def series(batch: int = 5, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 20 + 5 * torch.randn(batch, LOOKBACK, CHANNELS, generator=generator)


def pictures(batch: int = 5) -> Tensor:
    return torch.randint(0, 256, (batch, 2, 12, 10), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def forecaster(body: MLPConfig | RecurrentConfig, **framing: Any) -> Forecaster:
    torch.manual_seed(0)
    made = FramingConfig(**framing).around(body.build, *SERIES)
    made.preprocess.normalise(torch.tensor([20.0, 19.0, 21.0]), torch.tensor([5.0, 4.0, 6.0]))
    return made.eval()


def no_answer(made: Forecaster) -> Forecaster:
    """With a network that answers nought."""
    made.body.head.weight.data.zero_()  # type: ignore[union-attr, operator]
    made.body.head.bias.data.zero_()  # type: ignore[union-attr, operator]
    return made


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2])
def test_it_computes_the_textbook_s_equations(kind: Literal["lstm", "rnn"], layers: int) -> None:
    model = RecurrentConfig(kind=kind, hidden=7, layers=layers, patch=4).build(*SERIES).eval()
    x = series()
    steps = x.reshape(5, LOOKBACK // 4, 4 * CHANNELS)
    for layer in model.layers:
        w, u = layer.weight_ih_l0, layer.weight_hh_l0
        b = layer.bias_ih_l0 + layer.bias_hh_l0  # type: ignore[operator]
        h = c = torch.zeros(5, 7)
        states = []
        for s in range(steps.shape[1]):
            raw = steps[:, s] @ w.T + h @ u.T + b  # type: ignore[union-attr, operator]
            if kind == "rnn":
                h = torch.tanh(raw)
            else:
                i, f, g, o = raw.chunk(4, dim=1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        steps = torch.stack(states, 1)
    torch.testing.assert_close(model.penultimate(x), steps[:, -1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(model(x), model.head(steps[:, -1]).reshape(5, HORIZON, CHANNELS), rtol=1e-5, atol=1e-5)


def test_gates_begin_open_and_matrices_between_steps_orthogonal() -> None:
    layer = RecurrentConfig(hidden=6).build(*SERIES).layers[0]
    assert isinstance(layer, nn.LSTM)
    assert layer.bias_ih_l0.tolist() == [0.0] * 6 + [1.0] * 6 + [0.0] * 12
    for gate in layer.weight_hh_l0.split(6):
        torch.testing.assert_close(gate @ gate.T, torch.eye(6), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_picture_is_read_row_by_row(kind: Literal["lstm", "rnn"]) -> None:
    model = RecurrentConfig(kind=kind, hidden=8).build((2, 12, 10), (4,)).eval()
    x = pictures()
    assert model(x).shape == (5, 4)
    rows = torch.cat([x[:, 0], x[:, 1]], dim=2) / 255.0
    torch.testing.assert_close(model.penultimate(x), model.layers[0](rows.transpose(0, 1))[0][-1])


def test_its_blocks_hold_all_that_it_learns() -> None:
    model = RecurrentConfig(layers=3).build(*SERIES)
    held = [id(p) for block in model.blocks() for p in block.parameters()]
    assert held == [id(p) for p in model.parameters()], "each once, from the input to the head"
    assert [id(b) for b in forecaster(MLPConfig(hidden=(4,))).blocks()] != []


def test_dropout_acts_in_training_only_also_before_the_head() -> None:
    model = RecurrentConfig(hidden=8, dropout=0.5).build(*SERIES)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(series()), model(series()))
    assert torch.equal(model.eval()(series()), model(series()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_worker_without_a_sample_has_gradients_of_nought(kind: Literal["lstm", "rnn"]) -> None:
    model = RecurrentConfig(kind=kind, hidden=8, layers=2).build(*SERIES)
    out = model(series(0))
    assert out.shape == (0, HORIZON, CHANNELS)
    out.sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters()), "DDP waits for each of them"


@pytest.mark.parametrize("kind", KINDS)
def test_in_mixed_precision_it_trains_on_any_cpu_and_answers_nearly_the_same(kind: Literal["lstm", "rnn"]) -> None:
    model = RecurrentConfig(kind=kind, hidden=8, layers=2).build(*SERIES)
    x = series() / 20
    with torch.autocast("cpu", torch.bfloat16):
        mixed = model(x)
    mixed.float().square().sum().backward()
    assert mixed.dtype == torch.bfloat16, "the head is in half precision"
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(mixed.float(), model(x), rtol=0.02, atol=0.02)


def test_shapes_that_it_does_not_take_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"model.kind=lstm takes series .* not \[30\]; .*mlp takes any shape"):
        RecurrentConfig().build((30,), (4,))
    with pytest.raises(ConfigError, match=r"model.patch=5 does not divide the 48 rows .*task.lookback"):
        RecurrentConfig(patch=5).build(*SERIES)
    with pytest.raises(ValidationError, match=r"activation=relu is for kind=rnn; unset it"):
        RecurrentConfig(activation="relu")


BODIES = {
    "linear": MLPConfig(hidden=()),
    "lstm": RecurrentConfig(hidden=8, patch=4),
    "rnn": RecurrentConfig(kind="rnn", hidden=8),
}


@pytest.mark.parametrize("channels", ["together", "shared"])
@pytest.mark.parametrize("normalise", ["last", "mean", "revin"])
@pytest.mark.parametrize("body", list(BODIES))
def test_a_level_that_moves_moves_the_forecast_and_nothing_else(body: str, normalise: str, channels: str) -> None:
    """Shift a window, and its forecast is shifted as much; with revin also when it is stretched."""
    model = forecaster(BODIES[body], normalise=normalise, channels=channels).double()
    x, shift = series().double(), torch.tensor([100.0, -50.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(model(x + shift), model(x) + shift, rtol=1e-9, atol=1e-9)
    if normalise == "revin":
        torch.testing.assert_close(model(3 * x), 3 * model(x), rtol=1e-4, atol=1e-4)


def test_without_normalisation_it_does_not() -> None:
    model = forecaster(BODIES["linear"], normalise="none")
    assert not torch.allclose(model(series() + 100), model(series()) + 100, atol=1.0)


@pytest.mark.parametrize("normalise", NORMALISE)
def test_a_network_that_answers_nought_leaves_the_simple_forecast(
    normalise: Literal["none", "last", "mean", "revin"]
) -> None:
    x = series()
    level = {"none": torch.tensor([20.0, 19.0, 21.0]).expand(5, 1, 3), "last": x[:, -1:]}.get(
        normalise, x.mean(1, keepdim=True)
    )
    model = no_answer(forecaster(BODIES["lstm"], normalise=normalise))
    torch.testing.assert_close(model(x), level.expand(5, HORIZON, CHANNELS))
    seasonal = no_answer(forecaster(BODIES["lstm"], normalise=normalise, season=24))
    expected = torch.cat([x[:, -24:], x[:, -24:-18]], dim=1)
    torch.testing.assert_close(seasonal(x), expected, msg="the value a day before, and for hours 25 to 30 two days")


def test_revin_undoes_its_own_scale_and_learns_it() -> None:
    model = no_answer(forecaster(BODIES["linear"], normalise="revin"))
    model.weight.data.copy_(torch.tensor([2.0, 3.0, 0.5]))
    model.body.head.bias.data.fill_(1.0)  # type: ignore[union-attr, operator]
    model.bias.data.copy_(torch.tensor([1.0, 1.0, 1.0]))
    x = series()
    torch.testing.assert_close(model(x), x.mean(1, keepdim=True).expand(5, HORIZON, CHANNELS))
    model.body.head.weight.data.fill_(0.01)  # type: ignore[union-attr, operator]
    model(x).square().mean().backward()
    for learned in (model.weight, model.bias):
        assert learned.grad is not None
        assert (learned.grad.abs() > 0).all()


def test_a_window_that_stands_still_is_forecast_without_dividing_by_nought() -> None:
    model = forecaster(BODIES["linear"], normalise="revin")
    assert torch.isfinite(model(torch.full((2, LOOKBACK, CHANNELS), 7.0))).all()


def test_shared_channels_get_the_answer_of_one_network_each() -> None:
    model = forecaster(BODIES["linear"], channels="shared", normalise="none")
    assert model.body.head.weight.shape == (HORIZON, LOOKBACK)  # type: ignore[union-attr]
    x = series()
    together = model(x)
    for channel, (mean, std) in enumerate(((20.0, 5.0), (19.0, 4.0), (21.0, 6.0))):
        alone = model.body((x[:, :, channel : channel + 1] - mean) / std) * std + mean
        torch.testing.assert_close(together[:, :, channel : channel + 1], alone)
    assert model.penultimate(x).shape == (5, CHANNELS * LOOKBACK)


def test_a_season_longer_than_the_window_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task.season=168 is longer than the window, task.lookback=48"):
        FramingConfig(season=168).around(MLPConfig().build, *SERIES)


def test_an_ensemble_of_forecasters_answers_with_their_mean_and_one_of_classifiers_does_not() -> None:
    one, other = forecaster(BODIES["linear"]), forecaster(BODIES["linear"])
    nn.init.normal_(other.body.head.weight)  # type: ignore[union-attr, arg-type]
    x = series()
    torch.testing.assert_close(Ensemble([one, other])(x), (one(x) + other(x)) / 2)
    rows = [RecurrentConfig(hidden=4).build((2, 12, 10), (4,)).eval() for _ in range(2)]
    shares = torch.stack([model(pictures()).softmax(1) for model in rows]).mean(0)
    torch.testing.assert_close(Ensemble(rows)(pictures()).exp(), shares)


MADE: dict[str, Any] = {
    "lstm": lambda: forecaster(RecurrentConfig(hidden=8, layers=2, patch=12), normalise="revin", channels="shared"),
    "rnn": lambda: forecaster(RecurrentConfig(kind="rnn", hidden=8, activation="relu", patch=12), season=24),
    "mlp": lambda: forecaster(MLPConfig(hidden=(16,)), normalise="mean", channels="shared"),
    "rows": lambda: RecurrentConfig(hidden=8).build((2, 12, 10), (4,)).eval(),
}


@pytest.mark.parametrize("name", list(MADE))
def test_exported_it_is_the_module_at_any_batch(name: str) -> None:
    model: Recurrent | Forecaster = MADE[name]()
    rows = name == "rows"
    spec = TensorSpec(name="x", datatype="UINT8" if rows else "FP32",
                      shape=(-1, 2, 12, 10) if rows else (-1, LOOKBACK, CHANNELS))  # fmt: skip
    program = torch.export.load(io.BytesIO(to_torch_archive(model, spec))).module()
    # one of them as ONNX: its exporter takes seconds
    graph = to_onnx(model, spec, ("y",)) if name == "lstm" else None
    for batch in (1, 2, 7):
        x = pictures(batch) if rows else series(batch)
        with torch.inference_mode():
            expected = model(x)
            torch.testing.assert_close(program(x), expected, rtol=1e-4, atol=1e-4)
        if graph is not None:
            session = onnxruntime.InferenceSession(graph, providers=["CPUExecutionProvider"])
            (answer,) = session.run(None, {"x": x.numpy()})
            np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-4, atol=1e-4)
