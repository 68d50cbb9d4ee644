"""What a rank does in the parity tests of the generative families; apart, so that each process imports little."""

from __future__ import annotations

from typing import Any

from tests.unit.train_jobs.curves import curve
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.models import AutoencoderConfig, GANConfig, VAEConfig
from train_jobs.tasks import AdversarialConfig, ReconstructConfig

_COMMON: dict[str, Any] = {
    "dataset": "digits", "epochs": 2, "batch_size": 13, "validation": 0.1, "precision": "fp64", "schedule": "cosine",
}  # fmt: skip
"""144 pictures in batches of 13: the last batch is one picture, so all workers but the first have none of it."""

GAN = TrainConfig(
    recipe="gan", model=GANConfig(latent=6, width=8), task=AdversarialConfig(r1_every=2, ema=0.9), lr=1e-3,
    betas=(0.0, 0.99), **_COMMON,
)  # fmt: skip
DENOISING = TrainConfig(
    recipe="denoising", model=AutoencoderConfig(hidden=(4, 8), latent=6), lr=5e-3,
    task=ReconstructConfig(noise=0.3, loss="bce"), **_COMMON,
)  # fmt: skip
TIED = TrainConfig(
    recipe="tied", model=AutoencoderConfig(layers="dense", hidden=(32,), latent=6, tied=True), lr=5e-3,
    task=ReconstructConfig(noise=0.2, noise_kind="mask"), **_COMMON,
)  # fmt: skip
VAE = TrainConfig(
    recipe="vae", model=VAEConfig(layers="dense", hidden=(32,), latent=6), task=ReconstructConfig(beta=0.5), lr=5e-3,
    **_COMMON,
)  # fmt: skip
CONFIGS = {config.recipe: config for config in (GAN, DENOISING, TIED, VAE)}


def all_curves(dataset: LabelledDataset) -> dict[str, dict[str, Any]]:
    """Every family in one process group: starting one costs more than all of them."""
    return {name: curve(config, dataset) for name, config in CONFIGS.items()}
