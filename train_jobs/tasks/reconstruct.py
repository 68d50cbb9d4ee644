"""Samples back through a narrow code: judged by what is lost, and by the anomalies that the loss betrays.

Denoising: Vincent et al., "Extracting and Composing Robust Features with Denoising Autoencoders", ICML 2008, section
2.3. Variational: Kingma and Welling, "Auto-Encoding Variational Bayes", ICLR 2014, equation 10 with one draw; `beta` as
in Higgins et al., "beta-VAE", ICLR 2017, equation 4. What the test part says is in
tasks/reconstructed.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs import datasets
from train_jobs.datasets import LabelledDataset, anomaly
from train_jobs.datasets.anomaly import AnomalySeries
from train_jobs.datasets.labelled import Notify
from train_jobs.models.autoencoder import VAE, Autoencoder
from train_jobs.models.coder import Scale
from train_jobs.parallel.shards import noise
from train_jobs.tasks.classify import split
from train_jobs.tasks.reconstructed import find
from train_jobs.tasks.task import Batch, Findings, LabelledSettings, Metric, Part, Parts, Phase, in_pieces

if TYPE_CHECKING:
    from train_jobs.config import TrainConfig

_CODE, _CORRUPTION = 0, 1
"""Streams of a step's noise."""
_FIXED = 100
"""Added to them for the noise that the validation part is always met with."""


class ReconstructConfig(LabelledSettings):
    """Reconstruct samples, perhaps from spoilt ones."""

    MODELS: ClassVar[frozenset[str]] = frozenset({"autoencoder", "vae"})
    ENSEMBLES: ClassVar[bool] = False

    kind: Literal["reconstruct"] = "reconstruct"
    loss: Literal["mse", "mae", "bce"] = "mse"
    """Of a plain autoencoder, averaged over a sample's values. bce: cross-entropy with greys as probabilities. A VAE's
    loss follows from model.likelihood."""
    beta: float = Field(default=1.0, ge=0)
    """Weight of a VAE's divergence; 1 is the evidence lower bound."""
    noise: float = Field(default=0.0, ge=0)
    """0: none. gaussian: standard deviation, on the model's scale; mask: share of the values that are set to nought."""
    noise_kind: Literal["gaussian", "mask"] = "gaussian"

    def load(self, spec: str, *, notify: Notify | None = None) -> LabelledDataset | AnomalySeries:
        """Also the sets of datasets/anomaly.py."""
        return anomaly.load(spec, notify=notify) if anomaly.is_anomalies(spec) else datasets.load(spec, notify=notify)

    def build(
        self, config: TrainConfig, dataset: LabelledDataset | AnomalySeries, *, runs_dir: Path | None = None
    ) -> Reconstruct:
        """Raises ConfigError for fields that do not go together, and a series that is too short."""
        if self.noise_kind == "mask" and self.noise >= 1:
            raise ConfigError(f"task.noise={self.noise} with noise_kind=mask leaves nothing; set a share below 1")
        if config.model.kind == "vae" and self.loss != "mse":
            raise ConfigError(
                f"task.loss={self.loss} is for a plain autoencoder, and a VAE's follows from model.likelihood; unset it"
            )
        if config.model.kind != "vae" and self.beta != 1:
            raise ConfigError(f"task.beta={self.beta} weighs a VAE's divergence; set model.kind=vae, or unset it")
        if self.loss == "bce" and getattr(config.model, "output", "") != "sigmoid":
            raise ConfigError("task.loss=bce needs model.output=sigmoid: what is reconstructed are probabilities")
        return Reconstruct(config, dataset, self)


def windows(config: TrainConfig, series: AnomalySeries) -> Parts:
    """Every window of the series, one point apart, as a view of it. Trained on: those of its beginning; the last of
    these are for validation and share no point with the others. The test part is all of the series, in order."""
    values, labels = torch.from_numpy(series.values), torch.from_numpy(series.anomalous)
    usable = series.train_end - series.window + 1
    kept = max(1, int(usable * config.validation))
    training = usable - kept - series.window + 1
    if training < 1:
        raise ConfigError(
            f"{series.name}: {series.train_end} points are too few to train on windows of {series.window} and to "
            f"validate on {config.validation:.0%} of them; take a longer series, or lower validation"
        )
    x = values.unfold(0, series.window, 1)
    y = labels.unfold(0, series.window, 1).amax(1)
    return Parts(
        Part(x[:training], y[:training]),
        Part(x[usable - kept : usable], y[usable - kept : usable]),
        Part(x, y),
    )


def corrupted(x: Tensor, drawn: Tensor, settings: ReconstructConfig) -> Tensor:
    """Samples on the model's scale, spoilt by normal noise of their shape."""
    if settings.noise_kind == "gaussian":
        return x + settings.noise * drawn
    level = torch.special.ndtri(torch.tensor(settings.noise, dtype=torch.float64))
    return torch.where(drawn < float(level), torch.zeros_like(x), x)


class ReconstructionLoss(nn.Module):
    """Batch -> sum of the losses."""

    def __init__(self, model: Autoencoder | VAE, settings: ReconstructConfig) -> None:
        super().__init__()
        self.model = model
        self._settings = settings

    def forward(self, batch: Batch) -> Tensor:
        target = self.model.preprocess(batch.x)
        code = batch.randn(self.model.latent, stream=_CODE) if isinstance(self.model, VAE) else None
        spoilt = batch.randn(*target.shape[1:], stream=_CORRUPTION) if self._settings.noise else None
        return self.each(target, code=code, spoilt=spoilt).sum()

    def each(self, target: Tensor, *, code: Tensor | None, spoilt: Tensor | None) -> Tensor:
        """The loss of each sample (B,), on the model's scale; noise for a VAE's code (B, Z), and to spoil the input."""
        given = target if spoilt is None else corrupted(target, spoilt.to(target.dtype), self._settings)
        if isinstance(self.model, VAE):
            assert code is not None
            mean, log_var = self.model.encode(given)
            raw = self.model.decode(mean + (0.5 * log_var).exp() * code.to(mean.dtype))
            return self.model.surprise(raw, target) + self._settings.beta * self.model.divergence(mean, log_var)
        raw = self.model.decode(self.model.encode(given))
        if self._settings.loss == "bce":
            return F.binary_cross_entropy_with_logits(raw, target, reduction="none").flatten(1).mean(1)
        off = self.model.squash(raw) - target
        return (off.abs() if self._settings.loss == "mae" else off.square()).flatten(1).mean(1)


class Reconstruct:
    """The task of giving back what was given."""

    def __init__(
        self, config: TrainConfig, dataset: LabelledDataset | AnomalySeries, settings: ReconstructConfig
    ) -> None:
        self._settings, self._seed, self._dataset = settings, config.seed, dataset
        parts = windows(config, dataset) if isinstance(dataset, AnomalySeries) else split(config, dataset)
        # A validation sample's y is its row: with it goes the same noise, whichever worker looks at it.
        validation = Part(parts.validation.x, torch.arange(len(parts.validation)))
        self.parts = Parts(parts.train, validation, parts.test)
        inputs = tuple(parts.train.x.shape[1:])
        self.shapes = {"inputs": list(inputs), "outputs": list(inputs)}
        model = config.model.build(inputs, inputs)
        assert isinstance(model, Autoencoder | VAE)
        if isinstance(model.preprocess, Scale):
            seen = parts.train.x.double()
            model.preprocess.normalise(float(seen.mean()), float(seen.std(correction=0)))
        self.model: nn.Module = model
        self._loss = ReconstructionLoss(model, settings)
        self.phases: tuple[Phase, ...] = (Phase("train", self._loss),)
        self.metric = Metric("negative_elbo" if isinstance(model, VAE) else settings.loss, higher_is_better=False)

    def sums(self, model: nn.Module, part: Part) -> Tensor:
        total = torch.zeros((), dtype=torch.float64)
        for piece in in_pieces(part):
            total += self._losses(model, piece.x, piece.y).sum().double().cpu()
        return torch.stack([total, torch.tensor(float(len(part)), dtype=torch.float64)])

    def metrics(self, sums: Tensor) -> dict[str, float]:
        return {self.metric.name: float(sums[0] / sums[1])}

    def findings(self, model: nn.Module) -> Findings:
        assert isinstance(model, Autoencoder | VAE)
        test = self.parts.test.x
        figures = self.metrics(self.sums(model, Part(test, torch.arange(len(test)))))
        return find(model, self.parts, self._dataset, figures, self._spoil)

    def _losses(self, model: nn.Module, x: Tensor, rows: Tensor) -> Tensor:
        """The loss of each sample, with the noise that belongs to its row."""
        loss = self._loss if model is self._loss.model else ReconstructionLoss(model, self._settings)  # type: ignore[arg-type]
        target = loss.model.preprocess(x)
        code = self._noise(rows, (loss.model.latent,), _CODE) if isinstance(loss.model, VAE) else None
        spoilt = self._noise(rows, target.shape[1:], _CORRUPTION) if self._settings.noise else None
        return loss.each(
            target, code=None if code is None else code.to(target.device),
            spoilt=None if spoilt is None else spoilt.to(target.device),
        )  # fmt: skip

    def _noise(self, rows: Tensor, shape: tuple[int, ...], stream: int) -> Tensor:
        """Drawn for blocks of 512 rows, so that nobody needs all of it at once."""
        rows = rows.cpu()
        blocks = rows // 512
        drawn = torch.empty(len(rows), *shape)
        for block in sorted(set(blocks.tolist())):
            here = blocks == block
            drawn[here] = noise((512, *shape), self._seed, block, _FIXED + stream)[rows[here] % 512]
        return drawn

    def _spoil(self, target: Tensor) -> Tensor | None:
        """The first of the test samples, as a denoising autoencoder is given them; None without noise."""
        if not self._settings.noise:
            return None
        drawn = self._noise(torch.arange(len(target)), target.shape[1:], _CORRUPTION).to(target)
        return corrupted(target, drawn, self._settings)
