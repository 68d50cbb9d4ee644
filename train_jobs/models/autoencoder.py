"""Samples through a narrow code and back: what does not fit through is what the model finds odd.

The plain autoencoder, and the variational one of Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014. Both
answer with the reconstruction and a score for each sample, higher for what is less like the training data.

Shapes: B batch, Z latent; samples as in models/coder.py.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs.models.coder import Coder, CoderConfig, TiedDecoder, decoder_of

_LOG_2PI = math.log(2 * math.pi)


class AutoencoderConfig(CoderConfig):
    """The plain one. With layers=dense, hidden=() and output=identity it can do what PCA can, and no more."""

    kind: Literal["autoencoder"] = "autoencoder"
    output: Literal["sigmoid", "identity"] = "sigmoid"
    """sigmoid: what is reconstructed lies in 0..1, as pictures and windows with scale=sample do."""
    tied: bool = False
    """The decoder uses the encoder's weights, transposed: half the parameters; with dense layers."""
    error: Literal["squared", "absolute"] = "squared"
    """The score: this error, averaged over a sample."""

    def build(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> Autoencoder:
        """For samples of a shape, to which it maps them back. Raises ConfigError for what does not fit."""
        self.check(inputs, self.kind)
        if self.tied and self.layers == "conv":
            raise ConfigError("model.tied=true ties the weights of dense layers; set model.layers=dense, or tied=false")
        if self.output == "sigmoid" and len(inputs) != 3 and self.scale == "data":
            raise ConfigError(
                f"model.output=sigmoid reaches 0..1 only, and samples {list(inputs)} with scale=data lie outside; set "
                "model.output=identity, or model.scale=sample"
            )
        return Autoencoder(self, inputs)


class VAEConfig(CoderConfig):
    """A Gaussian code whose prior is the standard normal: samples can be drawn."""

    kind: Literal["vae"] = "vae"
    likelihood: Literal["bernoulli", "gaussian"] = "bernoulli"
    """Of a sample, given its code. bernoulli takes greys for probabilities, as the field does for want of a better;
    gaussian has one standard deviation for all values, which is learned (Rybkin, Daniilidis and Levine, "Simple and
    Effective VAE Training with Calibrated Decoders", ICML 2021, section 3)."""

    def build(self, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> VAE:
        """For samples of a shape. Raises ConfigError for what does not fit."""
        self.check(inputs, self.kind)
        if self.likelihood == "bernoulli" and len(inputs) != 3 and self.scale == "data":
            raise ConfigError(
                f"model.likelihood=bernoulli is for values in 0..1, and samples {list(inputs)} with scale=data have "
                "others; set model.likelihood=gaussian, or model.scale=sample"
            )
        return VAE(self, inputs)


class Autoencoder(Coder):
    """(B, *inputs) -> reconstruction (B, *inputs) and score (B,)."""

    def __init__(self, config: AutoencoderConfig, inputs: tuple[int, ...]) -> None:
        super().__init__(config, inputs, config.latent)
        self.decoder: nn.Module = TiedDecoder(config, inputs) if config.tied else decoder_of(config, inputs)
        self._squash = config.output == "sigmoid"
        self.absolute = config.error == "absolute"

    def encode(self, scaled: Tensor) -> Tensor:
        """The code (B, Z) of samples on the model's scale."""
        z_BZ: Tensor = self.encoder(scaled)
        return z_BZ

    def decode(self, z_BZ: Tensor) -> Tensor:
        """Samples before the last squashing: logits where output=sigmoid."""
        if isinstance(self.decoder, TiedDecoder):
            return self.decoder.transposed(z_BZ, [m.weight for m in self.encoder if isinstance(m, nn.Linear)])
        raw: Tensor = self.decoder(z_BZ)
        return raw

    def squash(self, raw: Tensor) -> Tensor:
        """What `decode` gave, on the model's scale."""
        return torch.sigmoid(raw) if self._squash else raw

    def reconstruct(self, target: Tensor) -> Tensor:
        """What comes back of samples on the model's scale, on that scale."""
        return self.squash(self.decode(self.encode(target)))

    def penultimate(self, x: Tensor) -> Tensor:
        """The code of samples as they come, (B, Z)."""
        return self.encode(self.preprocess(x))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        target = self.preprocess(x)
        made = self.reconstruct(target)
        off = (made - target).abs() if self.absolute else (made - target).square()
        return self.in_units(made, x), off.flatten(1).mean(1)


class VAE(Coder):
    """(B, *inputs) -> reconstruction of the mean code (B, *inputs) and score (B,): the negative evidence lower bound
    there, in nats, without noise, so that the same sample always scores the same."""

    def __init__(self, config: VAEConfig, inputs: tuple[int, ...]) -> None:
        super().__init__(config, inputs, 2 * config.latent)
        self.decoder = decoder_of(config, inputs)
        self._bernoulli = config.likelihood == "bernoulli"
        if not self._bernoulli:
            self.log_sigma = nn.Parameter(torch.tensor(-1.0))

    def encode(self, scaled: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance of the code, (B, Z) each."""
        mean_BZ, log_var_BZ = self.encoder(scaled).chunk(2, dim=1)
        return mean_BZ, log_var_BZ

    def decode(self, z_BZ: Tensor) -> Tensor:
        """Logits of the Bernoulli, or means of the Gaussian."""
        raw: Tensor = self.decoder(z_BZ)
        return raw

    def squash(self, raw: Tensor) -> Tensor:
        """The expected sample, on the model's scale."""
        return torch.sigmoid(raw) if self._bernoulli else raw

    def surprise(self, raw: Tensor, target: Tensor) -> Tensor:
        """-log p(target | code), (B,), in nats: appendix C of the paper."""
        if self._bernoulli:
            each = F.binary_cross_entropy_with_logits(raw, target, reduction="none")
        else:
            each = 0.5 * ((target - raw) / self.log_sigma.exp()).square() + self.log_sigma + 0.5 * _LOG_2PI
        return each.flatten(1).sum(1)

    def divergence(self, mean_BZ: Tensor, log_var_BZ: Tensor) -> Tensor:
        """KL of the code from the standard normal, (B,), in nats: appendix B of the paper."""
        return 0.5 * (mean_BZ.square() + log_var_BZ.exp() - 1.0 - log_var_BZ).sum(1)

    def sample(self, count: int, z_BZ: Tensor | None = None) -> Tensor:
        """Samples on the model's scale, of the given codes or of codes drawn from the prior."""
        if z_BZ is None:
            weight = next(self.decoder.parameters())
            z_BZ = torch.randn(count, self.latent, device=weight.device, dtype=weight.dtype)
        return self.squash(self.decode(z_BZ[:count]))

    def reconstruct(self, target: Tensor) -> Tensor:
        """What comes back by the mean code of samples on the model's scale, on that scale."""
        return self.squash(self.decode(self.encode(target)[0]))

    def penultimate(self, x: Tensor) -> Tensor:
        """The mean code of samples as they come, (B, Z)."""
        return self.encode(self.preprocess(x))[0]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        target = self.preprocess(x)
        mean_BZ, log_var_BZ = self.encode(target)
        raw = self.decode(mean_BZ)
        score_B = self.surprise(raw, target) + self.divergence(mean_BZ, log_var_BZ)
        return self.in_units(self.squash(raw), x), score_B


class Sampler(nn.Module):
    """Codes (B, Z) -> the samples that are expected of them, on the model's scale: what a VAE's decoder is by itself.
    Codes from the standard normal are what it was trained to make samples of."""

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        self.decoder = vae.decoder
        self._bernoulli = vae._bernoulli

    def forward(self, z_BZ: Tensor) -> Tensor:
        raw: Tensor = self.decoder(z_BZ)
        return torch.sigmoid(raw) if self._bernoulli else raw
