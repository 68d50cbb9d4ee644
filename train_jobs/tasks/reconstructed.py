"""A trained autoencoder on the test part -> what is lost, which anomalies that betrays, and pictures to look at.

Beside each figure stands that of as many principal components, fitted to the same training samples: a linear
autoencoder at its best.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from train_jobs.datasets import LabelledDataset
from train_jobs.datasets.anomaly import NORMAL_OR_NOT, AnomalySeries
from train_jobs.models.autoencoder import VAE, Autoencoder
from train_jobs.parallel.shards import noise
from train_jobs.tasks import points
from train_jobs.tasks.points import Scores
from train_jobs.tasks.principal import Principal
from train_jobs.tasks.task import Findings, Parts, in_pieces

_SHOWN, _SAMPLES, _SPOILT = 10, 100, 1000


def find(
    model: Autoencoder | VAE,
    parts: Parts,
    dataset: LabelledDataset | AnomalySeries,
    figures: dict[str, float],
    spoil: Callable[[Tensor], Tensor | None],
) -> Findings:
    """`figures` are the task's own, of the test part; `spoil` makes the input of a denoising model of samples."""
    absolute = isinstance(model, Autoencoder) and model.absolute
    linear = Principal.fit((model.preprocess(piece.x) for piece in in_pieces(parts.train)), model.latent)
    scores, linear_scores, lost, linear_lost = [], [], [], []
    for piece in in_pieces(parts.test):
        target = model.preprocess(piece.x)
        scores.append(model(piece.x)[1])
        lost.append((model.reconstruct(target) - target).square().flatten(1).mean(1))
        linear_scores.append(linear.errors(target, absolute=absolute))
        linear_lost.append(linear.errors(target))
    figures = {**figures, "mse": _mean(lost), "mse_of_pca": _mean(linear_lost)}
    notes = [
        f"mean squared error of the test part {figures['mse']:.5f}; of as many principal components "
        f"({len(linear.directions)}), fitted to the same samples: {figures['mse_of_pca']:.5f}"
    ]
    some = model.preprocess(parts.test.x[:_SPOILT])
    spoilt = spoil(some)
    if spoilt is not None:
        figures |= {
            "mse_denoised": float((model.reconstruct(spoilt) - some).square().mean()),
            "mse_of_noise": float((spoilt - some).square().mean()),
        }
        notes.append(
            f"mean squared error of {len(some):,} spoilt test samples {figures['mse_of_noise']:.5f}, and "
            f"{figures['mse_denoised']:.5f} after the model"
        )
    ours, theirs = (torch.cat(each).double().cpu().numpy() for each in (scores, linear_scores))
    if isinstance(dataset, AnomalySeries):
        found, told = _in_series(ours, theirs, dataset)
    else:
        found, told = _among_samples(ours, theirs, dataset)
    return Findings({**figures, **found}, (*notes, *told), _pictures(model, some, spoilt))


def _mean(pieces: list[Tensor]) -> float:
    return float(torch.cat(pieces).double().mean())


def roc_auc(anomalous: NDArray[np.int64], scores: Scores) -> float:
    """Chance that an anomalous one scores higher than a normal one; there must be both."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(anomalous, scores))


def _both(anomalous: NDArray[np.int64]) -> bool:
    """Are there normal and anomalous ones?"""
    return len(anomalous) > 0 and bool(anomalous.min() < anomalous.max())


def _among_samples(ours: Scores, theirs: Scores, dataset: LabelledDataset) -> tuple[dict[str, float], list[str]]:
    """For a test part that tells normal samples from anomalous ones; nothing for any other."""
    if dataset.labels != NORMAL_OR_NOT or not _both(dataset.y_test):
        return {}, []
    figures = {"roc_auc": roc_auc(dataset.y_test, ours), "roc_auc_of_pca": roc_auc(dataset.y_test, theirs)}
    odd = int(dataset.y_test.sum())
    return figures, [
        f"area under the ROC curve, {odd:,} anomalous against {len(ours) - odd:,} normal test samples: "
        f"{figures['roc_auc']:.3f}; principal components: {figures['roc_auc_of_pca']:.3f}"
    ]


def _in_series(ours: Scores, theirs: Scores, series: AnomalySeries) -> tuple[dict[str, float], list[str]]:
    """By point, over the whole series and over what training did not see."""
    label, end, window = series.anomalous, series.train_end, series.window
    if not _both(label):
        return {}, [f"{series.name} has no labelled anomaly, so there is nothing to tell it by"]
    by_cover, by_centre = points.covering(ours, window), points.centred(ours, window)
    linear_cover, linear_centre = points.covering(theirs, window), points.centred(theirs, window)
    figures = {
        "roc_auc": roc_auc(label, by_cover),
        "roc_auc_centred": roc_auc(label, by_centre),
        "roc_auc_of_pca": roc_auc(label, linear_cover),
        "roc_auc_centred_of_pca": roc_auc(label, linear_centre),
    }
    unseen = ""
    if _both(label[end:]):
        figures["roc_auc_unseen"] = roc_auc(label[end:], by_cover[end:])
        unseen = f", {figures['roc_auc_unseen']:.3f} without the {end:,} points that were trained on"
    notes = [
        f"area under the ROC curve by point ({label.mean():.2%} of {len(label):,} anomalous; windows of {window}, each "
        f"point scored by all that cover it): {figures['roc_auc']:.3f}{unseen}; principal components: "
        f"{figures['roc_auc_of_pca']:.3f}"
    ]
    centred = (
        f"each point scored by the window about it: {figures['roc_auc_centred']:.3f}; principal components: "
        f"{figures['roc_auc_centred_of_pca']:.3f}"
    )
    if series.published:
        published = ", ".join(f"{name} {value:.3f}" for name, value in series.published.items())
        centred += (
            f"; so scored, TSB-UAD publishes {published} (PVLDB 15(8), 2022; its autoencoder has the same window, "
            "training tenth and scaling as scale=sample with error=absolute, other layers and batch normalisation)"
        )
    return figures, [*notes, centred]


def _pictures(model: Autoencoder | VAE, some: Tensor, spoilt: Tensor | None) -> dict[str, Tensor]:
    """Rows of originals, of spoilt ones if there are any, and of what became of them; a VAE's own inventions."""
    if len(model.inputs) != 3:
        return {}
    given = some if spoilt is None else spoilt
    rows = [some[:_SHOWN]] + ([] if spoilt is None else [spoilt[:_SHOWN]]) + [model.reconstruct(given[:_SHOWN])]
    pictures = {"reconstructions": _bytes(torch.cat(rows))}
    if isinstance(model, VAE):
        latents = noise((_SAMPLES, model.latent), 0, 0, 0).to(some)
        pictures["samples"] = _bytes(model.sample(_SAMPLES, latents))
    return pictures


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8)
