"""Model families, one file each; a config of each kind builds its module for the shapes that the data has."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from train_jobs.models.autoencoder import VAE, Autoencoder, AutoencoderConfig, VAEConfig
from train_jobs.models.cnn import CNN, CNNConfig
from train_jobs.models.ensemble import Ensemble
from train_jobs.models.forecaster import Forecaster
from train_jobs.models.gan import GAN, GANConfig
from train_jobs.models.mlp import MLP, MLPConfig
from train_jobs.models.recurrent import Recurrent, RecurrentConfig
from train_jobs.models.vision import Vision, VisionConfig

__all__ = [
    "CNN", "GAN", "MLP", "VAE", "Autoencoder", "AutoencoderConfig", "CNNConfig", "Ensemble", "Forecaster", "GANConfig",
    "MLPConfig", "ModelConfig", "Recurrent", "RecurrentConfig", "VAEConfig", "Vision", "VisionConfig",
]

ModelConfig = Annotated[
    CNNConfig | MLPConfig | RecurrentConfig | GANConfig | AutoencoderConfig | VAEConfig | VisionConfig,
    Field(discriminator="kind"),
]
"""Chosen by `kind`; a field of it is set with --set model.FIELD=..."""
