"""Pictures like these: a generator and a discriminator, each with an optimizer of its own.

    discriminator's phase: real and made pictures -> which are which; only its own weights have gradients
    generator's phase:     latents -> pictures that the discriminator takes for real; only its own have gradients

Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, section 3 (non-saturating), or the hinge of Miyato et
al., "Spectral Normalization for Generative Adversarial Networks", ICLR 2018, equations 16 and 17. Judged by the Fréchet
distance of the averaged generator's pictures (tasks/frechet.py) under features that the data itself taught.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from pydantic import Field
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs.datasets import LabelledDataset
from train_jobs.models.gan import GAN, GANConfig
from train_jobs.parallel.shards import noise
from train_jobs.tasks import frechet
from train_jobs.tasks.classify import split
from train_jobs.tasks.features import classifier_of_run, own_classifier
from train_jobs.tasks.task import Batch, Findings, LabelledSettings, Metric, Part, Parts, Phase, in_pieces

if TYPE_CHECKING:
    from train_jobs.config import TrainConfig

FRECHET = Metric("frechet", higher_is_better=False)
_FIXED, _TESTED = 100, 101
"""Streams of latents that no step draws from."""
_SHOWN = 100


class AdversarialConfig(LabelledSettings):
    """A generator of pictures, and how it is taught."""

    MODELS: ClassVar[frozenset[str]] = frozenset({"gan"})
    ENSEMBLES: ClassVar[bool] = False

    kind: Literal["adversarial"] = "adversarial"
    loss: Literal["hinge", "non_saturating"] = "non_saturating"
    r1: float = Field(default=1.0, ge=0)
    """gamma of Mescheder et al., "Which Training Methods for GANs do actually Converge?", ICML 2018, equation 9: half
    of it times the squared gradient of the discriminator at real pictures is added to its loss. 0: none."""
    r1_every: int = Field(default=4, ge=1)
    """Steps from one penalty, so many times as heavy, to the next: "lazy", Karras et al., "Analyzing and Improving the
    Image Quality of StyleGAN", CVPR 2020, section 3.1."""
    ema: float = Field(default=0.995, ge=0, lt=1)
    """Decay, by step, of the average of the generator's weights that is kept; lower in the first few steps."""
    discriminator_lr: float = Field(default=1.0, gt=0)
    """Times TrainConfig.lr: two time scales (Heusel et al., NeurIPS 2017, section 2)."""
    features: str = ""
    """The run of a classifier whose penultimate features measure the distance; empty: a small one is made first."""

    def build(self, config: TrainConfig, dataset: LabelledDataset, *, runs_dir: Path | None = None) -> Adversarial:
        """Raises ConfigError for data that is no pictures, and for what does not go with this task."""
        if dataset.x_train.dtype.name != "uint8" or dataset.x_train.ndim != 4:
            raise ConfigError(
                f"task.kind=adversarial learns pictures, uint8 (N, C, H, W), and {dataset.name} holds "
                f"{dataset.x_train.dtype} {list(dataset.x_train.shape)}; bring pictures"
            )
        if config.compile and self.r1 > 0:
            raise ConfigError(
                f"compile=true cannot go with task.r1={self.r1}: its gradient of a gradient is not compiled by torch; "
                "set compile=false, or task.r1=0"
            )
        if config.transfer is not None or config.average != "none":
            what = f"average={config.average}" if config.transfer is None else "transfer"
            raise ConfigError(f"{what} is not for task.kind=adversarial (task.ema averages its generator); unset it")
        return Adversarial(config, dataset, self, runs_dir)


@contextlib.contextmanager
def _without_gradients(module: nn.Module) -> Iterator[None]:
    """What is computed meanwhile leads no gradient into the module's weights, nor wakes its data parallelism."""
    asked = [p for p in module.parameters() if p.requires_grad]
    for parameter in asked:
        parameter.requires_grad_(False)
    yield
    for parameter in asked:
        parameter.requires_grad_(True)


def _latents(generator: nn.Module, batch: Batch, size: int, stream: int) -> Tensor:
    return batch.randn(size, stream=stream).to(next(generator.parameters()).dtype)


class DiscriminatorLoss(nn.Module):
    """Batch -> sum of the discriminator's losses, penalty included."""

    def __init__(self, gan: GAN, latent: int, settings: AdversarialConfig) -> None:
        super().__init__()
        self.model = gan.discriminator  # by this name the checkpoint knows that the task's model holds it already
        self._generator, self._latent, self._settings = (gan.generator,), latent, settings

    def forward(self, batch: Batch) -> Tensor:
        (generator,) = self._generator
        with torch.no_grad():
            made = generator(_latents(generator, batch, self._latent, stream=0))
        real = batch.x.to(next(self.model.parameters()).dtype) / 255.0
        return self.of(real, made, batch.step)

    def of(self, real: Tensor, made: Tensor, step: int) -> Tensor:
        """Pictures in 0..1, float (B, C, H, W) each."""
        settings = self._settings
        penalised = settings.r1 > 0 and step % settings.r1_every == 0
        real = real.detach().requires_grad_(penalised)
        real_B, made_B = self.model(real), self.model(made)
        if settings.loss == "hinge":
            loss = F.relu(1.0 - real_B).sum() + F.relu(1.0 + made_B).sum()
        else:
            loss = F.softplus(-real_B).sum() + F.softplus(made_B).sum()
        if penalised:
            loss = loss + 0.5 * settings.r1 * settings.r1_every * gradient_penalty(real, real_B)
        return loss


def gradient_penalty(x: Tensor, logits_B: Tensor) -> Tensor:
    """Sum over samples of the squared norm of each logit's gradient at its x, to be differentiated once more."""
    (gradient,) = torch.autograd.grad(logits_B.sum(), x, create_graph=True)
    return gradient.square().sum()


class GeneratorLoss(nn.Module):
    """Batch -> sum of the generator's losses. Its average follows here, once a step, with the last step's weights."""

    def __init__(self, gan: GAN, latent: int, settings: AdversarialConfig) -> None:
        super().__init__()
        self.model = gan.generator
        self._gan, self._latent, self._settings = (gan,), latent, settings
        self._followed = -1

    def forward(self, batch: Batch) -> Tensor:
        (gan,) = self._gan
        if batch.step != self._followed:  # a step may come in several pieces
            gan.follow(min(self._settings.ema, (1.0 + batch.step) / (10.0 + batch.step)))
            self._followed = batch.step
        made = self.model(_latents(self.model, batch, self._latent, stream=1))
        with _without_gradients(gan.discriminator):
            made_B = gan.discriminator(made)
        return -made_B.sum() if self._settings.loss == "hinge" else F.softplus(-made_B).sum()


class Adversarial:
    """The task of making pictures like the data's."""

    metric = FRECHET

    def __init__(
        self, config: TrainConfig, dataset: LabelledDataset, settings: AdversarialConfig, runs_dir: Path | None
    ) -> None:
        assert isinstance(config.model, GANConfig)
        self._latent, self._seed, self._labels = config.model.latent, config.seed, dataset.labels
        parts = split(config, dataset)
        # A validation picture's y is its row: with it goes a latent of its own, whichever worker looks at it.
        validation = Part(parts.validation.x, torch.arange(len(parts.validation)))
        self.parts = Parts(parts.train, validation, parts.test)
        self.shapes = {"inputs": [self._latent], "outputs": list(dataset.x_train.shape[1:])}
        model = config.model.build((self._latent,), dataset.x_train.shape[1:])
        self.model: nn.Module = model
        self.phases: tuple[Phase, ...] = (
            Phase("discriminator", DiscriminatorLoss(model, self._latent, settings), settings.discriminator_lr),
            Phase("generator", GeneratorLoss(model, self._latent, settings)),
        )
        self._judge = (
            classifier_of_run(settings.features, dataset, runs_dir)
            if settings.features
            else own_classifier(config, dataset, runs_dir)
        )
        self._fixed = noise((len(validation), self._latent), config.seed, 0, _FIXED)

    def sums(self, model: nn.Module, part: Part) -> Tensor:
        """The moments of the real pictures' features, then those of as many made ones."""
        both: list[Tensor] = []
        for piece in in_pieces(part):
            made = self._drawn(model, self._fixed[piece.y.cpu()], piece.x.device)
            dtype = made.dtype
            both.append(torch.stack([self._moments(piece.x.to(dtype)), self._moments(made * 255.0)]))
        if not both:
            return torch.zeros(2 * len(self._moments(torch.zeros(1, *self.shapes["outputs"]))), dtype=torch.float64)
        return torch.stack(both).sum(0).flatten()

    def metrics(self, sums: Tensor) -> dict[str, float]:
        real, made = sums.chunk(2)
        return {"frechet": frechet.distance(made, real)}

    def findings(self, model: nn.Module) -> Findings:
        """As many pictures as the test part has, beside what real ones and noise would get."""
        test = self.parts.test.x
        made = torch.cat([self._drawn(model, z, test.device) for z in torch.split(self.tested(), 512)]) * 255.0
        drawn = noise(tuple(test.shape), self._seed, 1, _TESTED).to(test.device)
        grey = torch.special.ndtr(drawn) * 255.0  # every grey equally often
        real = self._all(test.to(made.dtype))
        middle = len(test) // 2
        halves = frechet.distance(self._all(test[:middle].to(made.dtype)), self._all(test[middle:].to(made.dtype)))
        figures = {
            "frechet": frechet.distance(self._all(made), real),
            "frechet_of_real_halves": halves,
            "frechet_of_noise": frechet.distance(self._all(grey.to(made.dtype)), real),
        }
        shares = self._shares(made)
        figures["classes_made"] = float(torch.special.entr(shares).sum().exp())
        least, most = int(shares.argmin()), int(shares.argmax())
        notes = (
            f"Fréchet distance of {len(test):,} made pictures to the {len(test):,} of the test part: "
            f"{figures['frechet']:.2f}; of one half of these to the other: {halves:.2f}; of noise: "
            f"{figures['frechet_of_noise']:.2f} (features of this data's own classifier: no published FID compares)",
            f"made pictures by class: most often {self._labels[most]} ({float(shares[most]):.1%}), least often "
            f"{self._labels[least]} ({float(shares[least]):.1%}); as varied as {figures['classes_made']:.1f} equally "
            f"frequent classes of {len(self._labels)}",
        )
        return Findings(figures, notes, {"samples": made[:_SHOWN].round().to(torch.uint8)})

    def tested(self) -> Tensor:
        """The latents (N, Z) whose pictures are judged: as many as the test part has, the same ones every time."""
        return noise((len(self.parts.test), self._latent), self._seed, 0, _TESTED)

    @torch.no_grad()
    def features(self, pictures: Tensor) -> Tensor:
        """What pictures (N, C, H, W) in 0..1 are compared by, (N, D)."""
        return torch.cat([self._features(piece * 255.0) for piece in torch.split(pictures, 512)])

    @torch.no_grad()
    def real_moments(self) -> Tensor:
        """`frechet.moments` of the features of the test part's pictures."""
        return self._all(self.parts.test.x.to(torch.float32))

    def _drawn(self, model: nn.Module, latents: Tensor, device: torch.device) -> Tensor:
        """Pictures in 0..1."""
        made: Tensor = model(latents.to(device, next(model.parameters()).dtype))
        return made

    def _features(self, x: Tensor) -> Tensor:
        """Of pictures in 0..255, whole numbers or not: what is made is not rounded before it is judged."""
        features: Tensor = self._judge_for(x).penultimate(x)
        return features

    def _judge_for(self, x: Tensor) -> Any:
        with torch.inference_mode(mode=False):  # weights moved within it could not be moved again outside
            return self._judge.to(x.device, x.dtype)

    def _moments(self, x: Tensor) -> Tensor:
        return frechet.moments(self._features(x))

    def _all(self, x: Tensor) -> Tensor:
        return torch.stack([self._moments(piece) for piece in torch.split(x, 512)]).sum(0)

    def _shares(self, x: Tensor) -> Tensor:
        """How often the classifier sees each class."""
        seen = torch.cat([self._judge_for(x)(piece).argmax(1) for piece in torch.split(x, 512)])
        return torch.bincount(seen, minlength=len(self._labels)).to(torch.float64) / len(seen)
