"""Who trains along with us? Rank and size of torch's process group, and sums over it; one worker without a group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class Workers:
    """The workers of one run, seen from the one with this rank."""

    rank: int = 0
    size: int = 1

    @classmethod
    def of_this_process(cls) -> Workers:
        """Those of torch's process group if there is one, else this process alone."""
        if dist.is_available() and dist.is_initialized():
            return cls(rank=dist.get_rank(), size=dist.get_world_size())
        return cls()

    def data_parallel(self, model: nn.Module) -> nn.Module:
        """`model` with gradients averaged over the workers; all start from rank 0's weights and buffers."""
        if self.size == 1:
            return model
        # The only buffers are constants: sending them along with every step would be for nothing.
        return DistributedDataParallel(model, forward_sync_buffers=False, gradient_as_bucket_view=True)

    def sum(self, *values: float) -> list[float]:
        """Each value summed over the workers: the very same numbers on all, so what follows from them is the same."""
        total = torch.tensor(values, dtype=torch.float64)
        if self.size > 1:
            dist.all_reduce(total)
        return [float(value) for value in total]
