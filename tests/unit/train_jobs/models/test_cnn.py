"""The CNN: the classic sizes, preprocessing inside, pooling before ReLU changes nothing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from cluster.errors import ConfigError
from train_jobs.models import CNN, CNNConfig


def pictures(count: int = 8) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_it_is_the_classic_one() -> None:
    model = CNNConfig().build((1, 28, 28), (10,))
    shapes = [tuple(m.weight.shape) for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert shapes == [(32, 1, 3, 3), (64, 32, 3, 3), (64, 64, 3, 3), (64, 576), (10, 64)]
    assert sum(p.numel() for p in model.parameters()) == 93_322
    assert model(pictures()).shape == (8, 10)


def test_pooling_before_relu_computes_the_textbook_order_bit_for_bit() -> None:
    model = CNN().eval()
    conv1, conv2, conv3 = (m for m in model.features if isinstance(m, nn.Conv2d))
    x = model.preprocess(pictures())
    x = F.max_pool2d(F.relu(conv1(x)), 2)
    x = F.max_pool2d(F.relu(conv2(x)), 2)
    textbook = model.head(F.relu(conv3(x)))
    assert torch.equal(model(pictures()), textbook)


def test_preprocessing_normalises_with_numbers_that_travel_with_the_weights() -> None:
    model = CNN()
    model.preprocess.normalise(0.25, 0.5)
    x = pictures()
    expected = (x.to(torch.float32) / 255.0 - 0.25) / 0.5
    assert torch.allclose(model.preprocess(x), expected, atol=1e-6)
    other = CNN()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.preprocess(x), model.preprocess(x))
    assert model.preprocess.describe() == "uint8 0..255 -> (x / 255 - 0.2500) / 0.5000; inside the graph"


def test_without_constants_pictures_stay_between_nought_and_one() -> None:
    x = CNN().preprocess(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
    assert torch.allclose(x, torch.tensor([[[[0.0, 1.0]]]]))


def test_dropout_acts_in_training_only() -> None:
    model = CNN(dropout=0.5)
    torch.manual_seed(0)
    assert not torch.equal(model.train()(pictures()), model(pictures()))
    assert torch.equal(model.eval()(pictures()), model(pictures()))


@pytest.mark.parametrize("inputs", [(3, 32, 32), (1, 28, 40), (1, 18, 18)])
def test_it_takes_other_pictures_and_widths(inputs: tuple[int, ...]) -> None:
    model = CNNConfig(width=0.25, activation="gelu").build(inputs, (7,))
    x = torch.randint(0, 256, (3, *inputs), dtype=torch.uint8)
    assert model(x).shape == (3, 7)
    assert model.penultimate(x).shape == (3, 16)
    assert [m.out_channels for m in model.features if isinstance(m, nn.Conv2d)] == [8, 16, 16]


@pytest.mark.parametrize(("inputs", "outputs"), [((28, 28), (10,)), ((1, 16, 16), (10,)), ((1, 28, 28), (24, 7))])
def test_shapes_that_it_does_not_take_are_refused_with_the_way_out(
    inputs: tuple[int, ...], outputs: tuple[int, ...]
) -> None:
    with pytest.raises(ConfigError, match=r"model.kind=cnn takes pictures of 18x18 or more .*mlp takes any shape"):
        CNNConfig().build(inputs, outputs)


def test_its_blocks_hold_all_that_it_learns() -> None:
    model = CNN()
    held = [id(p) for block in model.blocks() for p in block.parameters()]
    assert held == [id(p) for p in model.parameters()], "each once, from the input to the head"
