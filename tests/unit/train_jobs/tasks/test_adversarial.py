"""The GAN's task: two phases that leave each other alone, a penalty that is the gradient's, a distance that is one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.linalg import sqrtm
from torch import nn

from cluster.errors import ConfigError
from tests.unit.train_jobs.tasks.generative_scenarios import GAN as CONFIG
from train_jobs import runs
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.loop import TrainResult, train
from train_jobs.models import GAN, AutoencoderConfig
from train_jobs.tasks import AdversarialConfig, Batch, frechet
from train_jobs.tasks.adversarial import Adversarial, DiscriminatorLoss, GeneratorLoss, gradient_penalty
from train_jobs.tasks.features import own_classifier
from train_jobs.transfer import TransferConfig

PLAIN = CONFIG.model_copy(update={"precision": "fp32", "epochs": 1})


@pytest.fixture(scope="module")
def task(few_digits: LabelledDataset) -> Adversarial:
    torch.manual_seed(0)
    return AdversarialConfig(r1_every=1).build(PLAIN, few_digits)


def batch_of(task: Adversarial, *, size: int = 8, step: int = 0) -> Batch:
    x, y = task.parts.train.x[:size], task.parts.train.y[:size]
    return Batch(x, y, torch.arange(size), size, step, seed=0)


def gradients(module: nn.Module) -> list[torch.Tensor | None]:
    return [None if p.grad is None else p.grad.clone() for p in module.parameters()]


def test_each_phase_has_gradients_for_its_own_network_alone(task: Adversarial) -> None:
    gan, batch = task.model, batch_of(task)
    assert isinstance(gan, GAN)
    for phase, own, other in (
        (task.phases[0], gan.discriminator, gan.generator),
        (task.phases[1], gan.generator, gan.discriminator),
    ):
        gan.zero_grad(set_to_none=True)
        for p in other.parameters():
            p.grad = torch.full_like(p, 0.5)
        phase.loss(batch).backward()
        assert {id(p) for p in phase.loss.parameters()} == {id(p) for p in own.parameters()}
        assert all(g is not None and bool(g.abs().sum() > 0) for g in gradients(own))
        assert all(g is not None and bool((g == 0.5).all()) for g in gradients(other))
        assert all(p.requires_grad for p in other.parameters()), "only meanwhile without"
        assert all(p.grad is None for p in gan.average.parameters())


def test_the_penalty_is_the_squared_gradient_at_real_pictures() -> None:
    """Against differences, on a discriminator small enough for them."""
    torch.manual_seed(0)
    judge = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 1), nn.Flatten(0)).double()
    x = torch.rand(5, 1, 2, 2, dtype=torch.float64)
    tiny, numeric = 1e-6, torch.zeros(5, 4, dtype=torch.float64)
    for i in range(4):
        step = torch.zeros(4, dtype=torch.float64)
        step[i] = tiny
        moved = step.reshape(1, 1, 2, 2)
        numeric[:, i] = (judge(x + moved) - judge(x - moved)).detach() / (2 * tiny)
    asked = x.clone().requires_grad_()
    penalty = gradient_penalty(asked, judge(asked))
    assert float(penalty.detach()) == pytest.approx(float(numeric.square().sum()), rel=1e-6)

    def total(weight: torch.Tensor) -> torch.Tensor:
        given = x.clone().requires_grad_()
        layers = {"1.weight": weight}
        return gradient_penalty(given, torch.func.functional_call(judge, layers, (given,)))

    weight = judge[1].weight.detach().clone().requires_grad_()  # type: ignore[union-attr,operator]
    assert torch.autograd.gradcheck(total, (weight,)), "and it can be differentiated by the weights"


def test_the_penalty_comes_every_so_many_steps_and_as_heavy(task: Adversarial) -> None:
    gan = task.model
    assert isinstance(gan, GAN)
    real, made = torch.rand(2, 4, 1, 28, 28)
    each, every_third, none = (
        DiscriminatorLoss(gan, 6, AdversarialConfig(r1=r1, r1_every=every))
        for r1, every in ((2.0, 1), (2.0, 3), (0.0, 3))
    )
    plain = float(none.of(real, made, 3).detach())
    once = float(each.of(real, made, 3).detach()) - plain
    asked = real.clone().requires_grad_()
    assert once == pytest.approx(float(gradient_penalty(asked, gan.discriminator(asked)).detach()), rel=1e-3)
    assert float(every_third.of(real, made, 3).detach()) - plain == pytest.approx(3 * once, rel=1e-3)
    assert float(every_third.of(real, made, 4).detach()) == plain


def test_the_losses_are_the_textbook_ones(task: Adversarial) -> None:
    gan, batch = task.model, batch_of(task)
    assert isinstance(gan, GAN)
    z = [batch.randn(6, stream=stream) for stream in (0, 1)]
    real = gan.discriminator(batch.x / 255.0)
    first, second = (gan.discriminator(gan.generator(each)) for each in z)
    hinge, usual = AdversarialConfig(loss="hinge", r1=0), AdversarialConfig(r1=0)
    expected = (torch.clamp(1 - real, min=0) + torch.clamp(1 + first, min=0)).sum()
    torch.testing.assert_close(DiscriminatorLoss(gan, 6, hinge)(batch), expected)
    torch.testing.assert_close(GeneratorLoss(gan, 6, hinge)(batch), -second.sum())
    expected = -(real.sigmoid().log() + (1 - first.sigmoid()).log()).sum()
    torch.testing.assert_close(DiscriminatorLoss(gan, 6, usual)(batch), expected)
    torch.testing.assert_close(GeneratorLoss(gan, 6, usual)(batch), -second.sigmoid().log().sum())


def test_the_average_follows_once_a_step_however_many_pieces(task: Adversarial) -> None:
    gan = task.model
    assert isinstance(gan, GAN)
    loss = GeneratorLoss(gan, 6, AdversarialConfig(ema=0.9))
    followed: list[float] = []
    gan.follow, true = followed.append, gan.follow  # type: ignore[method-assign,assignment]
    try:
        for step in (0, 0, 1, 1, 1000):
            loss(batch_of(task, size=2, step=step))
    finally:
        gan.follow = true  # type: ignore[method-assign]
    assert followed == pytest.approx([0.1, 2 / 11, 0.9])


def test_the_distance_from_sums_is_that_of_the_features() -> None:
    rng = np.random.default_rng(0)
    one = rng.normal(size=(400, 5)) @ rng.normal(size=(5, 5)) + 3
    other = rng.normal(size=(300, 5)) @ rng.normal(size=(5, 5))
    cov1, cov2 = np.cov(one, rowvar=False), np.cov(other, rowvar=False)
    root: Any = sqrtm(cov1 @ cov2)
    expected = np.square(one.mean(0) - other.mean(0)).sum() + np.trace(cov1 + cov2 - 2 * root.real)
    whole = frechet.moments(torch.from_numpy(one))
    parts = sum(frechet.moments(torch.from_numpy(part)) for part in np.array_split(one, 7))
    assert isinstance(parts, torch.Tensor)
    second = frechet.moments(torch.from_numpy(other))
    assert frechet.distance(whole, second) == pytest.approx(float(expected), rel=1e-8)
    assert frechet.distance(parts, second) == pytest.approx(float(expected), rel=1e-8)
    assert frechet.distance(whole, whole) == pytest.approx(0.0, abs=1e-9)


def test_features_that_are_always_nought_are_no_trouble() -> None:
    features = torch.rand(50, 6)
    features[:, 2:4] = 0
    assert frechet.distance(frechet.moments(features), frechet.moments(features)) == pytest.approx(0.0, abs=1e-9)


@pytest.fixture(scope="module")
def drawn(few_digits: LabelledDataset) -> TrainResult:
    return train(PLAIN.model_copy(update={"epochs": 3, "precision": "fp32"}), few_digits)


def test_what_is_found_stands_beside_real_pictures_and_noise(drawn: TrainResult, few_digits: LabelledDataset) -> None:
    found = drawn.findings
    assert found is not None
    figures = found.metrics
    assert 0 < figures["frechet_of_real_halves"] < figures["frechet"] < figures["frechet_of_noise"]
    assert 1 <= figures["classes_made"] <= 10
    assert found.pictures["samples"].shape == (100, 1, 28, 28)
    assert found.pictures["samples"].dtype == torch.uint8
    assert f"{len(few_digits.x_test)} made pictures" in found.notes[0]
    assert "of 10" in found.notes[1]


def test_a_finished_run_is_loaded_and_draws_the_same(drawn: TrainResult, tmp_path: Path) -> None:
    config = PLAIN.model_copy(update={"epochs": 3, "precision": "fp32"})
    (tmp_path / "one").mkdir()
    runs.finish(tmp_path / "one", config, "digits", drawn)
    assert (tmp_path / "one/pictures/samples.png").exists()
    loaded = runs.load("one", tmp_path)
    z = torch.randn(3, 6)
    assert torch.equal(loaded.model(z), drawn.model(z))


def test_the_classifier_is_made_once_and_the_same_every_time(few_digits: LabelledDataset, tmp_path: Path) -> None:
    torch.manual_seed(5)
    made = own_classifier(PLAIN, few_digits, tmp_path)
    after = torch.rand(3)
    (file,) = (tmp_path / "features").iterdir()
    stamp = file.stat().st_mtime_ns
    torch.manual_seed(5)
    again = own_classifier(PLAIN, few_digits, tmp_path)
    assert torch.equal(torch.rand(3), after), "whether it is made or read, the model's first weights are the same"
    assert file.stat().st_mtime_ns == stamp
    without = own_classifier(PLAIN, few_digits, None)
    for name, tensor in made.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor)
        assert torch.equal(without.state_dict()[name], tensor)
    own_classifier(PLAIN.model_copy(update={"seed": 1}), few_digits, tmp_path)
    assert len(list((tmp_path / "features").iterdir())) == 2
    file.write_bytes(b"cut short")
    assert torch.equal(own_classifier(PLAIN, few_digits, tmp_path).features[0].weight, made.features[0].weight)


def test_a_run_may_lend_its_features(
    trained: TrainResult, quick_config: TrainConfig, few_digits: LabelledDataset, tmp_path: Path
) -> None:
    (tmp_path / "judge").mkdir()
    runs.finish(tmp_path / "judge", quick_config, "digits", trained)
    task = AdversarialConfig(features="judge").build(PLAIN, few_digits, runs_dir=tmp_path)
    sums = task.sums(task.model.eval(), task.parts.validation)
    assert len(sums) == 2 * (1 + 64 + 64 * 64), "the run's CNN has twice the features of our own"
    with pytest.raises(ConfigError, match="there is no finished run 'other'"):
        AdversarialConfig(features="other").build(PLAIN, few_digits, runs_dir=tmp_path)
    wider = replace(few_digits, x_train=np.pad(few_digits.x_train, ((0, 0), (0, 0), (2, 2), (2, 2))))
    with pytest.raises(ConfigError, match=r"task.features='judge' is a cnn of \[1, 28, 28\]; take a classifier"):
        AdversarialConfig(features="judge").build(PLAIN, wider, runs_dir=tmp_path)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"compile": True}, "set compile=false, or task.r1=0"),
        ({"average": "swa"}, "average=swa is not for task.kind=adversarial"),
        ({"transfer": TransferConfig(source="other")}, "transfer is not for task.kind=adversarial"),
    ],
)
def test_what_does_not_go_with_it_is_refused_with_the_way_out(
    changes: dict[str, Any], told: str, few_digits: LabelledDataset
) -> None:
    with pytest.raises(ConfigError, match=told):
        AdversarialConfig().build(PLAIN.model_copy(update=changes), few_digits)


def test_tables_and_other_models_are_refused(few_digits: LabelledDataset) -> None:
    table = replace(few_digits, x_train=few_digits.x_train.astype(np.float32), name="mine")
    with pytest.raises(ConfigError, match=r"learns pictures, uint8 \(N, C, H, W\), and mine holds float32"):
        AdversarialConfig().build(PLAIN, table)
    with pytest.raises(ValueError, match=r"model.kind=autoencoder does not do task.kind=adversarial, which takes gan"):
        TrainConfig(recipe="x", task=AdversarialConfig(), model=AutoencoderConfig())
