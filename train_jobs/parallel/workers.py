"""Who trains along with us? Rank and size of torch's process group, and sums over it; one worker without a group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from train_jobs.models.layers import batch_norms
from train_jobs.parallel.hooks import CommHook, Traffic


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

    def data_parallel(
        self, model: nn.Module, hook: CommHook | None = None, traffic: Traffic | None = None
    ) -> nn.Module:
        """`model` with gradients averaged over the workers; all start from rank 0's weights and buffers.

        Gradients travel in buckets while the backward pass still computes the earlier layers'; `hook` makes them
        smaller on the way, and `traffic` counts what was sent. Li et al., "PyTorch Distributed", VLDB 2020, section 3.
        """
        if self.size == 1:
            return model
        # Constants need not be sent along with every step; running statistics of batch normalisation do differ.
        moving = bool(batch_norms(model))
        wrapped = DistributedDataParallel(model, forward_sync_buffers=moving, gradient_as_bucket_view=True)
        if hook is not None:
            hook.register(wrapped, traffic or Traffic())
        return wrapped

    def total(self, values: Tensor) -> Tensor:
        """float64, summed over the workers: the very same numbers on all, so what follows from them is the same."""
        summed = values.detach().to(torch.float64)
        if self.size > 1:
            there = summed.to("cuda") if dist.get_backend() == "nccl" else summed
            dist.all_reduce(there)
            summed = there.cpu()
        return summed

    def any(self, flag: bool) -> bool:
        """Does one of them say so?"""
        return bool(self.total(torch.tensor([float(flag)], dtype=torch.float64))[0] > 0)
