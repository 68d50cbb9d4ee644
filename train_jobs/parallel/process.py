"""Settings of a training worker's whole process: it is one core, and it keeps the memory that it frees."""

from __future__ import annotations

import contextlib
import ctypes

import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _LARGEST_KEPT_BYTES = 512 << 20, 32 << 20  # the second is the most that glibc takes


def settle() -> None:
    """Call once, before the first tensor. Where the C library is not glibc, only the threads are set."""
    torch.set_num_threads(1)  # more would fight with the other workers over the cores
    # Every step frees and asks again for the same few dozen megabytes. By default glibc hands them back to the kernel
    # in between, which then clears every page anew: keeping them made two workers on two cores 1.4 times as fast.
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
        libc.mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
