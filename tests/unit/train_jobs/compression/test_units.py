"""Hidden units: all of a unit goes, from every gate and every reader; what stays computes as if it had been masked."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from train_jobs.compression.units import Units, has_units, units_of
from train_jobs.models import CNN, Autoencoder, AutoencoderConfig, Recurrent, RecurrentConfig
from train_jobs.models.forecaster import FramingConfig


def saliency(model: nn.Module) -> dict[Tensor, Tensor]:
    return {p: p.detach().square() for p in model.parameters()}


def masked(model: Recurrent, kept: list[Tensor]) -> Recurrent:
    """The whole network, in which nobody reads the units that are not kept."""
    made = copy.deepcopy(model)
    with torch.no_grad():
        for number, (layer, stays) in enumerate(zip(made.layers, kept, strict=True)):
            gone = torch.ones(layer.hidden_size, dtype=torch.bool)
            gone[stays] = False
            layer.weight_hh_l0[:, gone] = 0.0
            last = number + 1 == len(made.layers)
            (made.head.weight if last else made.layers[number + 1].weight_ih_l0)[:, gone] = 0.0
    return made


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(["lstm", "rnn"]), hidden=st.integers(2, 9), layers=st.integers(1, 3), data=st.data(),
    seed=st.integers(0, 1000),
)  # fmt: skip
def test_a_pruned_network_equals_the_masked_one(
    kind: Literal["lstm", "rnn"], hidden: int, layers: int, data: st.DataObject, seed: int
) -> None:
    torch.manual_seed(seed)
    model = Recurrent(RecurrentConfig(kind=kind, hidden=hidden, layers=layers, patch=2), (8, 3), (4, 2)).eval()
    for p in model.parameters():  # what begins at nought, biases, would hide a wrong row
        p.data += 0.2 * torch.randn(p.shape)
    chosen = st.lists(st.integers(0, hidden - 1), min_size=1, unique=True).map(sorted)
    kept = [torch.tensor(data.draw(chosen)) for _ in range(layers)]
    pruned = copy.deepcopy(model)
    for units, stays in zip(units_of(pruned), kept, strict=True):
        units.keep(stays)
    assert [layer.hidden_size for layer in pruned.layers] == [len(stays) for stays in kept]
    x = torch.randn(5, 8, 3)
    with torch.inference_mode():
        torch.testing.assert_close(pruned(x), masked(model, kept)(x), atol=1e-5, rtol=1e-4)


def test_every_tensor_of_a_layer_shrinks_with_it_and_the_outer_ones_do_not() -> None:
    model = Recurrent(RecurrentConfig(hidden=16, layers=2), (8, 3), (5,))
    for units in units_of(model):
        units.keep(torch.arange(10))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    assert shapes["layers.0.weight_ih_l0"] == (40, 3), "the series' channels stay"
    assert shapes["layers.0.weight_hh_l0"] == shapes["layers.1.weight_ih_l0"] == (40, 10)
    assert shapes["layers.1.weight_hh_l0"] == (40, 10)
    assert all(shapes[f"layers.{n}.bias_{kind}_l0"] == (40,) for n in (0, 1) for kind in ("ih", "hh"))
    assert (shapes["head.weight"], shapes["head.bias"]) == ((5, 10), (5,)), "the answers stay"
    first, second = model.layers
    assert (first.hidden_size, second.input_size, model.head.in_features) == (10, 10, 10)  # type: ignore[union-attr]


def test_the_importance_is_the_squares_of_what_goes_in_and_out() -> None:
    torch.manual_seed(0)
    model = Recurrent(RecurrentConfig(hidden=3), (4, 2), (5,))
    (units,) = units_of(model)
    layer, head = model.layers[0], model.head.weight
    expected = []
    for unit in range(3):
        rows = [gate * 3 + unit for gate in range(4)]
        into = layer.weight_ih_l0[rows].square().sum() + layer.weight_hh_l0[rows].square().sum()  # type: ignore[index]
        out = layer.weight_hh_l0[:, unit].square().sum() + head[:, unit].square().sum()  # type: ignore[index]
        expected.append(into + out)
    wanted = torch.stack(expected).detach()
    torch.testing.assert_close(units.importance(saliency(model)), wanted / wanted.mean())
    assert units.importance({}) is None, "nothing says"


def tied(hidden: tuple[int, ...]) -> Autoencoder:
    torch.manual_seed(0)
    config = AutoencoderConfig(layers="dense", hidden=hidden, latent=3, tied=True, output="identity")
    model = config.build((6,), (6,))
    for p in model.parameters():
        p.data += 0.2 * torch.randn(p.shape)
    return model.eval()


def test_a_tied_unit_goes_from_the_encoder_and_from_the_decoder() -> None:
    model = tied((8, 5))
    kept = [torch.tensor([0, 2, 3, 7]), torch.tensor([1, 4])]
    masked = copy.deepcopy(model)
    with torch.no_grad():
        for (layer, reader), bias, stays in zip(
            (masked.encoder[1::2][:2], masked.encoder[3::2][:2]), reversed(list(masked.decoder.biases)[:2]), kept,
            strict=True,
        ):  # fmt: skip
            gone = torch.ones(layer.out_features, dtype=torch.bool)
            gone[stays] = False
            layer.weight[gone], layer.bias[gone], reader.weight[:, gone], bias[gone] = 0.0, 0.0, 0.0, 0.0
    pruned = copy.deepcopy(model)
    for units, stays in zip(units_of(pruned), kept, strict=True):
        units.keep(stays)
    x = torch.randn(4, 6)
    with torch.inference_mode():
        torch.testing.assert_close(pruned(x), masked(x), atol=1e-5, rtol=1e-4)
    assert pruned.encode(x).shape == (4, 3), "the code stays"
    assert pruned.encoder[1].out_features == pruned.encoder[3].in_features == 4  # type: ignore[union-attr]


def test_models_are_found_wherever_they_are() -> None:
    framed = FramingConfig().around(RecurrentConfig(hidden=4).build, (8, 2), (3, 2))
    assert [(units.name, units.size, units.parts) for units in units_of(framed)] == [("body.layers.0", 4, 1)]
    assert [units.name for units in units_of(tied((8, 5)))] == ["encoder.1", "encoder.3"]
    assert units_of(tied(())) == units_of(CNN()) == []
    assert [has_units(model) for model in (framed, tied((4,)), nn.LSTM(2, 3), CNN())] == [True, True, True, False]


def test_a_recurrent_layer_with_unknown_readers_is_refused() -> None:
    own = nn.Sequential(nn.Flatten(), nn.GRU(4, 4))
    with pytest.raises(InvalidRequest, match="1 is a GRU of the model's own, and who reads its units is not known; le"):
        units_of(own)


def test_a_head_that_is_two_layers_by_now_is_refused() -> None:
    model = Recurrent(RecurrentConfig(hidden=4), (8, 1), (3,))
    model.head = nn.Sequential(nn.Linear(4, 2), nn.Linear(2, 3))  # type: ignore[assignment]
    with pytest.raises(InvalidRequest, match=r"head is a Sequential, no nn\.Linear; prune before other passes"):
        units_of(model)


def test_what_is_left_learns_and_is_exported_by_name() -> None:
    """The cell keeps lists of its weights beside their names: they must be the new ones."""
    model = Recurrent(RecurrentConfig(hidden=6), (4, 2), (3,))
    (units,) = units_of(model)
    assert isinstance(units, Units)
    units.keep(torch.tensor([1, 2]))
    model(torch.randn(3, 4, 2)).square().mean().backward()
    for name, p in model.named_parameters():
        assert p.grad is not None, name
        assert p.grad.shape == p.shape
