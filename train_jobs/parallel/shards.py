"""Which samples does each worker see, and how? Every epoch shows every sample once, to one worker.

All answers depend on seed, epoch and step alone, so a run is the same one at any number of workers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

_ORDER, _MIRROR, _NOISE, _DRAWN = 1, 2, 3, 4


def _generator(*numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(_seed(*numbers))


def _seed(*numbers: int) -> int:
    """One seed out of several numbers; unlike sums of products, no two streams collide."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


def batches(
    samples: int, batch_size: int, *, epoch: int, seed: int, rank: int = 0, world_size: int = 1, skip: int = 0
) -> Iterator[tuple[Tensor, int]]:
    """(this worker's indices, size of the global batch) for each step of the epoch but the first `skip`.

    A global batch is dealt out like cards, so shares differ by one at most; only the last batch may be short.
    """
    order = torch.randperm(samples, generator=_generator(seed, epoch, _ORDER))
    for start in range(skip * batch_size, samples, batch_size):
        whole = order[start : start + batch_size]
        yield whole[rank::world_size], len(whole)


def mirrored(samples: int, *, epoch: int, seed: int) -> Tensor:
    """bool (N,): which pictures are flipped left to right in this epoch; half of them."""
    return torch.rand(samples, generator=_generator(seed, epoch, _MIRROR)) < 0.5


def noise(shape: tuple[int, ...], seed: int, step: int, stream: int) -> Tensor:
    """Normal noise that depends on the three numbers alone; float32."""
    return torch.randn(shape, generator=_generator(seed, step, stream, _DRAWN), dtype=torch.float32)


def seed_noise(*, step: int, seed: int, rank: int) -> None:
    """Seed torch's own generator, of which dropout draws: differs by worker and step, repeats on a resumed run."""
    torch.manual_seed(_seed(seed, step, rank, _NOISE))
