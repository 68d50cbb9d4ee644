"""What machine is this? A figure without its hardware is no figure."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16")
_LIBRARIES = ("ray", "torch", "onnxruntime", "numpy")


def _cpu() -> tuple[str, list[str]]:
    """(model name, which of the flags that matter to inference it has); unknown and none off Linux."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or "unknown", []
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    has = set(named.get("flags", named.get("Features", "")).split())
    return named.get("model name", platform.machine()), [flag for flag in _FLAGS if flag in has]


@functools.cache
def _facts() -> dict[str, Any]:
    model, flags = _cpu()
    versions = {}
    for library in _LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = "not installed"
    return {
        "cpu": model,
        "cores": os.cpu_count() or 1,
        "flags": flags,
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": versions,
    }


def fingerprint() -> dict[str, Any]:
    """CPU model, cores, instruction sets, memory in bytes, kernel and library versions; imports none of the latter.

    `cores` are the machine's, `cores_usable` those that this process may run on.
    """
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return copy.deepcopy(_facts()) | {"cores_usable": usable}  # a copy: no caller can spoil it for the next
