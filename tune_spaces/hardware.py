"""Machine -> what `sluice hardware` prints: tables for people, one JSON object for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.hardware import binary, summary
from cluster.machine import Machine, read_machine
from cluster.native import Native, native

_PAIR_HEADERS = ("runtime", "precision", "computed", "tried", "why")


def show(*, as_json: bool) -> None:
    """Cores, caches, NUMA nodes, instruction sets, GPUs, memory and libraries; then each runtime with each precision.
    """
    machine = read_machine()
    pairs = native(machine)
    if as_json:
        print(json.dumps(machine.as_dict() | {"runtimes": [pair.as_dict() for pair in pairs]}, indent=2))
        return
    console = Console()
    console.print(_table("Machine", ("what", "value"), machine_rows(machine)))
    console.print(_table("Runtimes and precisions", _PAIR_HEADERS, pair_rows(pairs)))
    console.print("tried: `sluice tune` measures it here; left out is only what cannot be faster than fp32.")


def machine_rows(machine: Machine) -> list[tuple[str, str]]:
    """(what, value) in words; "unknown" where the kernel does not say."""
    return [
        ("CPU", f"{machine.cpu.name} ({machine.cpu.model})" if machine.cpu.model else machine.cpu.name),
        ("cores", _cores(machine)),
        ("caches", ", ".join(f"{level} {size}" for level, size in summary(machine.caches).items()) or "unknown"),
        ("NUMA nodes", "; ".join(_numa(machine)) or "unknown"),
        ("instruction sets", _instruction_sets(machine)),
        ("memory", _memory(machine)),
        ("GPUs", "; ".join(_gpus(machine)) or "none found"),
        ("kernel, Python", f"{machine.kernel}, {machine.python}"),
        ("libraries", ", ".join(f"{name} {version}" for name, version in machine.libraries.items())),
    ]


def pair_rows(pairs: Sequence[Native]) -> list[tuple[str, ...]]:
    return [(p.runtime, p.precision, p.how, "yes" if p.may_gain else "no", p.why) for p in pairs]


def ranges(cores: Iterable[int]) -> str:
    """The inverse of the kernel's lists (hardware.cores_in): [0, 1, 2, 8] -> 0-2,8"""
    runs: list[list[int]] = []
    for core in sorted(set(cores)):
        if runs and core == runs[-1][1] + 1:
            runs[-1][1] = core
        else:
            runs.append([core, core])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """All of it words, so all of it begins at the left."""
    made = Table(*headers, title=title, title_justify="left")
    for row in rows:
        made.add_row(*map(Text, row))
    return made


def _cores(machine: Machine) -> str:
    cores = machine.cores
    logical, physical, sockets = (
        "unknown" if count is None else str(count) for count in (cores.logical, cores.physical, cores.sockets)
    )
    usable = f"{len(cores.usable)} ({ranges(cores.usable)})" if cores.usable else "unknown"
    quota = "no limit" if cores.quota is None else f"{cores.quota:g} cores' worth of time"
    return f"logical {logical}, physical {physical}, sockets {sockets}; usable {usable}; control group: {quota}"


def _numa(machine: Machine) -> list[str]:
    return [
        f"{node.number}: cores {ranges(node.cores) or 'none'}"
        + (f", {binary(node.memory_bytes)}" if node.memory_bytes is not None else "")
        for node in machine.numa
    ]


def _instruction_sets(machine: Machine) -> str:
    sets = machine.instruction_sets
    if not sets:
        return "unknown"
    has, lacks = ([name for name, there in sets.items() if there is wanted] for wanted in (True, False))
    return f"{', '.join(has) or 'none'}; not: {', '.join(lacks) or 'nothing'}"


def _memory(machine: Machine) -> str:
    memory = machine.memory
    total, available = ("unknown" if size is None else binary(size) for size in (memory.total, memory.available))
    limit = "no limit" if memory.limit is None else binary(memory.limit)
    return f"{total}, {available} available; control group: {limit}"


def _gpus(machine: Machine) -> list[str]:
    told = []
    for gpu in machine.gpus:
        facts = [
            binary(gpu.memory_bytes) if gpu.memory_bytes is not None else "",
            f"driver {gpu.driver}" if gpu.driver else "",
            f"compute capability {gpu.compute_capability}" if gpu.compute_capability else "",
        ]
        told.append(", ".join([gpu.name, *(fact for fact in facts if fact)]))
    return told
