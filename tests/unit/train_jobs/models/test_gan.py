"""The GAN: pictures of the data's shape, an average that follows, and a program that draws the same."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import nn

from cluster.errors import ConfigError
from train_jobs.models import GAN, GANConfig


def latents(count: int, size: int = 8) -> torch.Tensor:
    return torch.randn(count, size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("layers", ["conv", "dense"])
@pytest.mark.parametrize("norm", ["none", "group", "batch"])
@pytest.mark.parametrize("outputs", [(1, 28, 28), (3, 32, 32)])
def test_pictures_lie_in_nought_to_one_and_each_gets_one_logit(
    layers: Literal["conv", "dense"], norm: Literal["none", "group", "batch"], outputs: tuple[int, ...]
) -> None:
    model = GANConfig(layers=layers, norm=norm, latent=8, width=8).build((8,), outputs)
    made = model(latents(5))
    assert made.shape == (5, *outputs)
    assert made.dtype == torch.float32
    assert 0 <= float(made.min()) < float(made.max()) <= 1
    assert model.discriminator(made).shape == (5,)


@pytest.mark.parametrize("norm", ["none", "group"])
def test_a_picture_does_not_depend_on_the_others_of_its_batch(norm: Literal["none", "group"]) -> None:
    for layers in ("conv", "dense"):
        model = GANConfig(layers=layers, norm=norm, latent=8, width=8).build((8,), (1, 28, 28)).train()
        z = latents(6)
        torch.testing.assert_close(model.generator(z)[2:3], model.generator(z[2:3]))
        assert model.discriminator(model.generator(z[:0])).shape == (0,), "a worker may be left without a sample"


def test_the_average_follows_and_is_what_is_served() -> None:
    model = GANConfig(latent=8, width=8).build((8,), (1, 28, 28))
    assert not any(p.requires_grad for p in model.average.parameters())
    before = [p.clone() for p in model.average.parameters()]
    with torch.no_grad():
        for p in model.generator.parameters():
            p.add_(1.0)
    model.follow(0.9)
    for old, now in zip(before, model.average.parameters(), strict=True):
        torch.testing.assert_close(now, old + 0.1)
    z = latents(3)
    assert torch.equal(model(z), model.average(z))
    model.follow(0.0)
    assert torch.equal(model(z), model.generator(z))


def test_running_statistics_follow_too() -> None:
    model = GANConfig(latent=8, width=8, norm="batch").build((8,), (1, 28, 28)).train()
    model.generator(latents(16))
    model.follow(0.5)
    own = [m for m in model.generator.modules() if isinstance(m, nn.BatchNorm2d)]
    averaged = [m for m in model.average.modules() if isinstance(m, nn.BatchNorm2d)]
    assert len(own) == 2
    for one, other in zip(own, averaged, strict=True):
        assert one.running_mean is not None
        assert other.running_mean is not None
        assert torch.equal(one.running_mean, other.running_mean)
        assert float(one.running_mean.abs().sum()) > 0


@pytest.mark.parametrize("layers", ["conv", "dense"])
def test_the_exported_program_draws_the_same_at_any_batch_size(layers: Literal["conv", "dense"]) -> None:
    model: GAN = GANConfig(layers=layers, latent=8, width=8).build((8,), (1, 28, 28)).eval()
    program = torch.export.export(model, (latents(2),), dynamic_shapes=({0: torch.export.Dim("batch", min=1)},))
    for count in (1, 7):
        torch.testing.assert_close(program.module()(latents(count)), model(latents(count)))


def test_shapes_that_it_does_not_make_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"\[30, 30\] is no multiple of 4; take model.layers=dense"):
        GANConfig().build((64,), (1, 30, 30))
    assert GANConfig(layers="dense", width=8).build((64,), (1, 30, 30))(latents(2, 64)).shape == (2, 1, 30, 30)
    with pytest.raises(ConfigError, match="makes pictures"):
        GANConfig().build((64,), (24,))
