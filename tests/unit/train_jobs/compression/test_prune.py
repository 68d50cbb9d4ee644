"""Pruning: whole channels go with all that depends on them, the least ones first, and the answers keep their shape."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from cluster.errors import ConfigError, InvalidRequest
from cluster.variants import TensorSpec
from tests.unit.train_jobs.compression.subjects import (
    CODERS,
    FAMILIES,
    GENERATORS,
    answers,
    case,
    classify,
    ensemble,
    few,
    parameters,
    same,
    weights,
)
from train_jobs.compression.finetune import FinetuneConfig, finetune
from train_jobs.compression.low_rank import LowRankConfig, low_rank
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


@pytest.mark.parametrize(
    "wrong", [{"ratio": 0.0}, {"ratio": 1.0}, {"round_to": 0}, {"rate": 0.5}, {"steps": 0}, {"importance": "luck"}]
)
def test_a_config_out_of_bounds_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=next(iter(wrong))):
        PruneConfig.model_validate(wrong)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("importance", ["magnitude", "taylor"])
def test_every_family_gets_smaller_and_answers_as_before(name: str, importance: str) -> None:
    made = case(name)
    config = PruneConfig.model_validate({"ratio": 0.4, "round_to": 4, "importance": importance})
    if importance == "taylor" and name in GENERATORS:
        with pytest.raises(InvalidRequest, match=r"importance=taylor finds no gradient .* family gan .*=magnitude"):
            prune(made.model, config, inputs=made.subject.inputs, subject=made.subject)
        return
    before = weights(made.model)
    smaller = prune(made.model, config, inputs=made.subject.inputs, subject=made.subject)
    assert same(weights(made.model), before)
    assert parameters(smaller) < 0.75 * parameters(made.model)
    told, was = answers(smaller, made.x()), answers(made.model, made.x())
    assert [a.shape for a in told] == [a.shape for a in was]
    assert all(bool(a.isfinite().all()) for a in told)
    assert not all(torch.allclose(a, b) for a, b in zip(told, was, strict=True)), "something was taken"


@pytest.mark.parametrize("name", ["cnn", "lstm", "tied", "autoencoder", "gan", "gan_batch", "gan_dense"])
def test_what_was_pruned_is_learnt_again(name: str) -> None:
    made = case(name)
    config = PruneConfig(ratio=0.3, round_to=4, finetune=FinetuneConfig(epochs=2, batch_size=64, validation=0.1))
    smaller = prune(made.model, config, inputs=made.subject.inputs)
    tuned = finetune(smaller, made.subject, config.finetune, teacher=made.model)
    assert made.score(tuned) > made.score(smaller)


@pytest.mark.parametrize("name", CODERS)
def test_the_code_of_an_autoencoder_stays(name: str) -> None:
    made = case(name)
    smaller = prune(made.model, PruneConfig(ratio=0.5, round_to=1), inputs=made.subject.inputs)
    with torch.inference_mode():
        assert smaller.penultimate(made.x()).shape == (5, 6)  # type: ignore[operator]


def test_the_beginning_of_a_generator_shrinks_and_its_latents_stay() -> None:
    made = case("gan")
    smaller = prune(made.model, PruneConfig(ratio=0.5), inputs=made.subject.inputs)
    assert isinstance(smaller, nn.Sequential)
    linear, unflatten, norm, _, second, *_ = smaller
    assert (linear.in_features, linear.out_features) == (8, 16 * 49)
    assert (unflatten.unflattened_size, norm.num_channels, norm.num_groups) == ((16, 7, 7), 16, 8)
    assert (second.in_channels, second.out_channels) == (16, 8)
    assert [type(layer) for layer in smaller] == [type(layer) for layer in made.model], "nothing is wrapped any more"


def test_recurrent_units_go_in_multiples_and_the_least_first() -> None:
    made = case("rnn")
    smaller = prune(made.model, PruneConfig(ratio=0.3), inputs=made.subject.inputs)
    was: Any = made.model.body
    now: Any = smaller.body
    assert now.layers[0].hidden_size == now.head.in_features == 8, "0.7 of 16, down to a multiple of eight"
    layer, head = was.layers[0], was.head
    norms = layer.weight_ih_l0.square().sum(1) + layer.weight_hh_l0.square().sum(1)
    norms = norms + layer.weight_hh_l0.square().sum(0) + head.weight.square().sum(0)
    kept = norms.argsort(descending=True)[:8].sort().values
    assert torch.equal(now.head.weight, head.weight[:, kept])


def test_an_ensemble_is_pruned_member_by_member() -> None:
    made, model = case("cnn"), ensemble("cnn")
    smaller = prune(model, PruneConfig(), inputs=INPUT)
    assert parameters(smaller) < 0.6 * parameters(model)
    assert answers(smaller, made.x())[0].shape == (5, 10)


def test_globally_the_layers_that_matter_least_lose_most() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 4))
    with torch.no_grad():
        model[0].weight[:30] *= 0.01  # most of the first layer's units do next to nothing
        model[2].weight[:, :30] *= 0.01
    local = widths(prune(model, PruneConfig(ratio=0.4, round_to=1), inputs=ROWS))
    everywhere = widths(prune(model, PruneConfig(ratio=0.4, round_to=1, scope="global"), inputs=ROWS))
    assert [out for _, out in local] == [24, 24, 4]
    first, second = (out for _, out in everywhere[:2])
    assert first + second == 48, "the same number altogether"
    assert first < second


def test_where_gradients_vanish_channels_go_first_however_large(few_digits: LabelledDataset) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Scaled(), nn.Flatten(), nn.Linear(784, 16), nn.ReLU(), nn.Linear(16, 10))
    with torch.no_grad():
        model[2].weight[:8] *= 100.0
        model[2].bias[:8] = -1e6  # never active: no gradient
    subject = classify(few_digits)
    settings = {"ratio": 0.5, "round_to": 1}
    for importance, expected in (("magnitude", slice(0, 8)), ("taylor", slice(8, 16))):
        config = PruneConfig.model_validate({"importance": importance, **settings})
        made = prune(model, config, inputs=INPUT, subject=subject)
        assert torch.equal(made.get_parameter("2.weight"), model.get_parameter("2.weight")[expected]), importance


class Scaled(nn.Module):
    """Pictures in 0..1."""

    def forward(self, x: Tensor) -> Tensor:
        return x.float() / 255.0


def test_the_scales_of_batch_normalisation_choose() -> None:
    torch.manual_seed(0)
    model = Residual()
    with torch.no_grad():
        model.norm.weight.copy_(torch.arange(1.0, 33.0))
        model.first.weight[:16] *= 1000.0
    scales = torch.arange(1.0, 33.0)
    for importance, kept in (("magnitude", slice(0, 16)), ("bn_scale", slice(16, 32))):
        config = PruneConfig.model_validate({"ratio": 0.5, "importance": importance})
        made = prune(model, config, inputs=INPUT)
        assert torch.equal(made.get_parameter("norm.weight"), scales[kept]), importance


def test_the_scales_of_a_generator_choose_among_its_channels() -> None:
    made = case("gan_batch")
    config = PruneConfig(ratio=0.5, round_to=1, importance="bn_scale")
    smaller = prune(made.model, config, inputs=made.subject.inputs)
    scales = made.model.get_parameter("2.weight")
    assert torch.equal(smaller.get_parameter("2.weight"), scales[scales.abs().argsort()[16:].sort().values])


@pytest.mark.parametrize("name", ["cnn", "gan", "gan_dense", "autoencoder", "dense", "vae", "mlp"])
def test_what_is_two_layers_by_now_is_pruned_as_well(name: str) -> None:
    made = case(name)
    factored = low_rank(made.model, LowRankConfig(rank_share=0.3, first=True), inputs=made.subject.inputs)
    smaller = prune(factored, PruneConfig(ratio=0.4, round_to=1), inputs=made.subject.inputs)
    assert parameters(smaller) < 0.8 * parameters(factored)
    assert [a.shape for a in answers(smaller, made.x())] == [a.shape for a in answers(made.model, made.x())]


def test_without_batch_normalisation_its_scales_are_refused(trained: TrainResult) -> None:
    with pytest.raises(InvalidRequest, match=r"importance=bn_scale reads .* the model has none; take importance="):
        prune(trained.model, PruneConfig(importance="bn_scale"), inputs=INPUT)


def test_several_steps_end_where_one_does(trained: TrainResult) -> None:
    once = prune(trained.model, PruneConfig(round_to=1), inputs=INPUT)
    stepwise = prune(trained.model, PruneConfig(round_to=1, steps=3), inputs=INPUT)
    assert widths(stepwise) == widths(once)
    made = case("lstm")
    units = [
        prune(made.model, PruneConfig(ratio=0.5, round_to=2, steps=steps), inputs=made.subject.inputs)
        for steps in (1, 2, 4)
    ]
    cells = [[m.hidden_size for m in each.modules() if isinstance(m, nn.LSTM)] for each in units]
    assert cells == [[8, 8]] * 3


def test_between_the_steps_it_learns(trained: TrainResult) -> None:
    told: list[str] = []
    subject = classify(few())
    between = FinetuneConfig(epochs=1, batch_size=16, validation=0.1)
    config = PruneConfig(ratio=0.8, steps=2, between=between)
    tuned = prune(trained.model, config, inputs=INPUT, subject=subject, notify=told.append)
    untuned = prune(trained.model, config.model_copy(update={"between": None}), inputs=INPUT)
    assert told[0] == "pruned by 40%, step 1 of 2"
    assert [line.split(":")[0] for line in told[1:]] == ["fine-tune epoch 1/1"], "not after the last step"
    assert widths(tuned) == widths(untuned)
    assert not same(weights(tuned), weights(untuned))


def test_between_the_steps_a_generator_learns_from_the_whole_one() -> None:
    made = case("gan")
    config = PruneConfig(ratio=0.5, steps=2, between=FinetuneConfig(epochs=1, batch_size=512))
    told: list[str] = []
    smaller = prune(made.model, config, inputs=made.subject.inputs, subject=made.subject, notify=told.append)
    assert len(told) == 2
    assert answers(smaller, made.x())[0].shape == (5, 1, 28, 28)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (PruneConfig(importance="taylor"), "importance=taylor takes gradients on samples; pass subject="),
        (PruneConfig(steps=2, between=FinetuneConfig()), "between fine-tunes on samples; pass subject="),
    ],
)
def test_samples_that_are_wanted_and_not_given_are_asked_for(
    config: PruneConfig, said: str, trained: TrainResult
) -> None:
    with pytest.raises(ConfigError, match=said):
        prune(trained.model, config, inputs=INPUT)


@pytest.mark.parametrize("scope", ["local", "global"])
def test_a_ratio_that_would_empty_a_layer_names_it(scope: str) -> None:
    config = PruneConfig.model_validate({"ratio": 0.99, "round_to": 1, "scope": scope})
    way_out = "; lower the ratio" + (", or set scope=local" if scope == "global" else "")
    with pytest.raises(InvalidRequest, match=r"ratio=0\.99 leaves none of the 8 channels of 0" + way_out):
        prune(mlp(8), config, inputs=ROWS)
    made = case("rnn")
    with pytest.raises(InvalidRequest, match=r"leaves none of the 16 channels of body\.layers\.0" + way_out):
        prune(made.model, config, inputs=made.subject.inputs)


def test_rounding_leaves_a_multiple_at_least() -> None:
    assert widths(prune(mlp(16), PruneConfig(ratio=0.7), inputs=ROWS)) == [(32, 8), (8, 4)]


def test_a_share_is_not_lost_to_rounding_errors() -> None:
    made = prune(mlp(10), PruneConfig(ratio=0.9, round_to=1), inputs=ROWS)
    assert widths(made) == [(32, 1), (1, 4)], "10 * (1 - 0.9) is 0.9999999999999998"


def test_a_model_with_recurrent_layers_of_its_own_is_refused_with_the_reason() -> None:
    series = TensorSpec(name="x", datatype="FP32", shape=(-1, 5, 3))

    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell, self.head = nn.LSTM(3, 16, batch_first=True), nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            answer: Tensor = self.head(self.cell(x)[0][:, -1])
            return answer

    with pytest.raises(InvalidRequest, match="cell is a LSTM of the model's own"):
        prune(Own(), PruneConfig(), inputs=series)


def test_a_pruned_forecaster_is_exported_as_it_computes() -> None:
    made = case("lstm")
    smaller = prune(made.model, PruneConfig(ratio=0.5), inputs=made.subject.inputs)
    graph = to_onnx(smaller, made.subject.inputs, ["forecast"])
    session = ort.InferenceSession(graph, providers=["CPUExecutionProvider"])
    x = made.x(3)
    np.testing.assert_allclose(
        session.run(None, {"window": x.numpy()})[0], answers(smaller, x)[0].numpy(), atol=1e-4, rtol=1e-4
    )
