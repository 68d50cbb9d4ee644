"""How far apart are two sets of pictures? The Fréchet distance between Gaussians with their features' moments.

Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a Local Nash Equilibrium", NeurIPS 2017,
equation 6. The features are those of a classifier of the data at hand, not Inception's: figures compare with each
other, not with published FIDs.

Shapes: N samples, D features.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def moments(features_ND: Tensor) -> Tensor:
    """float64 (1 + D + D*D): number, sum, and sum of outer products; such sums of parts of a set may be added up."""
    f = features_ND.to(torch.float64)
    number = torch.tensor([float(len(f))], dtype=torch.float64, device=f.device)
    return torch.cat([number, f.sum(0), (f.T @ f).flatten()])


def distance(one: Tensor, other: Tensor) -> float:
    """The squared distance |m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2)) of two `moments`; 0 for a set and itself."""
    mean1, cov1 = _gaussian(one)
    mean2, cov2 = _gaussian(other)
    root1 = _root(cov1)
    # C1 C2 is similar to the symmetric root1 C2 root1, whose eigenvalues are found exactly and are none below zero.
    values = torch.linalg.eigvalsh(root1 @ cov2 @ root1).clamp(min=0)
    apart = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * values.sqrt().sum()
    return max(float(apart), 0.0)


def _gaussian(sums: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D)."""
    size = (math.isqrt(4 * len(sums) - 3) - 1) // 2
    number, total, outer = float(sums[0]), sums[1 : 1 + size], sums[1 + size :].reshape(size, size)
    mean = total / number
    return mean, (outer - number * torch.outer(mean, mean)) / max(number - 1, 1)


def _root(cov: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(cov)
    root: Tensor = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return root
