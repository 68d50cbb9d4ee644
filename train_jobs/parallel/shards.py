"""Which pictures does each worker see? Deterministic shards: every epoch shows every sample once, to one worker."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def batches(
    samples: int, batch_size: int, *, epoch: int, seed: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, int]]:
    """(this worker's indices, size of the global batch) for each step of the epoch.

    The order depends on (seed, epoch) alone. A global batch is dealt out like cards, so shares differ by one at most,
    and the batches are the same ones at any number of workers; only the last may be short.
    """
    generator = torch.Generator().manual_seed(seed * 100_003 + epoch)
    order = torch.randperm(samples, generator=generator)
    for start in range(0, samples, batch_size):
        whole = order[start : start + batch_size]
        yield whole[rank::world_size], len(whole)
