"""A Machine tells what the kernel tells: here as other sources see it, elsewhere from a saved /proc and /sys."""

from __future__ import annotations

import json
import os
from pathlib import Path

import psutil
import pytest

from cluster.hardware import FLAGS
from cluster.machine import INSTRUCTION_SETS, Gpu, NumaNode, parse_smi, read_machine
from tests.unit.cluster import machines


def test_this_machine_agrees_with_other_sources() -> None:
    machine = read_machine()
    assert machine.cores.logical == psutil.cpu_count(logical=True)
    assert machine.cores.physical == psutil.cpu_count(logical=False)
    assert list(machine.cores.usable) == sorted(psutil.Process().cpu_affinity())
    assert machine.memory.total is not None
    assert abs(machine.memory.total - psutil.virtual_memory().total) < 64 << 20
    assert machine.kernel == os.uname().release
    assert not machine.numa or sum(len(node.cores) for node in machine.numa) == machine.cores.logical


def test_two_sockets_without_vnni(tmp_path: Path) -> None:
    machine = read_machine(machines.two_sockets(tmp_path))
    assert machine.cpu == machines.OLD_AMD
    cores = machine.cores
    assert (cores.logical, cores.physical, cores.sockets, cores.quota) == (8, 4, 2, None)
    assert cores.usable == tuple(range(8))
    assert machine.numa == (NumaNode(0, (0, 1, 4, 5), 32768000 << 10), NumaNode(1, (2, 3, 6, 7), 32768000 << 10))
    assert (machine.memory.total, machine.memory.available) == (65536000 << 10, 32768000 << 10)
    assert machine.memory.limit is None
    assert machine.kernel == "5.15.0-91-generic"
    assert [name for name, there in machine.instruction_sets.items() if there] == ["AVX2"]
    assert machine.instruction_sets["AVX-512 VNNI"] is False
    assert "I8MM" not in machine.instruction_sets


def test_arm(tmp_path: Path) -> None:
    machine = read_machine(machines.neoverse(tmp_path))
    assert machine.cpu.name == "ARM Neoverse V1"
    assert machine.instruction_sets == {"dot product": True, "I8MM": True, "BF16": True}
    assert (machine.cores.logical, machine.cores.physical, machine.cores.sockets) == (2, 2, 1)
    assert machine.caches == ()


@pytest.mark.parametrize(
    ("container", "quota", "limit", "usable"),
    [(machines.container_v2, 1.5, 2 << 30, (2, 3)), (machines.container_v1, 2.5, 1 << 30, ())],
)
def test_a_container_has_what_its_control_group_grants(
    container: object, quota: float, limit: int, usable: tuple[int, ...], tmp_path: Path
) -> None:
    machine = read_machine(container(tmp_path))  # type: ignore[operator]
    assert machine.cores.quota == quota
    assert machine.memory.limit == limit
    assert machine.cores.usable == usable


def test_of_a_silent_kernel_nothing_is_invented(tmp_path: Path) -> None:
    machine = read_machine(tmp_path)
    assert (machine.cores.logical, machine.cores.physical, machine.cores.sockets) == (None, None, None)
    assert (machine.cores.usable, machine.cores.quota) == ((), None)
    assert (machine.memory.total, machine.memory.available, machine.memory.limit) == (None, None, None)
    assert (machine.caches, machine.numa, machine.gpus) == ((), (), ())
    assert machine.instruction_sets == {}
    assert machine.kernel == "unknown"


def test_where_sys_is_hidden_cpuinfo_counts_the_cores(tmp_path: Path) -> None:
    """Sandboxes show /proc alone."""
    blocks = [
        f"processor: {n}\nvendor_id: GenuineIntel\nphysical id: {n // 4}\ncore id: {n // 2 % 2}\nflags: avx2"
        for n in range(8)
    ]
    cores = read_machine(machines.write(tmp_path, {"proc/cpuinfo": "\n\n".join(blocks)})).cores
    assert (cores.logical, cores.physical, cores.sockets) == (8, 4, 2)


def test_the_drivers_files_name_the_gpu(tmp_path: Path) -> None:
    machines.two_sockets(tmp_path)
    assert read_machine(tmp_path).gpus == (Gpu("NVIDIA A100-PCIE-40GB", None, "535.104.05", None),)
    machines.write(tmp_path, {
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.86.15  Release"
    })  # fmt: skip
    assert read_machine(tmp_path).gpus[0].driver == "570.86.15"


def test_what_nvidia_smi_answers() -> None:
    text = "NVIDIA H100 80GB HBM3, 81559, 535.104.05, 9.0\nNVIDIA GH200, [N/A], 550.54.15, [N/A]\n"
    assert parse_smi(text) == (
        Gpu("NVIDIA H100 80GB HBM3", 81559 << 20, "535.104.05", "9.0"),
        Gpu("NVIDIA GH200", None, "550.54.15", None),
    )
    assert parse_smi("Tesla K80, 11441, 470.223.02") == (Gpu("Tesla K80", 11441 << 20, "470.223.02", None),)
    assert parse_smi("No devices were found\n") == ()


def test_a_driver_that_knows_no_compute_capability_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(
        '#!/bin/sh\ncase "$*" in *compute_cap*) echo not a valid field; exit 2;; esac\n'
        'echo "Tesla V100-SXM2-16GB, 16160, 470.57.02"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert read_machine().gpus == (Gpu("Tesla V100-SXM2-16GB", 16160 << 20, "470.57.02", None),)


def test_the_whole_is_json_and_nothing_is_missing(tmp_path: Path) -> None:
    for root in (machines.two_sockets(tmp_path / "amd"), tmp_path / "silent"):
        machine = read_machine(root)
        told = machine.as_dict()
        assert json.loads(json.dumps(told)).keys() == told.keys() == machine.__dataclass_fields__.keys()
    amd = read_machine(tmp_path / "amd").as_dict()
    assert {"level": 2, "kind": "unified", "size_bytes": 512 << 10, "count": 4} in amd["caches"]
    assert sum(cache["count"] for cache in amd["caches"]) == 10
    assert amd["cpu"]["instruction_sets"]["AVX2"] is True
    assert amd["numa"][1]["memory_bytes"] == 32768000 << 10


def test_every_instruction_set_that_is_read_has_a_name() -> None:
    assert set(INSTRUCTION_SETS) == set(FLAGS)
