"""Autoencoders: one weight where it is tied, a divergence that is the real one, scores that are what they say."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch.distributions import Bernoulli, Independent, Normal, kl_divergence

from cluster.errors import ConfigError
from train_jobs.models import VAE, Autoencoder, AutoencoderConfig, VAEConfig
from train_jobs.models.coder import Scale


def pictures(count: int = 6, shape: tuple[int, ...] = (1, 28, 28)) -> torch.Tensor:
    return torch.randint(0, 256, (count, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def series(count: int = 6, length: int = 30) -> torch.Tensor:
    return 5 + 3 * torch.randn(count, length, generator=torch.Generator().manual_seed(2))


DENSE: dict[str, Any] = {"layers": "dense", "hidden": (24, 12), "latent": 5}


@pytest.mark.parametrize("inputs", [(1, 28, 28), (3, 32, 32)])
def test_pictures_come_back_in_nought_to_one_with_a_score_each(inputs: tuple[int, ...]) -> None:
    x = pictures(4, inputs)
    for config in (AutoencoderConfig(), AutoencoderConfig(**DENSE), AutoencoderConfig(tied=True, **DENSE), VAEConfig(),
                   VAEConfig(likelihood="gaussian", **DENSE)):  # fmt: skip
        model = config.build(inputs, inputs).eval()
        made, score = model(x)
        assert made.shape == x.shape
        assert score.shape == (4,)
        assert made.dtype == score.dtype == torch.float32
        assert model.penultimate(x).shape == (4, config.latent)
        if config.kind == "autoencoder":
            assert 0 <= float(made.detach().min()) < float(made.detach().max()) <= 1
            expected = (made - x / 255).square().flatten(1).mean(1)
            torch.testing.assert_close(score, expected)


def test_tied_weights_are_one_parameter() -> None:
    tied = AutoencoderConfig(tied=True, **DENSE).build((1, 28, 28), (1, 28, 28))
    free = AutoencoderConfig(**DENSE).build((1, 28, 28), (1, 28, 28))
    weights = 784 * 24 + 24 * 12 + 12 * 5
    assert sum(p.numel() for p in free.parameters()) - sum(p.numel() for p in tied.parameters()) == weights
    of_decoder = [name for name in tied.state_dict() if name.startswith("decoder")]
    assert of_decoder == [f"decoder.biases.{i}" for i in range(3)]


def test_the_tied_decoder_is_the_encoder_backwards() -> None:
    model = AutoencoderConfig(tied=True, activation="tanh", **DENSE).build((1, 28, 28), (1, 28, 28))
    z = torch.randn(3, 5)
    first, second, third = (model.encoder[i].weight for i in (1, 3, 5))
    one, two, three = model.decoder.biases  # type: ignore[misc]
    hidden = torch.tanh(torch.tanh(z @ third + one) @ second + two)
    torch.testing.assert_close(model.decode(z), (hidden @ first + three).reshape(3, 1, 28, 28))
    with torch.no_grad():
        model.encoder[1].weight.zero_()  # type: ignore[operator,union-attr]
    assert float(model.decode(z).detach().abs().max()) == 0.0, "the decoder has no weights of its own"


def test_the_divergence_is_that_of_the_two_gaussians() -> None:
    model = VAEConfig(**DENSE).build((1, 28, 28), (1, 28, 28))
    mean, log_var = torch.randn(7, 5), torch.randn(7, 5)
    code = Independent(Normal(mean, (0.5 * log_var).exp()), 1)
    prior = Independent(Normal(torch.zeros(7, 5), torch.ones(7, 5)), 1)
    torch.testing.assert_close(model.divergence(mean, log_var), kl_divergence(code, prior))


@pytest.mark.parametrize("likelihood", ["bernoulli", "gaussian"])
def test_the_surprise_is_the_negative_log_likelihood(likelihood: Literal["bernoulli", "gaussian"]) -> None:
    model = VAEConfig(likelihood=likelihood, **DENSE).build((1, 28, 28), (1, 28, 28))
    raw = torch.randn(4, 1, 28, 28)
    target = (torch.rand(4, 1, 28, 28) > 0.5).float()
    made = Bernoulli(logits=raw) if likelihood == "bernoulli" else Normal(raw, model.log_sigma.exp())
    torch.testing.assert_close(model.surprise(raw, target), -Independent(made, 3).log_prob(target))


def test_a_vae_scores_by_its_bound_at_the_mean_and_draws_samples() -> None:
    model = VAEConfig(**DENSE).build((1, 28, 28), (1, 28, 28)).eval()
    x = pictures(3)
    mean, log_var = model.encode(model.preprocess(x))
    made, score = model(x)
    expected = model.surprise(model.decode(mean), x / 255) + model.divergence(mean, log_var)
    torch.testing.assert_close(score, expected)
    assert torch.equal(model(x)[1], score), "no noise in it"
    torch.testing.assert_close(model.sample(3, mean), made)
    assert model.sample(4).shape == (4, 1, 28, 28)


@pytest.mark.parametrize("scale", ["sample", "data"])
def test_windows_come_back_in_their_own_units(scale: Literal["sample", "data"]) -> None:
    config = AutoencoderConfig(scale=scale, output="identity", error="absolute", **DENSE)
    model = config.build((30,), (30,)).eval()
    x = series()
    model.preprocess.normalise(float(x.mean()), float(x.std()))
    target = model.preprocess(x)
    if scale == "sample":
        assert torch.equal(target.amin(1), torch.zeros(6))
        torch.testing.assert_close(target.amax(1), torch.ones(6))
    else:
        torch.testing.assert_close(target.mean(), torch.tensor(0.0), atol=1e-5, rtol=0)
    made, score = model(x)
    on_scale = model.reconstruct(target)
    torch.testing.assert_close(model.preprocess(x), target)
    torch.testing.assert_close(score, (on_scale - target).abs().mean(1))
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    units = on_scale * (high - low) + low if scale == "sample" else on_scale * x.std() + x.mean()
    torch.testing.assert_close(made, units)


def test_a_flat_window_is_no_division_by_nought() -> None:
    scaled = Scale(by_sample=True)(torch.full((2, 9), 7.0))
    assert torch.equal(scaled, torch.zeros(2, 9))


def test_constants_travel_with_the_weights() -> None:
    one, other = (AutoencoderConfig(output="identity", **DENSE).build((30,), (30,)) for _ in range(2))
    one.preprocess.normalise(5.0, 3.0)
    other.load_state_dict(one.state_dict())
    x = series()
    assert torch.equal(other(x)[1], one(x)[1])
    assert other.preprocess.describe() == "float -> (x - 5.0000) / 3.0000; inside the graph"


MODELS: list[tuple[AutoencoderConfig | VAEConfig, tuple[int, ...]]] = [
    (AutoencoderConfig(), (1, 28, 28)),
    (AutoencoderConfig(tied=True, **DENSE), (1, 28, 28)),
    (AutoencoderConfig(scale="sample", **DENSE), (30,)),
    (VAEConfig(), (1, 28, 28)),
]


@pytest.mark.parametrize(("config", "inputs"), MODELS)
def test_the_exported_program_answers_as_the_module_at_any_batch_size(
    config: AutoencoderConfig | VAEConfig, inputs: tuple[int, ...]
) -> None:
    model: Autoencoder | VAE = config.build(inputs, inputs).eval()
    make = series if len(inputs) == 1 else pictures
    program = torch.export.export(model, (make(2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for count in (1, 7):
        for got, expected in zip(program.module()(make(count)), model(make(count)), strict=True):
            torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("config", "inputs"), MODELS)
def test_its_blocks_hold_all_that_it_learns(config: AutoencoderConfig | VAEConfig, inputs: tuple[int, ...]) -> None:
    model = config.build(inputs, inputs)
    held = [id(p) for block in model.blocks() for p in block.parameters()]
    assert sorted(held) == sorted(id(p) for p in model.parameters())


@pytest.mark.parametrize(
    ("config", "inputs", "told"),
    [
        (AutoencoderConfig(), (30,), "layers=conv takes pictures .*or layers=dense"),
        (AutoencoderConfig(hidden=(8, 8, 8)), (1, 28, 28), r"halved for each of hidden=\[8, 8, 8\]"),
        (AutoencoderConfig(tied=True), (1, 28, 28), "set model.layers=dense, or tied=false"),
        (AutoencoderConfig(**DENSE), (30,), "set model.output=identity, or model.scale=sample"),
        (VAEConfig(**DENSE), (30,), "set model.likelihood=gaussian, or model.scale=sample"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_way_out(
    config: AutoencoderConfig | VAEConfig, inputs: tuple[int, ...], told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        config.build(inputs, inputs)


def test_with_no_hidden_layer_it_is_linear() -> None:
    model = AutoencoderConfig(layers="dense", hidden=(), output="identity").build((1, 28, 28), (1, 28, 28))
    x, y = torch.rand(2, 3, 1, 28, 28)
    at = model.reconstruct
    torch.testing.assert_close(at(x + y) + at(torch.zeros_like(x)), at(x) + at(y), atol=1e-5, rtol=1e-5)


def test_bce_of_logits_is_the_bernoulli_surprise() -> None:
    model = VAEConfig(**DENSE).build((1, 28, 28), (1, 28, 28))
    raw, grey = torch.randn(2, 1, 28, 28), torch.from_numpy(np.random.default_rng(0).random((2, 1, 28, 28), np.float32))
    expected = F.binary_cross_entropy(torch.sigmoid(raw), grey, reduction="none").flatten(1).sum(1)
    torch.testing.assert_close(model.surprise(raw, grey), expected)
