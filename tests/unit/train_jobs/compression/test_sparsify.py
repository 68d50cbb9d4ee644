"""Zeros among the weights: as many as asked for, the smallest ones, and they stay through fine-tuning."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from tests.unit.train_jobs.compression.subjects import FAMILIES, answers, case, same, weights
from train_jobs.compression.finetune import FinetuneConfig, finetune
from train_jobs.compression.sparsify import SparsifyConfig, masks, sparsify, zeros

TWO_OF_FOUR = SparsifyConfig(kind="2:4")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_gets_its_share_of_zeros_and_keeps_them_while_it_learns(name: str) -> None:
    made = case(name)
    before = weights(made.model)
    config = SparsifyConfig(sparsity=0.7, finetune=FinetuneConfig(epochs=2, batch_size=64, validation=0.1))
    sparse = sparsify(made.model, config)
    assert same(weights(made.model), before)
    assert zeros(made.model) < 0.01
    assert zeros(sparse) == pytest.approx(0.7, abs=1e-3)
    held = masks(sparse)
    tuned = finetune(sparse, made.subject, config.finetune, teacher=made.model, frozen_zeros=held)
    assert made.score(tuned) > made.score(sparse)
    for parameter, zero in held.items():
        assert bool((tuned.get_parameter(parameter)[zero] == 0).all()), parameter
    assert zeros(tuned) == pytest.approx(0.7, abs=1e-3)
    assert [a.shape for a in answers(tuned, made.x())] == [a.shape for a in answers(made.model, made.x())]


@pytest.mark.parametrize("name", ["cnn", "lstm", "gan", "autoencoder", "tied"])
def test_two_of_four_hold_in_every_family_while_it_learns(name: str) -> None:
    made = case(name)
    sparse = sparsify(made.model, TWO_OF_FOUR)
    config = FinetuneConfig(epochs=1, batch_size=64, validation=0.1)
    tuned = finetune(sparse, made.subject, config, teacher=made.model, frozen_zeros=masks(sparse))
    assert 0.3 < zeros(tuned) <= 0.5
    assert zeros(tuned) == zeros(sparse)


LAYERS = {
    "linear": lambda: nn.Linear(8, 5),
    "convolution": lambda: nn.Conv2d(8, 5, 3),
    "transposed": lambda: nn.ConvTranspose2d(8, 5, 3),
    "lstm": lambda: nn.LSTM(8, 4),
}
INPUTS = {"linear": 1, "convolution": 1, "transposed": 0}


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(sorted(INPUTS)), seed=st.integers(0, 1000))
def test_of_every_four_along_the_inputs_the_two_largest_stay(kind: str, seed: int) -> None:
    torch.manual_seed(seed)
    layer = nn.Sequential(LAYERS[kind]())
    both = (layer, sparsify(layer, TWO_OF_FOUR))
    before, after = (each.get_parameter("0.weight").movedim(INPUTS[kind], -1).reshape(-1, 4) for each in both)
    assert bool(((after == 0).sum(1) == 2).all())
    largest = before.abs().topk(2, dim=1).indices
    assert torch.equal(after.gather(1, largest), before.gather(1, largest)), "untouched"


@settings(max_examples=20, deadline=None)
@given(kind=st.sampled_from(sorted(LAYERS)), share=st.floats(0.05, 0.7), seed=st.integers(0, 1000))
def test_by_magnitude_nothing_that_stays_is_smaller_than_what_goes(kind: str, share: float, seed: int) -> None:
    torch.manual_seed(seed)
    model = nn.Sequential(LAYERS[kind](), nn.Linear(8, 8))
    for scope in ("local", "global"):
        sparse = sparsify(model, SparsifyConfig.model_validate({"sparsity": share, "scope": scope}))
        pairs = [(model.get_parameter(name), zero) for name, zero in masks(sparse).items()]
        relative = torch.cat([(w / w.square().mean().sqrt()).flatten() for w, _ in pairs])
        everything = [(relative, torch.cat([z.flatten() for _, z in pairs]))]
        for weight, zero in everything if scope == "global" else pairs:
            gone, stays = weight[zero].abs(), weight[~zero].abs()
            assert not len(gone) or not len(stays) or gone.max() <= stays.min()


def test_the_share_is_that_of_each_layer_or_of_all_together() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 10), nn.Linear(10, 10))
    with torch.no_grad():
        model[0].weight *= 100  # of no consequence: they are all larger
        model[1].weight[:8] *= 1e-3  # of consequence: most are small beside the others of their layer
    local = masks(sparsify(model, SparsifyConfig(sparsity=0.5, scope="local")))
    assert [int(zero.sum()) for zero in local.values()] == [100, 50]
    together = masks(sparsify(model, SparsifyConfig(sparsity=0.3, scope="global")))
    assert int(sum(zero.sum() for zero in together.values())) == 90
    assert int(together["1.weight"][:8].sum()) > 75, "the smallest of their layer go first"
    assert int(together["0.weight"].sum()) > 0


def test_biases_and_normalisations_stay() -> None:
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.BatchNorm2d(8), nn.GroupNorm(2, 8))
    sparse = sparsify(model, SparsifyConfig(sparsity=0.9))
    for name, p in model.named_parameters():
        assert torch.equal(p, sparse.get_parameter(name)) == (name != "0.weight")


def test_all_gates_of_a_cell_take_part() -> None:
    sparse = sparsify(nn.Sequential(nn.LSTM(8, 4)), SparsifyConfig(sparsity=0.5, scope="local"))
    assert sorted(masks(sparse)) == ["0.weight_hh_l0", "0.weight_ih_l0"]


class Twice(nn.Module):
    """One matrix by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(8, 8), nn.Linear(8, 8)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.other(self.one(x))
        return answer


def test_a_shared_weight_is_one_weight() -> None:
    sparse = sparsify(Twice(), SparsifyConfig(sparsity=0.5))
    assert isinstance(sparse, Twice)
    assert sparse.one.weight is sparse.other.weight
    assert list(masks(sparse)) == ["one.weight"]
    assert zeros(sparse) == 0.5


def test_inputs_that_do_not_come_in_fours_stay_dense() -> None:
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 3))
    assert list(masks(sparsify(model, TWO_OF_FOUR))) == ["1.weight"]


@pytest.mark.parametrize(
    ("model", "config", "said"),
    [
        (nn.Sequential(nn.ReLU()), SparsifyConfig(), "no layer of the model can .* by kind=magnitude.*leave"),
        (nn.Linear(3, 4), TWO_OF_FOUR, "no layer .* by kind=2:4, .* of inputs in fours; take kind=magnitude"),
    ],
)
def test_a_model_without_such_layers_is_refused(model: nn.Module, config: SparsifyConfig, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        sparsify(model, config)


def test_a_layer_that_would_lose_all_of_its_weights_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 1))
    with torch.no_grad():
        model[0].weight.normal_()
        model[1].weight.fill_(1.0)  # none stands out
    with pytest.raises(InvalidRequest, match=r"sparsity=0\.9 leaves no weight of 1\.weight; lower it, or set scope="):
        sparsify(model, SparsifyConfig(sparsity=0.9))
    assert zeros(sparsify(model, SparsifyConfig(sparsity=0.9, scope="local"))) == 0.9


def test_zeros_are_counted_among_the_weights_that_could_be() -> None:
    model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2))
    with torch.no_grad():
        model[0].weight[0] = 0.0
    assert zeros(model) == 0.5
    assert zeros(nn.ReLU()) == 0.0
    assert masks(copy.deepcopy(model))["0.weight"].sum() == 4


@pytest.mark.parametrize(
    "wrong", [{"sparsity": 0.0}, {"sparsity": 1.0}, {"kind": "1:4"}, {"kind": "2:4", "sparsity": 0.9}, {"share": 0.5}]
)
def test_a_config_that_means_nothing_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=list(wrong)[-1]):
        SparsifyConfig.model_validate(wrong)


def test_a_config_comes_back_from_the_manifest() -> None:
    for config in (SparsifyConfig(), TWO_OF_FOUR):
        assert SparsifyConfig.model_validate(config.model_dump(mode="json")) == config
