"""Pruning: whole channels go with all that depends on them, the least ones first, and the answers keep their shape."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import onnxruntime as ort
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.errors import InvalidRequest
from cluster.variants import TensorSpec
from train_jobs.compression.prune import PruneConfig, prune
from train_jobs.datasets import LabelledDataset
from train_jobs.export import INPUT, to_onnx
from train_jobs.loop import TrainResult

ROWS = TensorSpec(name="x", datatype="FP32", shape=(-1, 32))


@pytest.fixture(scope="module")
def pruned(trained: TrainResult) -> nn.Module:
    return prune(trained.model, PruneConfig(), inputs=INPUT)


def widths(model: nn.Module) -> list[tuple[int, int]]:
    """(in, out) of each layer with weights."""
    return [
        (m.in_channels, m.out_channels) if isinstance(m, nn.Conv2d) else (m.in_features, m.out_features)
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def test_every_hidden_layer_is_narrower_in_multiples_of_eight_and_the_answers_are_not(
    trained: TrainResult, pruned: nn.Module
) -> None:
    before, after = widths(trained.model), widths(pruned)
    assert [out for _, out in before] == [32, 64, 64, 64, 10]
    assert [out for _, out in after] == [16, 40, 40, 40, 10], "0.7 of each, down to a multiple of eight"
    assert [into for into, _ in after] == [1, 16, 40, 40 * 9, 40], "what reads a channel shrinks with it"
    assert parameters(pruned) < 0.45 * parameters(trained.model)


def test_a_higher_ratio_takes_more(trained: TrainResult, pruned: nn.Module) -> None:
    half = prune(trained.model, PruneConfig(ratio=0.5), inputs=INPUT)
    fine = prune(trained.model, PruneConfig(round_to=1), inputs=INPUT)
    assert parameters(half) < parameters(pruned) < parameters(fine) < parameters(trained.model)
    assert [out for _, out in widths(fine)] == [22, 44, 44, 44, 10]


def test_the_channels_with_the_least_norm_in_their_group_go(trained: TrainResult, pruned: nn.Module) -> None:
    first, second = trained.model.features[0], trained.model.features[3]
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.Conv2d)
    norms = first.weight.square().sum((1, 2, 3)) + second.weight.square().sum((0, 2, 3))
    expected = first.weight[norms.argsort(descending=True)[:16].sort().values]
    kept = pruned.get_parameter("features.0.weight")
    assert torch.equal(kept, expected), "and what stays is as it was"


def test_its_graph_computes_what_the_pruned_module_computes(pruned: nn.Module, digits: LabelledDataset) -> None:
    session = ort.InferenceSession(to_onnx(pruned), providers=["CPUExecutionProvider"])
    for batch in (1, 3, 64):
        pictures = digits.x_test[:batch]
        with torch.inference_mode():
            expected = pruned(torch.from_numpy(pictures)).numpy()
        assert expected.shape == (batch, 10)
        assert np.abs(expected).max() > 1.0
        np.testing.assert_allclose(session.run(None, {"image": pictures})[0], expected, atol=1e-4)


def test_the_same_model_is_pruned_alike_and_the_model_itself_stays_as_it_was(trained: TrainResult) -> None:
    model = copy.deepcopy(trained.model).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, again = (prune(model, PruneConfig(), inputs=INPUT) for _ in range(2))
    assert model.training
    assert not first.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    for name, tensor in first.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])


@contextmanager
def no_grad(model: nn.Module) -> Iterator[None]:
    with torch.no_grad():
        yield


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    model.requires_grad_(False)
    yield
    assert not any(p.requires_grad for p in model.parameters()), "the caller's stays frozen"


@pytest.mark.parametrize("state", [no_grad, frozen])
def test_a_model_made_for_inference_is_pruned_as_well(trained: TrainResult, pruned: nn.Module, state: object) -> None:
    model = copy.deepcopy(trained.model)
    with state(model):  # type: ignore[operator]
        made = prune(model, PruneConfig(), inputs=INPUT)
    assert widths(made) == widths(pruned)
    assert all(p.requires_grad for p in made.parameters()), "fine-tuning is what comes next"


class Residual(nn.Module):
    """A skip, a depthwise convolution and normalisations: all of one width."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.depth, self.point = nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.Conv2d(32, 32, 1)
        self.last_norm, self.last = nn.BatchNorm1d(32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        a = torch.relu(self.norm(self.first(x.float() / 255.0)))
        b = a + self.point(self.depth(a))
        logits: Tensor = self.last(self.last_norm(b.mean((2, 3))))
        return logits


def test_layers_that_are_added_up_lose_the_same_channels(digits: LabelledDataset) -> None:
    torch.manual_seed(0)
    made = prune(Residual(), PruneConfig(), inputs=INPUT)
    assert widths(made) == [(1, 16), (16, 16), (16, 16), (16, 10)]
    assert isinstance(made, Residual)
    assert (made.norm.num_features, made.depth.groups, made.last_norm.num_features) == (16, 16, 16)
    with torch.inference_mode():
        assert made(torch.from_numpy(digits.x_test[:5])).shape == (5, 10)


class OnTheSide(nn.Module):
    """What runs last here is not what answers, so what answers would be pruned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(32, 64), nn.Linear(32, 64)

    def forward(self, x: Tensor) -> Tensor:
        answer: Tensor = self.a(x)
        self.b(x)
        return answer


def mlp(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(32, hidden), nn.ReLU(), nn.Linear(hidden, 4))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (OnTheSide(), r"would change the output from \[2, 64\] to \[2, 40\]; leave it out"),
        (nn.Linear(32, 4), r"no layer has channels to spare at ratio=0\.3 in steps of round_to=8; raise the ratio or"),
        (mlp(8), "no layer has channels to spare"),
        (nn.Flatten(), "no layer has channels to spare"),
        (nn.Linear(7, 4), r"cannot be pruned as a graph \(RuntimeError.*leave pruning out"),
    ],
    ids=["side head", "one layer", "narrow", "no layer", "other inputs"],
)
def test_what_cannot_be_pruned_is_refused_with_the_reason(model: nn.Module, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said):
        prune(model, PruneConfig(), inputs=ROWS)


def test_a_narrow_layer_is_pruned_in_smaller_steps() -> None:
    assert widths(prune(mlp(8), PruneConfig(round_to=4), inputs=ROWS)) == [(32, 4), (4, 4)]


@pytest.mark.parametrize("wrong", [{"ratio": 0.0}, {"ratio": 1.0}, {"round_to": 0}, {"rate": 0.5}])
def test_a_config_out_of_bounds_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PruneConfig.model_validate(wrong)
