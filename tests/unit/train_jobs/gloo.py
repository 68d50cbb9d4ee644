"""Run one function in several processes that form a Gloo process group; a hang is a failure, not a wait.

A scenario is a function of a module, called as `scenario(*args)` on each rank; what it returns comes back by rank.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

multiprocessing.set_forkserver_preload(["torch", "train_jobs.loop", "train_jobs.tasks"])
"""Imported once, and forked from there: each process importing torch itself took longer than most scenarios."""


def run(
    scenario: Callable[..., Any], *args: Any, world_sizes: Sequence[int], timeout_s: float = 120.0
) -> dict[int, list[Any]]:
    """By world size, what each rank returned; the groups follow one another in the same processes, which are dear.

    Raises TimeoutError if they do not all end in time, and whatever a rank raised.
    """
    with tempfile.TemporaryDirectory() as folder:
        processes = mp.start_processes(
            _rank, args=(world_sizes, folder, scenario, args), nprocs=max(world_sizes), join=False,
            start_method="forkserver",
        )
        end = time.monotonic() + timeout_s
        try:
            while not processes.join(timeout=1.0):
                if time.monotonic() > end:
                    raise TimeoutError(f"{scenario.__name__} hangs on {world_sizes} workers")
        finally:
            for process in processes.processes:
                if process.is_alive():
                    process.kill()
        return {
            size: [torch.load(Path(folder) / f"{rank}-of-{size}", weights_only=False) for rank in range(size)]
            for size in world_sizes
        }


def _rank(
    rank: int, world_sizes: Sequence[int], folder: str, scenario: Callable[..., Any], args: tuple[Any, ...]
) -> None:
    torch.set_num_threads(1)
    for size in world_sizes:
        if rank >= size:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous-{size}", rank=rank, world_size=size)
        try:
            torch.save(scenario(*args), Path(folder) / f"{rank}-of-{size}")
        finally:
            dist.destroy_process_group()
