"""Which pictures does each worker see, and how? Every epoch shows every sample once, to one worker.

Both answers depend on (seed, epoch) alone, so a run is the same one at any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_ORDER, _MIRROR, _NOISE = 1, 2, 3


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*numbers))


def _seed(*numbers: int) -> int:
    """One seed out of several numbers; unlike sums of products, no two streams collide."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def batches(
    samples: int, batch_size: int, *, epoch: int, seed: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, int]]:
    """(this worker's indices, size of the global batch) for each step of the epoch.

    A global batch is dealt out like cards, so shares differ by one at most; only the last batch may be short.
    """
    order = torch.randperm(samples, generator=_generator(seed, epoch, _ORDER))
    for start in range(0, samples, batch_size):
        whole = order[start : start + batch_size]
        yield whole[rank::world_size], len(whole)


def mirrored(x_NCHW: Tensor, *, epoch: int, seed: int) -> Tensor:
    """A copy in which half of the pictures, others each epoch, are flipped left to right."""
    chosen = torch.rand(len(x_NCHW), generator=_generator(seed, epoch, _MIRROR)) < 0.5
    copy = x_NCHW.clone()
    copy[chosen] = copy[chosen].flip(-1)
    return copy


def seed_noise(*, epoch: int, seed: int, rank: int) -> None:
    """Seed torch's own generator, of which dropout draws: differs by worker and epoch, repeats on a resumed run."""
    torch.manual_seed(_seed(seed, epoch, rank, _NOISE))
