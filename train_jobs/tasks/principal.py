"""Principal components: what a linear autoencoder can do at best, and so the figure beside each autoencoder's.

Baldi and Hornik, "Neural Networks and Principal Component Analysis: Learning from Examples Without Local Minima",
Neural Networks 2(1), 1989.

Shapes: N samples, D values, K components.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Principal:
    """The mean and the directions of most variance of some training samples."""

    mean: Tensor
    """(D,)."""
    directions: Tensor
    """(K, D), orthonormal."""

    @classmethod
    def fit(cls, pieces: Iterable[Tensor], components: int) -> Principal:
        """Of samples that come in pieces (N, ...); at most D components. Sums are float64, and no sample is kept."""
        number, total, outer, middle = 0, None, None, None
        for piece in pieces:
            x_ND = piece.flatten(1)
            # Products in the samples' own precision are several times as fast; about their middle they lose nothing.
            middle = x_ND.mean(0) if middle is None else middle
            x_ND = x_ND - middle
            number += len(x_ND)
            sums, products = x_ND.sum(0).double(), (x_ND.T @ x_ND).double()
            total = sums if total is None else total + sums
            outer = products if outer is None else outer + products
        assert total is not None
        assert outer is not None
        assert middle is not None
        mean = total / number
        _, vectors = torch.linalg.eigh(outer / number - torch.outer(mean, mean))
        chosen = vectors[:, -min(components, len(mean)) :].T.contiguous()
        return cls((mean + middle.double()).to(middle.dtype), chosen.to(middle.dtype))

    def errors(self, x: Tensor, *, absolute: bool = False) -> Tensor:
        """(N,): mean squared, or absolute, error of each sample's reconstruction."""
        off = x.flatten(1) - self.mean
        rest = off - (off @ self.directions.T) @ self.directions
        return rest.abs().mean(1) if absolute else rest.square().mean(1)
