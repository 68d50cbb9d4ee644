"""GANs and autoencoders; each beside a feed-forward network."""

from __future__ import annotations

from train_jobs.config import TrainConfig
from train_jobs.models import AutoencoderConfig, GANConfig, VAEConfig
from train_jobs.tasks import AdversarialConfig, ReconstructConfig


def gan_fashion_mnist() -> TrainConfig:
    """Product pictures out of noise, by convolutions; a narrow one, minutes on one core."""
    return TrainConfig(
        recipe="gan_fashion_mnist", dataset="fashion-mnist", task=AdversarialConfig(r1=0.3),
        model=GANConfig(width=24), epochs=2, batch_size=64, lr=2e-3, schedule="cosine", betas=(0.0, 0.99),
    )  # fmt: skip


def gan_dense_fashion_mnist() -> TrainConfig:
    """The same by feed-forward networks: what the convolutions buy."""
    changes = {"recipe": "gan_dense_fashion_mnist", "model": GANConfig(layers="dense", width=24), "epochs": 4}
    return gan_fashion_mnist().model_copy(update=changes)


def ae_fashion_mnist() -> TrainConfig:
    """Product pictures through a code of 32 numbers, by convolutions."""
    return TrainConfig(
        recipe="ae_fashion_mnist", dataset="fashion-mnist", task=ReconstructConfig(), model=AutoencoderConfig(),
        epochs=5, batch_size=128, lr=4e-3, schedule="one_cycle",
    )  # fmt: skip


def ae_dense_fashion_mnist() -> TrainConfig:
    """The same by feed-forward networks."""
    changes = {"recipe": "ae_dense_fashion_mnist", "model": AutoencoderConfig(layers="dense"), "epochs": 8, "lr": 2e-3}
    return ae_fashion_mnist().model_copy(update=changes)


def ae_tied_fashion_mnist() -> TrainConfig:
    """The same with the decoder using the encoder's weights."""
    changes = {"recipe": "ae_tied_fashion_mnist", "model": AutoencoderConfig(layers="dense", tied=True)}
    return ae_dense_fashion_mnist().model_copy(update=changes)


def ae_denoising_fashion_mnist() -> TrainConfig:
    """Clean pictures out of noisy ones."""
    changes = {"recipe": "ae_denoising_fashion_mnist", "task": ReconstructConfig(noise=0.3)}
    return ae_fashion_mnist().model_copy(update=changes)


def ae_linear_fashion_mnist() -> TrainConfig:
    """The baseline of them all: one linear layer each way, which ends where principal components are."""
    model = AutoencoderConfig(layers="dense", hidden=(), output="identity")
    changes = {"recipe": "ae_linear_fashion_mnist", "model": model, "epochs": 12, "lr": 4e-3}
    return ae_dense_fashion_mnist().model_copy(update=changes)


def vae_fashion_mnist() -> TrainConfig:
    """Product pictures out of noise by a variational autoencoder, and a bound on how likely each is."""
    changes = {"recipe": "vae_fashion_mnist", "model": VAEConfig(latent=16), "lr": 2e-3}
    return ae_fashion_mnist().model_copy(update=changes)


def ae_one_class() -> TrainConfig:
    """Trained on sandals alone: what is no sandal shows by its error. Another class: --set dataset=...-one-class-K."""
    changes = {"recipe": "ae_one_class", "dataset": "fashion-mnist-one-class-5", "epochs": 20}
    return ae_fashion_mnist().model_copy(update=changes)


def ae_ecg805() -> TrainConfig:
    """Odd heartbeats, as TSB-UAD looks for them: trained on the first tenth of the record, unlabelled."""
    model = AutoencoderConfig(layers="dense", hidden=(32,), latent=16, scale="sample", error="absolute")
    return TrainConfig(
        recipe="ae_ecg805", dataset="ecg805", task=ReconstructConfig(), model=model, epochs=30, batch_size=64, lr=1e-3,
        validation=0.15, patience=5,
    )  # fmt: skip


def ae_ecg806() -> TrainConfig:
    """The same for another record."""
    return ae_ecg805().model_copy(update={"recipe": "ae_ecg806", "dataset": "ecg806"})


def ae_ecg820() -> TrainConfig:
    """The same for a third record."""
    return ae_ecg805().model_copy(update={"recipe": "ae_ecg820", "dataset": "ecg820"})


def ae_machine_temperature() -> TrainConfig:
    """A machine's failures in its temperature: trained on the week before the first."""
    model = AutoencoderConfig(layers="dense", hidden=(32,), latent=4, output="identity")
    changes = {"recipe": "ae_machine_temperature", "dataset": "nab-machine-temperature", "model": model}
    return ae_ecg805().model_copy(update=changes)
