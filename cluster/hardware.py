"""What machine is this? A figure without its hardware is no figure.

/proc and /sys -> facts. `fingerprint` stands in manifests and reports; `profile_key` is what a stored profile is found
by; machine.py and native.py say the rest for `sluice hardware`. A function with a `root` can be pointed at the saved
/proc and /sys of another machine.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path("/")
FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16", "amx_fp16",
    "asimddp", "bf16", "i8mm",
)  # fmt: skip
"""The instruction sets that matter to inference; the last three are ARM's."""
LIBRARIES = ("ray", "torch", "onnxruntime", "openvino", "numpy")
_ARM_CORES = {"0xd0c": "Neoverse N1", "0xd40": "Neoverse V1", "0xd49": "Neoverse N2", "0xd4f": "Neoverse V2"}


@dataclass(frozen=True)
class Cpu:
    """`model` tells apart what one name covers: clouds call several generations "AMD EPYC"."""

    name: str
    model: str
    flags: tuple[str, ...]


@dataclass(frozen=True)
class Cache:
    """One cache, not one kind of them: a machine has an L2 for every core or two."""

    level: int
    kind: str
    size_bytes: int
    cores: frozenset[int]


def read_cpu(root: Path = ROOT) -> Cpu:
    """The first core's; unknown and without flags off Linux."""
    try:
        text = (root / "proc/cpuinfo").read_text()
    except OSError:
        return Cpu(platform.processor() or "unknown", "", ())
    lines = (line.split(":", 1) for line in text.strip().split("\n\n")[0].splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in lines}
    has = set(fields.get("flags", fields.get("Features", "")).split())
    part = fields.get("CPU part", "")
    arm = f"ARM {_ARM_CORES.get(part, part)}" if part else platform.machine()
    model = [fields[key] for key in ("vendor_id", "cpu family", "model", "stepping") if key in fields]
    model += [fields[key] for key in ("CPU implementer", "CPU part", "CPU variant", "CPU revision") if key in fields]
    return Cpu(fields.get("model name", arm), "/".join(model), tuple(flag for flag in FLAGS if flag in has))


def read_caches(root: Path = ROOT) -> tuple[Cache, ...]:
    """Data and unified caches of all cores, smallest level first; none where the kernel does not say."""
    found = set()
    for folder in (root / "sys/devices/system/cpu").glob("cpu[0-9]*/cache/index*"):
        said = {name: text_of(folder / name) for name in ("level", "type", "size", "shared_cpu_list")}
        if said["type"] not in ("", "Instruction") and said["size"]:
            cores = frozenset(cores_in(said["shared_cpu_list"]))
            found.add(Cache(int(said["level"]), said["type"].lower(), _bytes(said["size"]), cores))
    return tuple(sorted(found, key=lambda c: (c.level, sorted(c.cores))))


def summary(caches: Iterable[Cache], cores: Iterable[int] | None = None) -> dict[str, str]:
    """{"L1d": "2 x 32 KiB", "L3": "1 x 32 MiB"}: how many caches of each kind `cores` (None: all) reach."""
    mine = None if cores is None else set(cores)
    counted: dict[tuple[str, int], int] = {}
    for cache in caches:
        if mine is None or cache.cores & mine:
            key = (f"L{cache.level}{'d' if cache.kind == 'data' else ''}", cache.size_bytes)
            counted[key] = counted.get(key, 0) + 1
    told: dict[str, str] = {}
    for (level, size), count in counted.items():  # cores of two kinds have caches of two sizes
        told[level] = (f"{told[level]} + " if level in told else "") + f"{count} x {binary(size)}"
    return told


def usable_cores() -> frozenset[int]:
    """Those that this process may run on, now."""
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def cgroup_limits(root: Path = ROOT) -> tuple[float | None, int | None]:
    """(cores' worth of CPU time, bytes of memory) that this process' control groups grant; None is no limit.

    The tightest of its own group and those above counts, in version 1 and 2 alike.
    """
    cores: list[float] = []
    memory: list[int] = []
    for line in text_of(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(",") if controllers else ["unified", "."]:
            top = root / "sys/fs/cgroup" / name
            group = top / path.strip("/")
            for folder in (group, *group.parents) if ".." not in group.parts else (top,):
                quota = text_of(folder / "cpu.max").split() or [
                    text_of(folder / "cpu.cfs_quota_us"), text_of(folder / "cpu.cfs_period_us")
                ]  # fmt: skip
                if len(quota) == 2 and quota[0].isdigit() and quota[1].isdigit():
                    cores.append(int(quota[0]) / int(quota[1]))
                limit = text_of(folder / "memory.max") or text_of(folder / "memory.limit_in_bytes")
                if limit.isdigit() and int(limit) < 1 << 60:  # version 1 says "none" with a huge number
                    memory.append(int(limit))
                if folder == top:
                    break
    return min(cores, default=None), min(memory, default=None)


def version_of(library: str) -> str:
    """The installed distribution's version, which imports nothing, or "not installed"."""
    for distribution in (library, f"{library}-gpu"):  # ONNX Runtime for NVIDIA is one of its own
        with suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(distribution)
    return "not installed"


@functools.cache
def _facts() -> dict[str, Any]:
    cpu = read_cpu()
    return {
        "cpu": cpu.name,
        "cores": os.cpu_count() or 1,
        "flags": list(cpu.flags),
        "caches": summary(read_caches()),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "libraries": {library: version_of(library) for library in LIBRARIES},
    }


def fingerprint() -> dict[str, Any]:
    """CPU model, cores, instruction sets, caches, memory in bytes, kernel and library versions; imports none of them.

    `cores` are the machine's, `cores_usable` those that this process may run on.
    """
    return copy.deepcopy(_facts()) | {"cores_usable": len(usable_cores())}  # a copy: no caller can spoil it for others


_cpu = functools.cache(read_cpu)
_caches = functools.cache(read_caches)


def profile_key(runtime_name: str, *, gpus: Sequence[str] = ()) -> str:
    """Short hash of what a profile's figures depend on: CPU, instruction sets, the usable cores' number, share of time
    and caches, the runtime library's version, and the GPUs of a runtime that computes on one.

    As things are now: the process that measures must be pinned before it asks. Which cores they are does not count,
    nor do kernel, memory, or any other library.
    """
    cores, cpu = usable_cores(), _cpu()
    content = {
        "cpu": [cpu.name, cpu.model, *cpu.flags],
        "cores": len(cores),
        "quota": cgroup_limits()[0],
        "caches": summary(_caches(), cores),
        "runtime": [runtime_name, version_of(runtime_name)],
        **({"gpus": list(gpus)} if gpus else {}),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def cores_in(text: str) -> list[int]:
    """The kernel's "0-3,8,10-11" -> numbers."""
    ranges = (part.partition("-") for part in text.split(",") if part.strip())
    return [core for first, _, last in ranges for core in range(int(first), int(last or first) + 1)]


def binary(size: int) -> str:
    """1536 -> 1.5 KiB"""
    amount, unit = float(size), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.4g} {unit}"


def text_of(path: Path) -> str:
    """The file without white space around it; "" if there is none that can be read."""
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _bytes(size: str) -> int:
    """The kernel's 1024K."""
    return int(size.rstrip("KMG")) * {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}.get(size[-1], 1)
