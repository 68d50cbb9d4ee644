"""Groups of channels: decoders that begin with a dense layer, normalisation in groups, codes and members of ensembles;
what is pruned equals what is masked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from train_jobs.compression.channels import Channels, Traced, layers_run
from train_jobs.models import CNN, VAE, Autoencoder, AutoencoderConfig, Ensemble, VAEConfig


def saliency(model: nn.Module) -> dict[Tensor, Tensor]:
    return {p: p.detach().square() for p in model.parameters()}


def groups(model: nn.Module, example: Tensor) -> dict[str, Channels]:
    return {group.name: group for group in Traced(model.eval(), example).groups()}


def random(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = 0.3 * torch.randn(p.shape, generator=generator)
    return model.eval()


def generator(norm: nn.Module | None = None) -> nn.Sequential:
    """4 numbers -> 6 channels of 2x3 -> 4 channels of 4x6 -> a picture."""
    layers = [nn.Linear(4, 36), nn.ReLU(), nn.Unflatten(1, (6, 2, 3)), *([norm] if norm else []), nn.ReLU()]
    layers += [nn.ConvTranspose2d(6, 4, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(4, 1, 4, 2, 1), nn.Sigmoid()]
    made = random(nn.Sequential(*layers))
    assert isinstance(made, nn.Sequential)
    return made


def test_a_dense_beginning_loses_whole_channels_and_equals_the_masked_one() -> None:
    model = generator()
    masked, x = copy.deepcopy(model), torch.randn(5, 4)
    kept, second = torch.tensor([0, 2, 5]), torch.tensor([1, 2])
    with torch.no_grad():  # nobody reads the others
        masked[4].weight[[1, 3, 4]] = 0.0
        masked[6].weight[[0, 3]] = 0.0
    traced = Traced(model, torch.zeros(2, 4))
    found = {group.name: group for group in traced.groups()}
    assert sorted(found) == ["0", "4"]
    found["0"].keep(kept)
    found["4"].keep(second)
    traced.unwrap()
    assert [type(layer) for layer in model] == [type(layer) for layer in masked], "wrapped only meanwhile"
    assert (model[0].out_features, tuple(model[2].unflattened_size), model[4].in_channels) == (18, (3, 2, 3), 3)
    with torch.inference_mode():
        torch.testing.assert_close(model(x), masked(x), atol=1e-6, rtol=1e-5)


def test_the_importance_is_the_mean_over_all_layers_of_a_group() -> None:
    model = generator()
    first = model[0].weight.square().reshape(6, 24).sum(1)
    reader = model[4].weight.square().flatten(1).sum(1)
    expected = ((first + reader) / 2).detach()
    traced = Traced(model, torch.zeros(2, 4))
    (group,) = (each for each in traced.groups() if each.name == "0")
    torch.testing.assert_close(group.importance(saliency(model)), expected / expected.mean())
    assert group.importance({}) is None


def test_a_group_normalisation_loses_as_many_channels_of_each_of_its_groups() -> None:
    model = generator(nn.GroupNorm(3, 6))
    weight = model[0].weight.detach().clone()
    traced = Traced(model, torch.zeros(2, 4))
    (group,) = (each for each in traced.groups() if each.name == "0")
    assert (group.size, group.parts) == (2, 3)
    scores = group.importance(saliency(model))
    assert scores is not None
    assert scores.shape == (2,)
    group.keep(torch.tensor([1]))
    traced.unwrap()
    assert (model[3].num_channels, model[3].num_groups, model[5].in_channels) == (3, 3, 3)
    assert torch.equal(model[0].weight, weight.reshape(6, 6, 4)[[1, 3, 5]].reshape(18, 4)), "the second of each pair"
    assert model(torch.zeros(2, 4)).shape == (2, 1, 8, 12)


def test_a_dense_beginning_with_more_than_an_activation_in_between_keeps_its_channels() -> None:
    model = nn.Sequential(
        nn.Linear(4, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Unflatten(1, (6, 2, 2)), nn.ConvTranspose2d(6, 4, 2),
        nn.ConvTranspose2d(4, 1, 2),
    )  # fmt: skip
    assert list(groups(model, torch.zeros(2, 4))) == ["4"]


@pytest.mark.parametrize("kind", ["autoencoder", "vae"])
def test_neither_the_code_nor_the_answers_are_a_group(kind: str) -> None:
    config = (AutoencoderConfig if kind == "autoencoder" else VAEConfig)(hidden=(4, 8), latent=3)
    model = config.build((1, 8, 8), (1, 8, 8))
    assert isinstance(model, Autoencoder | VAE)
    found = groups(random(model), torch.zeros((2, 1, 8, 8), dtype=torch.uint8))
    assert sorted(found) == ["decoder.0", "decoder.3", "encoder.0", "encoder.2"]
    found["decoder.0"].keep(torch.tensor([0, 1, 7]))
    reconstruction, score = model(torch.zeros((2, 1, 8, 8), dtype=torch.uint8))
    assert (reconstruction.shape, score.shape) == ((2, 1, 8, 8), (2,))
    assert model.penultimate(torch.zeros((2, 1, 8, 8), dtype=torch.uint8)).shape == (2, 3)


def test_every_member_of_an_ensemble_keeps_its_answers() -> None:
    model = Ensemble([CNN(width=0.125), CNN(width=0.125)])
    found = groups(model, torch.zeros((2, 1, 28, 28), dtype=torch.uint8))
    layers = ("features.0", "features.3", "features.6", "head.1")
    assert sorted(found) == sorted(f"members.{member}.{layer}" for member in (0, 1) for layer in layers)


class HalfRead(nn.Module):
    """The first half of the channels has a reader of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.left, self.right = nn.Linear(4, 8), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        left, right = torch.relu(self.first(x)).split(4, dim=1)
        answer: Tensor = torch.cat([self.left(left), self.right(right)], 1)
        return answer


def test_a_reader_that_would_lose_all_it_reads_is_told() -> None:
    found = groups(HalfRead(), torch.zeros(2, 4))
    with pytest.raises(InvalidRequest, match="reads some of the channels of first would lose all of them; low"):
        found["first"].keep(torch.tensor([4, 5, 6]))


def test_layers_are_told_in_the_order_in_which_they_run() -> None:
    class Backwards(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.second, self.first = nn.Linear(5, 2), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.second(self.first(x))
            return answer

    model = Backwards()
    assert layers_run(model, torch.zeros(2, 4)) == [model.first, model.second]
    assert not model.first._forward_hooks
