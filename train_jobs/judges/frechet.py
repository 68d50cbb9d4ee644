"""Pictures made of the same latents -> their Fréchet distance to the real ones of the test part.

The distance of samples is too high by what chance adds to their moments, the less the more pictures there are
(Binkowski et al., "Demystifying MMD GANs", ICLR 2018, section 4). It is that of as many made pictures as there are real
ones, here as in training, and its interval is about that figure. Pictures drawn anew repeat each other, which adds the
same once more: the draws are moved back by their mean's excess. Of two variants both distances are too high alike:
their difference is free of it, and, as a share of a figure that is a little too high, a little small.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from cluster.errors import InvalidRequest
from cluster.variants import Accuracy
from train_jobs.judges.judge import Array, Evidence, Other, batches, whole
from train_jobs.judges.relative import Drawn, judged
from train_jobs.tasks import frechet
from train_jobs.tasks.adversarial import FRECHET, Adversarial

_RESAMPLES = 200
_GROUPS, _FEWEST = 250, 30
"""Pictures are drawn in groups, whose moments are added up. They are independent of each other, so a group is a draw as
good as a picture, and a picture's D x D products are made once."""
_HELD = 1 << 25
"""Numbers of all groups' moments together: 256 MiB; wide features make do with fewer groups."""
_AT_ONCE = 20
"""Resamples whose moments are held."""


class FrechetJudge:
    """Evidence: float32 (N, D), the features of the made pictures, as the task's own classifier sees them."""

    metric = FRECHET

    def __init__(self, *, task: Adversarial, dataset: str, inputs: str, output: str, seed: int) -> None:
        """`inputs` takes latents (B, Z) and `output` gives pictures (B, C, H, W) in 0..1. The latents are those by
        which training judged its result. `seed` chooses the draws of the bootstrap."""
        self.dataset = dataset
        self._task, self._entry, self._output, self._seed = task, inputs, output, seed
        self._latents = task.tested().numpy()

    @cached_property
    def _real(self) -> Tensor:
        return self._task.real_moments()

    def inputs(self, batch_size: int) -> Iterator[dict[str, Array]]:
        return batches(self._latents, self._entry, batch_size)

    def read(self, outputs: Iterable[Mapping[str, Array]]) -> Evidence:
        shape = tuple(self._task.shapes["outputs"])
        features: list[Array] = []
        for each in outputs:
            made = each[self._output]
            if made.shape[1:] != shape:
                raise InvalidRequest(
                    f"output {self._output!r} has shape {list(made.shape)}, and pictures are {list(shape)}; leave out "
                    "the pass that changed it"
                )
            features.append(self._task.features(torch.from_numpy(made)).numpy())
        return whole(features, len(self._latents))

    def accuracy(
        self, evidence: Evidence, *, runtime: str, parent: Other | None = None, root: Other | None = None
    ) -> Accuracy:
        """Differences are relative: the ratio of both distances on the same draws of latents. Takes about a second by
        the task's own features; by hundreds of another classifier's, minutes."""
        groups = min(len(evidence), max(_FEWEST, min(_GROUPS, _HELD // evidence.shape[1] ** 2)))
        known: dict[str, Drawn] = {}

        def of(other: Other | None) -> tuple[str, Drawn] | None:
            if other is None:
                return None
            if other[0] not in known:  # the parent is often the root
                known[other[0]] = self._drawn(other[1], groups)
            return other[0], known[other[0]]

        return judged(
            self.metric, self._drawn(evidence, groups), parent=of(parent), root=of(root), independent=groups,
            samples=len(evidence), dataset=self.dataset, runtime=runtime,
        )  # fmt: skip

    def _drawn(self, features_ND: Evidence, groups: int) -> Drawn:
        parts = [torch.from_numpy(rows) for rows in np.array_split(features_ND, groups)]
        moments_GM = torch.stack([frechet.moments(rows_ND) for rows_ND in parts])
        value = frechet.distance(moments_GM.sum(0), self._real)
        even = np.full(groups, 1 / groups)
        counts = np.random.default_rng(self._seed).multinomial(groups, even, size=_RESAMPLES)
        counts_RG = torch.from_numpy(counts).to(torch.float64)
        again = [
            frechet.distance(moments_M, self._real)
            for some_RG in torch.split(counts_RG, _AT_ONCE)
            for moments_M in some_RG @ moments_GM
        ]
        again_R = np.asarray(again)
        return Drawn(value, np.maximum(again_R - again_R.mean() + value, 0.0))
