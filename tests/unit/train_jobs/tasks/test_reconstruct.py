"""The autoencoders' task: noise of its kind, windows that do not leak, figures beside those of principal components."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score

from cluster.errors import ConfigError
from tests.unit.train_jobs.tasks.generative_scenarios import DENOISING, TIED, VAE
from train_jobs import runs
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.datasets.anomaly import one_class, pulses
from train_jobs.loop import TrainResult, train
from train_jobs.models import Autoencoder, AutoencoderConfig, autoencoder
from train_jobs.tasks import ReconstructConfig, points
from train_jobs.tasks.principal import Principal
from train_jobs.tasks.reconstruct import ReconstructionLoss, corrupted, windows
from train_jobs.tasks.task import in_pieces

SERIES = TrainConfig(
    recipe="pulses", dataset="pulses", task=ReconstructConfig(), validation=0.15, epochs=4, batch_size=64, lr=3e-3,
    model=AutoencoderConfig(layers="dense", hidden=(32,), latent=8, scale="sample", error="absolute"), num_workers=1,
)  # fmt: skip


def fp32(config: TrainConfig, **changes: Any) -> TrainConfig:
    return config.model_copy(update={"precision": "fp32", **changes})


@pytest.fixture(scope="module")
def series() -> TrainResult:
    return train(SERIES, pulses())


@pytest.fixture(scope="module")
def denoised(few_digits: LabelledDataset) -> TrainResult:
    return train(fp32(DENOISING, epochs=20), few_digits)


def test_tied_weights_stay_tied_through_training_and_loading(few_digits: LabelledDataset, tmp_path: Path) -> None:
    config = fp32(TIED)
    result = train(config, few_digits)
    (tmp_path / "tied").mkdir()
    runs.finish(tmp_path / "tied", config, "digits", result)
    loaded = runs.load("tied", tmp_path).model
    for model in (result.model, loaded):
        assert isinstance(model, Autoencoder)
        z = torch.randn(3, 6)
        first, second = (model.encoder[i].weight for i in (1, 3))
        one, two = model.decoder.biases  # type: ignore[misc]
        expected = (torch.relu(z @ second + one) @ first + two).reshape(3, 1, 28, 28)  # type: ignore[operator]
        torch.testing.assert_close(model.decode(z), expected)
    x = torch.from_numpy(few_digits.x_test[:5])
    assert torch.equal(loaded(x)[1], result.model(x)[1])


@pytest.mark.parametrize("kind", ["gaussian", "mask"])
def test_the_noise_is_of_its_kind_and_strength(kind: Literal["gaussian", "mask"]) -> None:
    x = torch.rand(40, 1, 28, 28) + 0.5
    drawn = torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    spoilt = corrupted(x, drawn, ReconstructConfig(noise=0.3, noise_kind=kind))
    if kind == "gaussian":
        assert float((spoilt - x).std()) == pytest.approx(0.3, rel=0.02)
    else:
        gone = spoilt == 0
        assert float(gone.float().mean()) == pytest.approx(0.3, rel=0.03)
        assert torch.equal(spoilt[~gone], x[~gone])


def test_denoising_aims_at_the_clean_picture(few_digits: LabelledDataset) -> None:
    task = DENOISING.task.build(DENOISING, few_digits)
    model = task.model
    assert isinstance(model, Autoencoder)
    target, drawn = torch.rand(4, 1, 28, 28), torch.randn(4, 1, 28, 28)
    loss = ReconstructionLoss(model, ReconstructConfig(noise=0.3))
    got = loss.each(target, code=None, spoilt=drawn)
    torch.testing.assert_close(got, (model.reconstruct(target + 0.3 * drawn) - target).square().flatten(1).mean(1))


def test_a_denoising_model_takes_noise_away(denoised: TrainResult) -> None:
    found = denoised.findings
    assert found is not None
    assert found.metrics["mse_denoised"] < 0.7 * found.metrics["mse_of_noise"]
    assert found.metrics["mse_of_noise"] == pytest.approx(0.09, rel=0.02)
    assert found.pictures["reconstructions"].shape == (30, 1, 28, 28), "originals, spoilt ones, what became of them"


def test_the_vae_minimises_the_negative_bound(few_digits: LabelledDataset) -> None:
    task = VAE.task.build(VAE, few_digits)
    model = task.model
    assert isinstance(model, autoencoder.VAE)
    target, code = torch.rand(4, 1, 28, 28), torch.randn(4, 6)
    mean, log_var = model.encode(target)
    raw = model.decode(mean + torch.exp(0.5 * log_var) * code)
    expected = model.surprise(raw, target) + 0.5 * model.divergence(mean, log_var)
    got = ReconstructionLoss(model, ReconstructConfig(beta=0.5)).each(target, code=code, spoilt=None)
    torch.testing.assert_close(got, expected)


def test_a_vae_shows_samples_and_its_bound(few_digits: LabelledDataset) -> None:
    found = train(fp32(VAE), few_digits).findings
    assert found is not None
    assert found.pictures["samples"].shape == (100, 1, 28, 28)
    assert found.metrics["negative_elbo"] > 0
    assert set(found.metrics) == {"negative_elbo", "mse", "mse_of_pca"}


def test_validation_meets_the_same_noise_however_it_is_dealt_out(few_digits: LabelledDataset) -> None:
    for config in (DENOISING, VAE):
        task = config.task.build(config, few_digits)
        model = task.model.eval()
        part = task.parts.validation
        with torch.inference_mode():
            whole = task.sums(model, part)
            shared = sum(task.sums(model, part.share(rank, 3)) for rank in range(3))
            assert isinstance(shared, torch.Tensor)
            torch.testing.assert_close(shared, whole)
            assert not torch.equal(task.sums(model, replace(part, y=part.y + 1))[0], whole[0]), "it hangs on the row"


def test_a_linear_autoencoder_ends_where_principal_components_are(digits: LabelledDataset) -> None:
    model = AutoencoderConfig(layers="dense", hidden=(), latent=6, output="identity", tied=True)
    config = fp32(TIED, model=model, epochs=12, lr=1e-2, task=ReconstructConfig(), batch_size=32)
    found = train(config, digits).findings
    assert found is not None
    assert found.metrics["mse_of_pca"] < found.metrics["mse"] < 1.08 * found.metrics["mse_of_pca"]
    assert "as many principal components (6)" in found.notes[0]


def test_principal_components_are_those_of_scikit_learn(digits: LabelledDataset) -> None:
    train_part, test_part = (torch.from_numpy(x).float() / 255 for x in (digits.x_train, digits.x_test))
    ours = Principal.fit(iter(train_part.split(100)), 9)
    theirs = PCA(9, svd_solver="full").fit(train_part.flatten(1).numpy())
    flat = test_part.flatten(1).numpy()
    back = theirs.inverse_transform(theirs.transform(flat))
    assert ours.errors(test_part).numpy() == pytest.approx(np.square(back - flat).mean(1), rel=1e-3)
    assert ours.errors(test_part, absolute=True).numpy() == pytest.approx(np.abs(back - flat).mean(1), rel=1e-3)


def test_every_point_gets_the_mean_of_the_windows_over_it() -> None:
    scores = np.random.default_rng(0).random(40)
    for window in (1, 2, 7, 40, 60):
        naive = [np.mean([scores[i] for i in range(40) if i <= t < i + window]) for t in range(40 + window - 1)]
        assert points.covering(scores, window) == pytest.approx(naive)


def test_the_centred_score_is_that_of_the_window_about_a_point() -> None:
    scores = np.array([5.0, 6.0, 7.0])
    assert points.centred(scores, 4).tolist() == [5, 5, 5, 6, 7, 7]
    assert points.centred(scores, 5).tolist() == [5, 5, 5, 6, 7, 7, 7]


def test_windows_of_training_and_validation_share_no_point() -> None:
    made = pulses()
    parts = windows(SERIES, made)
    length = made.window
    assert parts.train.x.shape[1] == parts.test.x.shape[1] == length
    assert parts.train.x.data_ptr() == parts.test.x.data_ptr(), "views of one series, no copies"
    last_trained = len(parts.train) - 1 + length - 1
    first_kept = parts.validation.x.storage_offset()
    assert first_kept == last_trained + 1
    assert first_kept + len(parts.validation) - 1 + length == made.train_end
    assert len(parts.test) == len(made.values) - length + 1
    odd = np.flatnonzero(made.anomalous)[0]
    assert parts.test.y[odd] == parts.test.y[odd - length + 1] == 1
    assert parts.test.y[odd - length] == 0
    short = replace(made, train_end=150)
    with pytest.raises(ConfigError, match="150 points are too few to train on windows of 80"):
        windows(SERIES, short)


def test_planted_anomalies_are_found_point_by_point(series: TrainResult) -> None:
    found, made = series.findings, pulses()
    assert found is not None
    assert found.metrics["roc_auc"] > 0.9
    model = series.model
    with torch.inference_mode():
        scores = torch.cat([model(piece.x)[1] for piece in in_pieces(windows(SERIES, made).test)]).double().numpy()
    by_point = points.covering(scores, made.window)
    assert found.metrics["roc_auc"] == pytest.approx(float(roc_auc_score(made.anomalous, by_point)))
    rest = slice(made.train_end, None)
    assert found.metrics["roc_auc_unseen"] == pytest.approx(float(roc_auc_score(made.anomalous[rest], by_point[rest])))
    assert any("without the 4,800 points that were trained on; principal components: " in n for n in found.notes)
    assert not any("publishes" in note for note in found.notes), "nobody has published figures of made data"
    assert not found.pictures


def test_published_figures_stand_beside_where_there_are_some(series: TrainResult) -> None:
    made = replace(pulses(), published={"autoencoder": 0.857})
    task = SERIES.task.build(SERIES, made)
    with torch.inference_mode():
        found = task.findings(series.model)
    assert any("TSB-UAD publishes autoencoder 0.857" in note for note in found.notes)
    quiet = replace(made, anomalous=np.zeros_like(made.anomalous))
    with torch.inference_mode():
        found = SERIES.task.build(SERIES, quiet).findings(series.model)
    assert "roc_auc" not in found.metrics
    assert "no labelled anomaly" in found.notes[-1]


def test_one_class_is_told_from_the_others(digits: LabelledDataset) -> None:
    data = one_class(digits, 0)
    config = fp32(TIED, dataset=data.spec, epochs=20, task=ReconstructConfig())
    found = train(config, data).findings
    assert found is not None
    assert found.metrics["roc_auc"] > 0.9
    assert 0.5 < found.metrics["roc_auc_of_pca"] <= 1
    assert f"{int(data.y_test.sum())} anomalous against {int((data.y_test == 0).sum())} normal" in found.notes[-1]


def test_classes_that_are_not_about_anomalies_are_no_anomalies(denoised: TrainResult) -> None:
    assert denoised.findings is not None
    assert "roc_auc" not in denoised.findings.metrics


@pytest.mark.parametrize(
    ("config", "changes", "told"),
    [
        (DENOISING, {"noise": 1.0, "noise_kind": "mask"}, "leaves nothing; set a share below 1"),
        (VAE, {"loss": "bce"}, "a VAE's follows from model.likelihood"),
        (DENOISING, {"beta": 2.0}, "set model.kind=vae, or unset it"),
        (SERIES.model_copy(update={"model": AutoencoderConfig(output="identity")}), {"loss": "bce"},
         "task.loss=bce needs model.output=sigmoid"),
    ],
)  # fmt: skip
def test_fields_that_do_not_go_together_are_refused_with_the_way_out(
    config: TrainConfig, changes: dict[str, Any], told: str, few_digits: LabelledDataset
) -> None:
    settings = config.task.model_copy(update=changes)
    with pytest.raises(ConfigError, match=told):
        settings.build(config, few_digits)
