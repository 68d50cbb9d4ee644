"""/proc, /sys and the NVIDIA driver -> Machine: all that `sluice hardware` tells of a machine, unknown where the kernel
is silent.

A fingerprint (hardware.py) is short and goes into every manifest; this is the whole picture. With a `root` it reads the
saved /proc and /sys of another machine; nvidia-smi is not asked then, and Python and the libraries stay our own.
"""

from __future__ import annotations

import csv
import dataclasses
import os
import platform
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.hardware import (
    LIBRARIES,
    ROOT,
    Cache,
    Cpu,
    cgroup_limits,
    cores_in,
    read_caches,
    read_cpu,
    text_of,
    usable_cores,
    version_of,
)

Family = Literal["x86", "arm", "unknown"]
INSTRUCTION_SETS: dict[str, tuple[Family, str]] = {
    "avx2": ("x86", "AVX2"),
    "avx512f": ("x86", "AVX-512F"),
    "avx512_vnni": ("x86", "AVX-512 VNNI"),
    "avx_vnni": ("x86", "AVX-VNNI"),
    "avx512_bf16": ("x86", "AVX-512 BF16"),
    "amx_int8": ("x86", "AMX int8"),
    "amx_bf16": ("x86", "AMX bf16"),
    "amx_fp16": ("x86", "AMX fp16"),
    "asimddp": ("arm", "dot product"),
    "i8mm": ("arm", "I8MM"),
    "bf16": ("arm", "BF16"),
}
"""The kernel's word -> whose it is and what people call it."""
_SMI_SECONDS = 10.0
_SMI_FIELDS = ("name", "memory.total", "driver_version", "compute_cap")


@dataclass(frozen=True)
class Cores:
    """`logical` are what the kernel schedules on, `physical` what computes; None is unknown."""

    logical: int | None
    physical: int | None
    sockets: int | None
    usable: tuple[int, ...]
    """Those that this process may run on."""
    quota: float | None
    """Cores' worth of time that the control group grants; None is no limit."""


@dataclass(frozen=True)
class NumaNode:
    number: int
    cores: tuple[int, ...]
    memory_bytes: int | None


@dataclass(frozen=True)
class Memory:
    """In bytes; None is unknown, or no limit."""

    total: int | None
    available: int | None
    limit: int | None
    """The control group's."""


@dataclass(frozen=True)
class Gpu:
    """None is unknown: without nvidia-smi the driver's own files tell no more than the name and its version."""

    name: str
    memory_bytes: int | None
    driver: str | None
    compute_capability: str | None
    """9.0 is Hopper."""


@dataclass(frozen=True)
class Machine:
    """What one machine has, and what of it this process may use."""

    cpu: Cpu
    cores: Cores
    caches: tuple[Cache, ...]
    numa: tuple[NumaNode, ...]
    """None of them where the kernel does not say."""
    memory: Memory
    gpus: tuple[Gpu, ...]
    kernel: str
    python: str
    libraries: dict[str, str]

    @property
    def instruction_sets(self) -> dict[str, bool]:
        """{"AVX2": True, "AVX-512F": False, ...}: those of this family of CPUs; empty where the kernel does not say."""
        mine = family(self.cpu)
        return {word: flag in self.cpu.flags for flag, (of, word) in INSTRUCTION_SETS.items() if of == mine}

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON has it; caches counted by kind."""
        caches = Counter((cache.level, cache.kind, cache.size_bytes) for cache in self.caches)
        plain = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        plain |= {name: dataclasses.asdict(plain[name]) for name in ("cpu", "cores", "memory")}
        plain |= {name: [dataclasses.asdict(each) for each in plain[name]] for name in ("numa", "gpus")}
        plain["cpu"] |= {"family": family(self.cpu), "instruction_sets": self.instruction_sets}
        plain["caches"] = [
            {"level": level, "kind": kind, "size_bytes": size, "count": count}
            for (level, kind, size), count in sorted(caches.items())
        ]
        return plain


def read_machine(root: Path = ROOT) -> Machine:
    """This machine, or the one whose /proc and /sys were saved under `root`."""
    here = root == ROOT
    release = text_of(root / "proc/sys/kernel/osrelease")
    return Machine(
        cpu=read_cpu(root),
        cores=_cores(root, here=here),
        caches=read_caches(root),
        numa=_numa(root),
        memory=_memory(root),
        gpus=read_gpus(root),
        kernel=release or (platform.release() if here else "unknown"),
        python=platform.python_version(),
        libraries={library: version_of(library) for library in LIBRARIES},
    )


def read_gpus(root: Path = ROOT) -> tuple[Gpu, ...]:
    """NVIDIA's, as its own program tells them, else as the driver's files do."""
    return (_smi_gpus() if root == ROOT else ()) or _driver_gpus(root)


def family(cpu: Cpu) -> Family:
    """Whose instruction sets its flags are: x86 kernels name the vendor, ARM's its number (hardware.Cpu.model)."""
    if not cpu.model:
        return "unknown"
    return "arm" if cpu.model.startswith("0x") else "x86"


def parse_smi(text: str) -> tuple[Gpu, ...]:
    """What nvidia-smi answers to --query-gpu=name,memory.total,driver_version,compute_cap; "[N/A]" is unknown.

    Shorter rows, of drivers that know no compute_cap, are taken too; lines that are no rows are not.
    """
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) < 3:
            continue
        name, memory, driver, *rest = (field.strip() for field in row)
        known = [field if field and not field.startswith("[") else None for field in (driver, *rest[:1])]
        size = int(memory) << 20 if memory.isdigit() else None
        found.append(Gpu(name, size, known[0], known[1] if len(known) > 1 else None))
    return tuple(found)


def _cores(root: Path, *, here: bool) -> Cores:
    """From /sys; from /proc/cpuinfo where that is all there is."""
    described = [_fields(block) for block in text_of(root / "proc/cpuinfo").split("\n\n")]
    numbers = cores_in(text_of(root / "sys/devices/system/cpu/online"))
    logical = len(numbers) or sum("processor" in block for block in described) or (os.cpu_count() if here else None)
    topology = [root / f"sys/devices/system/cpu/cpu{number}/topology" for number in numbers]
    # Older kernels call the threads of one core its siblings.
    threads = {text_of(at / "core_cpus_list") or text_of(at / "thread_siblings_list") for at in topology} - {""}
    packages = {text_of(at / "physical_package_id") for at in topology} - {""}
    pairs = {(b["physical id"], b["core id"]) for b in described if "physical id" in b and "core id" in b}
    allowed = cores_in(_fields(text_of(root / "proc/self/status")).get("Cpus_allowed_list", ""))
    return Cores(
        logical=logical,
        physical=len(threads) or len(pairs) or None,
        sockets=len(packages) or len({package for package, _ in pairs}) or None,
        usable=tuple(sorted(usable_cores() if here else allowed)),
        quota=cgroup_limits(root)[0],
    )


def _numa(root: Path) -> tuple[NumaNode, ...]:
    nodes = []
    for folder in (root / "sys/devices/system/node").glob("node[0-9]*"):
        number = int(folder.name.removeprefix("node"))
        memory = re.search(r"MemTotal:\s*(\d+) kB", text_of(folder / "meminfo"))
        size = int(memory.group(1)) << 10 if memory else None
        nodes.append(NumaNode(number, tuple(cores_in(text_of(folder / "cpulist"))), size))
    return tuple(sorted(nodes, key=lambda node: node.number))


def _memory(root: Path) -> Memory:
    told = _fields(text_of(root / "proc/meminfo"))
    sizes = [int(told[key].split()[0]) << 10 if key in told else None for key in ("MemTotal", "MemAvailable")]
    return Memory(total=sizes[0], available=sizes[1], limit=cgroup_limits(root)[1])


def _smi_gpus() -> tuple[Gpu, ...]:
    """nvidia-smi's answer; none if there is no such program, it fails, or it hangs."""
    for fields in (_SMI_FIELDS, _SMI_FIELDS[:-1]):  # drivers before 510 know no compute_cap and refuse the query
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return ()
        if done.returncode == 0:
            return parse_smi(done.stdout)
    return ()


def _driver_gpus(root: Path) -> tuple[Gpu, ...]:
    folder = root / "proc/driver/nvidia"
    version = re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", text_of(folder / "version"))
    told = [_fields(text_of(path)) for path in sorted((folder / "gpus").glob("*/information"))]
    driver = version.group(1) if version else None
    return tuple(Gpu(gpu.get("Model", "unknown"), None, driver, None) for gpu in told)


def _fields(text: str) -> dict[str, str]:
    """The kernel's "name : value" lines."""
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}
