"""Small trees of /proc and /sys, written as the kernels of other machines write them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from cluster.hardware import Cpu

OLD_AMD = Cpu("AMD EPYC 7742 64-Core Processor", "AuthenticAMD/23/49/0", ("avx2",))
SILENT = Cpu("unknown", "", ())


def write(root: Path, files: Mapping[str, object]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{text}\n")
    return root


def two_sockets(root: Path, **changes: object) -> Path:
    """Two AMD processors of two cores with two threads each, no VNNI; an NVIDIA GPU whose driver is loaded.

    `changes` take the place of cpuinfo's fields, their names written with "_" for " ".
    """
    fields = {
        "vendor_id": "AuthenticAMD", "cpu family": 23, "model": 49, "model name": OLD_AMD.name, "stepping": 0,
        "flags": "fpu sse4_2 avx avx2 fma sha_ni",
    } | {name.replace("_", " ") if name != "vendor_id" else name: value for name, value in changes.items()}  # fmt: skip
    blocks = ["\n".join(f"{key}\t: {value}" for key, value in {"processor": n, **fields}.items()) for n in range(8)]
    files: dict[str, object] = {
        "proc/cpuinfo": "\n\n".join(blocks),
        "proc/meminfo": "MemTotal:       65536000 kB\nMemFree:         1000000 kB\nMemAvailable:   32768000 kB",
        "proc/sys/kernel/osrelease": "5.15.0-91-generic",
        "proc/self/status": "Name:\tpython\nCpus_allowed:\tff\nCpus_allowed_list:\t0-7",
        "proc/self/cgroup": "0::/user.slice",
        "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.104.05  Sat Aug 19 2023\n"
                                      "GCC version:  gcc version 11.4.0",
        "proc/driver/nvidia/gpus/0000:17:00.0/information": "Model: \t\t NVIDIA A100-PCIE-40GB\nIRQ:   \t\t 95\n"
                                                            "Bus Location: \t 0000:17:00.0",
        "sys/devices/system/cpu/online": "0-7",
    }  # fmt: skip
    for node, cores in enumerate(("0-1,4-5", "2-3,6-7")):
        files[f"sys/devices/system/node/node{node}/cpulist"] = cores
        files[f"sys/devices/system/node/node{node}/meminfo"] = f"Node {node} MemTotal:       32768000 kB"
    for n in range(8):
        cpu, pair, socket = f"sys/devices/system/cpu/cpu{n}", f"{n % 4},{n % 4 + 4}", n % 4 // 2
        files[f"{cpu}/topology/thread_siblings_list"] = pair
        files[f"{cpu}/topology/physical_package_id"] = socket
        shared = ("0-1,4-5", "2-3,6-7")[socket]
        for index, (level, kind, size, cores) in enumerate((
            (1, "Data", "32K", pair), (1, "Instruction", "32K", pair), (2, "Unified", "512K", pair),
            (3, "Unified", "16384K", shared),
        )):  # fmt: skip
            folder = f"{cpu}/cache/index{index}"
            files |= {f"{folder}/level": level, f"{folder}/type": kind, f"{folder}/size": size}
            files[f"{folder}/shared_cpu_list"] = cores
    return write(root, files)


def neoverse(root: Path) -> Path:
    """Two cores of an ARM Neoverse V1, whose kernel tells no model name and no caches."""
    block = (
        "processor\t: {n}\nBogoMIPS\t: 2100.00\nFeatures\t: fp asimd asimdhp asimddp sve i8mm bf16\n"
        "CPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x1\nCPU part\t: 0xd40\nCPU revision\t: 1"
    )
    files: dict[str, object] = {
        "proc/cpuinfo": "\n\n".join(block.format(n=n) for n in range(2)),
        "sys/devices/system/cpu/online": "0-1",
    }
    for n in range(2):
        files[f"sys/devices/system/cpu/cpu{n}/topology/core_cpus_list"] = n
        files[f"sys/devices/system/cpu/cpu{n}/topology/physical_package_id"] = 0
    return write(root, files)


def container_v2(root: Path) -> Path:
    """A pod of control groups version 2: its own group is free, the one above it is bounded."""
    pod = "sys/fs/cgroup/kubepods/pod7"
    return write(root, {
        "proc/self/cgroup": "0::/kubepods/pod7/app",
        "proc/self/status": "Cpus_allowed_list:\t2-3",
        "sys/fs/cgroup/kubepods/cpu.max": "400000 100000",
        f"{pod}/cpu.max": "150000 100000",
        f"{pod}/memory.max": 2 << 30,
        f"{pod}/app/cpu.max": "max 100000",
        f"{pod}/app/memory.max": "max",
    })  # fmt: skip


def container_v1(root: Path) -> Path:
    """Control groups version 1, seen from inside: the paths are the host's, the files lie at the top."""
    return write(root, {
        "proc/self/cgroup": "4:memory:/docker/c0ffee\n3:cpuset:/\n2:cpu,cpuacct:/docker/c0ffee\n1:name=systemd:/",
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": 250000,
        "sys/fs/cgroup/cpu/cpu.cfs_period_us": 100000,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 1 << 30,
    })  # fmt: skip
