"""Two narrow layers for a wide one: the same answers at full rank, the nearest ones below it, only where it pays."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from cluster.variants import TensorSpec
from tests.unit.train_jobs.compression.subjects import answers, case, parameters, same, weights
from train_jobs.compression.finetune import FinetuneConfig, finetune
from train_jobs.compression.low_rank import Layer, LowRankConfig, factor, low_rank

ROWS = TensorSpec(name="x", datatype="FP32", shape=(-1, 32))
SMALL = LowRankConfig(rank_share=0.25, first=True, last=True)

LAYERS: dict[str, tuple[Layer, tuple[int, ...]]] = {
    "linear": (nn.Linear(12, 7), (3, 12)),
    "linear, no bias": (nn.Linear(5, 9, bias=False), (3, 5)),
    "convolution": (nn.Conv2d(4, 6, 3, stride=2, padding=1), (2, 4, 9, 9)),
    "convolution, padded with itself": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="circular"), (2, 4, 9, 9)),
    "convolution with holes": (nn.Conv2d(3, 6, 3, dilation=2, bias=False), (2, 3, 9, 9)),
    "pointwise": (nn.Conv2d(8, 6, 1), (2, 8, 5, 5)),
    "transposed": (nn.ConvTranspose2d(6, 4, 4, stride=2, padding=1), (2, 6, 5, 5)),
    "transposed, odd": (nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1), (2, 6, 5, 5)),
}


def highest(layer: Layer) -> int:
    return min(layer.weight.flatten(1).shape)


@pytest.mark.parametrize("kind", LAYERS)
def test_at_full_rank_nothing_changes(kind: str) -> None:
    layer, shape = LAYERS[kind]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    two = factor(layer, highest(layer))
    with torch.inference_mode():
        torch.testing.assert_close(two(x), layer(x), atol=1e-4, rtol=1e-4)
    assert len(two) == 2
    assert (two[0].bias, two[1].bias is None) == (None, layer.bias is None), "the bias is the second's"


@settings(max_examples=20, deadline=None)
@given(inputs=st.integers(2, 9), outputs=st.integers(2, 9), rank=st.integers(1, 8), seed=st.integers(0, 1000))
def test_below_it_the_product_is_the_nearest_matrix_of_that_rank(
    inputs: int, outputs: int, rank: int, seed: int
) -> None:
    """Eckart and Young, 1936: what is missing is the singular values beyond the rank."""
    torch.manual_seed(seed)
    layer = nn.Linear(inputs, outputs)
    rank = min(rank, inputs, outputs)
    first, second = factor(layer, rank)
    off = layer.weight - second.weight @ first.weight
    beyond = torch.linalg.svdvals(layer.weight)[rank:].square().sum()
    torch.testing.assert_close(off.square().sum(), beyond, atol=1e-5, rtol=1e-3)
    torch.testing.assert_close(first.weight.norm(), second.weight.norm(), msg="half to each")


@pytest.mark.parametrize("name", ["cnn", "rows", "lstm", "mlp", "gan", "gan_dense", "autoencoder", "dense", "vae"])
def test_every_family_gets_smaller_and_learns_again(name: str) -> None:
    made = case(name)
    before = weights(made.model)
    config = LowRankConfig(rank_share=0.4, first=True, last=True, finetune=FinetuneConfig(epochs=2, validation=0.1))
    smaller = low_rank(made.model, config, inputs=made.subject.inputs)
    assert same(weights(made.model), before)
    assert parameters(smaller) < parameters(made.model)
    assert [a.shape for a in answers(smaller, made.x())] == [a.shape for a in answers(made.model, made.x())]
    tuned = finetune(smaller, made.subject, config.finetune, teacher=made.model)
    assert made.score(tuned) > made.score(smaller)
    features = made.subject.features(tuned, made.x())
    assert features is None or len(features) == 5, "distillation still finds them"


def test_recurrent_matrices_are_left_alone() -> None:
    made = case("lstm")
    smaller = low_rank(made.model, SMALL, inputs=made.subject.inputs)
    changed = {name.split(".")[1] for name in weights(smaller).keys() ^ weights(made.model).keys()}
    assert changed == {"head"}


def test_the_weights_of_a_tied_autoencoder_are_left_alone() -> None:
    made = case("tied")
    with pytest.raises(InvalidRequest, match="no layer gets smaller as two"):
        low_rank(made.model, SMALL, inputs=made.subject.inputs)


def chain(*sizes: int) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(sizes)))


@pytest.mark.parametrize(
    ("first", "last", "factored"),
    [(False, False, [1]), (True, False, [0, 1]), (False, True, [1, 2]), (True, True, [0, 1, 2])],
)
def test_the_outer_layers_are_spared_unless_told(first: bool, last: bool, factored: list[int]) -> None:
    config = LowRankConfig(rank_share=0.25, first=first, last=last)
    made = low_rank(chain(32, 32, 32, 32), config, inputs=ROWS)
    assert isinstance(made, nn.Sequential)
    assert [number for number, layer in enumerate(made) if isinstance(layer, nn.Sequential)] == factored


def test_a_layer_that_would_not_get_smaller_stays_whole() -> None:
    made = low_rank(chain(32, 16, 16, 16), LowRankConfig(rank_share=0.6, first=True), inputs=ROWS)
    assert isinstance(made, nn.Sequential)
    kinds = [type(layer) for layer in made]
    assert kinds == [nn.Sequential, nn.Linear, nn.Linear], "10 * (32 + 16) < 512, and 10 * (16 + 16) > 256"


def test_the_energy_chooses_the_rank_by_the_weights_own_spectrum() -> None:
    model = chain(32, 32, 32, 32)
    basis, _ = torch.linalg.qr(torch.randn(32, 32))
    spectrum = torch.zeros(32)
    spectrum[:4] = torch.tensor([8.0, 4.0, 2.0, 1.0])  # energies 64, 16, 4, 1 of 85
    with torch.no_grad():
        model[1].weight.copy_(basis @ torch.diag(spectrum) @ basis.t())
    for energy, rank in ((0.7, 1), (0.9, 2), (0.98, 3), (0.999, 4)):
        made = low_rank(model, LowRankConfig(energy=energy), inputs=ROWS)
        assert made.get_parameter("1.0.weight").shape == (rank, 32), energy


def test_a_layer_in_two_places_is_one_layer() -> None:
    shared = nn.Linear(32, 32)
    model = nn.Sequential(nn.Linear(32, 32), shared, nn.Sequential(shared), nn.Linear(32, 4))
    made = low_rank(model, LowRankConfig(rank_share=0.25), inputs=ROWS)
    assert isinstance(made, nn.Sequential)
    assert made[1] is made[2][0]
    assert isinstance(made[1], nn.Sequential)


class OneMatrix(nn.Module):
    """Two layers, one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.a, self.b, self.out = (nn.Linear(32, 32) for _ in range(4))
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.out(self.b(self.a(self.into(x))))
        return answer


def test_a_matrix_of_two_layers_stays() -> None:
    with pytest.raises(InvalidRequest, match="no layer gets smaller"):
        low_rank(OneMatrix(), LowRankConfig(rank_share=0.25), inputs=ROWS)


def test_grouped_convolutions_stay() -> None:
    pictures = TensorSpec(name="x", datatype="FP32", shape=(-1, 16, 6, 6))
    model = nn.Sequential(*(nn.Conv2d(16, 16, 3, groups=groups, padding=1) for groups in (1, 4, 1)))
    with pytest.raises(InvalidRequest, match="no layer gets smaller"):
        low_rank(model, LowRankConfig(rank_share=0.25), inputs=pictures)


def test_the_model_itself_may_be_the_layer() -> None:
    assert isinstance(low_rank(nn.Linear(32, 32), SMALL, inputs=ROWS), nn.Sequential)


def test_where_nothing_gets_smaller_the_way_out_is_told() -> None:
    said = r"no layer gets smaller as two at energy=1, rank_share=None; lower them, or set first=true \(now False\) or "
    with pytest.raises(InvalidRequest, match=said):
        low_rank(chain(32, 32, 32, 32), LowRankConfig(energy=1.0), inputs=ROWS)


def test_other_inputs_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"does not run on 'x' \(RuntimeError.*leave this pass out"):
        low_rank(chain(7, 32, 32, 32), LowRankConfig(), inputs=ROWS)


@pytest.mark.parametrize("rank", [0, 8])
def test_a_rank_that_a_layer_has_not_is_refused(rank: int) -> None:
    with pytest.raises(InvalidRequest, match=rf"rank={rank} is not in 1 to 7"):
        factor(nn.Linear(12, 7), rank)


@pytest.mark.parametrize("wrong", [{"energy": 0.0}, {"energy": 1.1}, {"rank_share": 0.0}, {"rank": 3}])
def test_a_config_out_of_bounds_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        LowRankConfig.model_validate(wrong)
