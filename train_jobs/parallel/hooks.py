"""Gradients made smaller on their way between workers, and what that saves, counted.

bf16 halves every bucket; PowerSGD sends two thin factors instead of a matrix (Vogels et al., "PowerSGD: Practical
Low-Rank Gradient Compression for Distributed Optimization", NeurIPS 2019, algorithm 1), with the error fed back.
"""

# No `from __future__ import annotations` here: torch compares a hook's annotations with its own classes, not strings.
from dataclasses import dataclass
from typing import Literal

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
from torch.nn.parallel import DistributedDataParallel


@dataclass
class Traffic:
    """Bytes of gradients that one worker handed over for averaging, and what they would have been without the hook."""

    sent_bytes: int = 0
    uncompressed_bytes: int = 0

    def add(self, bucket_bytes: int, sent_bytes: int) -> None:
        self.uncompressed_bytes += bucket_bytes
        self.sent_bytes += sent_bytes


class CommHook(BaseModel):
    """How gradients travel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["none", "bf16", "powersgd"] = "none"
    rank: int = Field(default=2, ge=1)
    """PowerSGD: rank of the factors; higher is closer and larger."""
    start_step: int = Field(default=10, ge=2)
    """PowerSGD: steps that are averaged whole first, while gradients change direction fastest."""

    def register(self, model: DistributedDataParallel, traffic: Traffic) -> None:
        """Let the gradients of `model` travel this way. Call before its first backward pass."""
        if self.kind == "powersgd":
            state = powerSGD_hook.PowerSGDState(
                process_group=None, matrix_approximation_rank=self.rank, start_powerSGD_iter=self.start_step,
                min_compression_rate=1, batch_tensors_with_same_shape=True,
            )  # fmt: skip

            def factors(state: powerSGD_hook.PowerSGDState, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
                whole, size = bucket.buffer().numel(), bucket.buffer().element_size()
                before = state.total_numel_after_compression
                answer = powerSGD_hook.powerSGD_hook(state, bucket)
                sent = state.total_numel_after_compression - before or whole  # none counted: it went whole
                traffic.add(whole * size, sent * size)
                return answer

            model.register_comm_hook(state, factors)
            return
        hook = default_hooks.bf16_compress_hook if self.kind == "bf16" else default_hooks.allreduce_hook

        def counted(group: dist.ProcessGroup | None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:  # type: ignore[name-defined]
            elements, size = bucket.buffer().numel(), bucket.buffer().element_size()
            traffic.add(elements * size, elements * (2 if self.kind == "bf16" else size))
            return hook(group, bucket)  # type: ignore[arg-type]

        model.register_comm_hook(None, counted)
