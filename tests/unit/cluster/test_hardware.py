"""A fingerprint names the machine and agrees with other sources; a profile's key changes with all that its figures
depend on, and with nothing else."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster import hardware
from cluster.hardware import (
    Cache,
    binary,
    cgroup_limits,
    cores_in,
    fingerprint,
    profile_key,
    read_caches,
    read_cpu,
    summary,
    version_of,
)
from tests.unit.cluster import machines


def test_agrees_with_other_sources() -> None:
    found = fingerprint()
    assert found["cores"] == psutil.cpu_count(logical=True)
    assert found["cores_usable"] == len(psutil.Process().cpu_affinity())
    assert abs(found["memory_bytes"] - psutil.virtual_memory().total) < 64 << 20
    assert found["kernel"] == os.uname().release
    assert found["python"] == platform.python_version()
    libraries = ("ray", "torch", "onnxruntime", "openvino", "numpy")
    assert found["libraries"] == {name: version(name) for name in libraries}


def test_the_cpu_has_a_name_and_only_flags_that_it_has() -> None:
    found = fingerprint()
    assert found["cpu"].strip()
    text = open("/proc/cpuinfo").read() if os.path.exists("/proc/cpuinfo") else ""  # noqa: SIM115
    assert found["cpu"] in text or not text or found["cpu"].startswith("ARM ")
    assert all(flag in text for flag in found["flags"])


def test_usable_cores_follow_the_affinity() -> None:
    code = (
        "import os; from cluster.hardware import fingerprint; fingerprint(); "
        "os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(fingerprint()['cores_usable'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "1"


def test_is_json_and_a_copy() -> None:
    before = json.loads(json.dumps(fingerprint()))
    fingerprint()["libraries"].clear()
    fingerprint()["flags"].append("avx9000")
    fingerprint()["caches"]["L9"] = "1 x 1 TiB"
    assert fingerprint() == before


def test_imports_none_of_the_libraries() -> None:
    code = (
        "import sys; from cluster.hardware import fingerprint; fingerprint(); "
        "print(sorted({'ray', 'torch', 'onnxruntime', 'openvino', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_cpu_of_another_machine(tmp_path: Path) -> None:
    assert read_cpu(machines.two_sockets(tmp_path / "amd")) == machines.OLD_AMD
    arm = read_cpu(machines.neoverse(tmp_path / "arm"))
    assert (arm.name, arm.model) == ("ARM Neoverse V1", "0x41/0xd40/0x1/1")
    assert set(arm.flags) == {"asimddp", "i8mm", "bf16"}
    assert read_cpu(tmp_path / "nothing").flags == ()


def test_caches_are_counted_once_and_instructions_left_out(tmp_path: Path) -> None:
    caches = read_caches(machines.two_sockets(tmp_path))
    assert summary(caches) == {"L1d": "4 x 32 KiB", "L2": "4 x 512 KiB", "L3": "2 x 16 MiB"}
    assert caches[-1] == Cache(3, "unified", 16 << 20, frozenset({2, 3, 6, 7}))


def test_cores_reach_only_their_own_caches(tmp_path: Path) -> None:
    caches = read_caches(machines.two_sockets(tmp_path))
    assert summary(caches, [0, 4]) == {"L1d": "1 x 32 KiB", "L2": "1 x 512 KiB", "L3": "1 x 16 MiB"}
    assert summary(caches, [0, 2])["L3"] == "2 x 16 MiB"
    assert summary(caches, []) == {}


def test_caches_of_two_sizes_are_told_apart() -> None:
    caches = [Cache(2, "unified", 2 << 20, frozenset({0})), Cache(2, "unified", 4 << 20, frozenset({1, 2}))]
    assert summary(caches) == {"L2": "1 x 2 MiB + 1 x 4 MiB"}


def test_a_silent_kernel_tells_no_caches_and_no_limits(tmp_path: Path) -> None:
    assert read_caches(tmp_path) == ()
    assert cgroup_limits(tmp_path) == (None, None)


def test_the_tightest_control_group_above_counts(tmp_path: Path) -> None:
    assert cgroup_limits(machines.container_v2(tmp_path)) == (1.5, 2 << 30)


def test_control_groups_of_version_1(tmp_path: Path) -> None:
    assert cgroup_limits(machines.container_v1(tmp_path)) == (2.5, 1 << 30)


def test_no_limit_is_said_in_two_ways(tmp_path: Path) -> None:
    machines.write(machines.container_v1(tmp_path), {
        "sys/fs/cgroup/cpu/cpu.cfs_quota_us": -1,
        "sys/fs/cgroup/memory/memory.limit_in_bytes": 9223372036854771712,
    })  # fmt: skip
    assert cgroup_limits(tmp_path) == (None, None)


def test_a_group_outside_of_what_is_mounted_here(tmp_path: Path) -> None:
    """A namespace of control groups shows a group above its own root as "/..": only the top can be read."""
    machines.write(tmp_path, {
        "proc/self/cgroup": "0::/../other",
        "sys/fs/cgroup/cpu.max": "50000 100000",
        "sys/fs/other/cpu.max": "10000 100000",
    })  # fmt: skip
    assert cgroup_limits(tmp_path) == (0.5, None)


Key = Callable[..., str]


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Key:
    """profile_key as another machine would answer it: `prepare` writes its /proc and /sys."""
    count = iter(range(100))

    def of(
        prepare: Callable[[Path], object] = machines.two_sockets, *, cores: tuple[int, ...] = (0, 1),
        runtime: str = "numpy",
    ) -> str:  # fmt: skip
        root = tmp_path / str(next(count))
        prepare(root)
        monkeypatch.setattr(hardware, "_cpu", lambda: read_cpu(root))
        monkeypatch.setattr(hardware, "_caches", lambda: read_caches(root))
        monkeypatch.setattr(hardware, "cgroup_limits", lambda: cgroup_limits(root))
        monkeypatch.setattr(hardware, "usable_cores", lambda: frozenset(cores))
        return profile_key(runtime)

    return of


def _with(files: dict[str, object]) -> Callable[[Path], Path]:
    return lambda root: machines.write(machines.two_sockets(root), files)


CACHE = "sys/devices/system/cpu/cpu0/cache/index2/size"
CHANGES: dict[str, dict[str, object]] = {
    "another generation under the same name": {"prepare": functools.partial(machines.two_sockets, model=1)},
    "another name": {"prepare": functools.partial(machines.two_sockets, model_name="AMD EPYC 7763")},
    "an instruction set more": {"prepare": functools.partial(machines.two_sockets, flags="avx2 avx512f")},
    "a smaller cache of a core that is used": {"prepare": _with({CACHE: "256K"})},
    "a share of time": {"prepare": _with({"sys/fs/cgroup/user.slice/cpu.max": "50000 100000"})},
    "one core": {"cores": (0,)},
    "two cores on two sockets": {"cores": (0, 2)},
    "two threads of one core": {"cores": (0, 4)},
    "another runtime": {"runtime": "onnxruntime"},
}
NO_CHANGES: dict[str, dict[str, object]] = {
    "the other socket": {"cores": (2, 3)},
    "a flag that no kernel uses": {"prepare": functools.partial(machines.two_sockets, flags="avx2 fma rdseed")},
    "another kernel": {"prepare": _with({"proc/sys/kernel/osrelease": "6.8.0"})},
    "more memory": {"prepare": _with({"proc/meminfo": "MemTotal: 99999999 kB"})},
    "a bound on memory": {"prepare": _with({"sys/fs/cgroup/user.slice/memory.max": 1 << 30})},
    "a cache that only others use": {"prepare": _with({CACHE.replace("cpu0", "cpu3"): "256K"})},
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_the_key_changes_with(change: dict[str, object], key: Key) -> None:
    assert key(**change) != key()


@pytest.mark.parametrize("change", NO_CHANGES.values(), ids=NO_CHANGES)
def test_the_key_stays_with(change: dict[str, object], key: Key) -> None:
    assert key(**change) == key()


def test_the_key_changes_with_the_runtimes_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []
    for release in ("1.0", "1.1"):
        site = tmp_path / release
        machines.write(site, {"some_runtime-1.dist-info/METADATA": f"Name: some-runtime\nVersion: {release}"})
        monkeypatch.syspath_prepend(site)
        assert version_of("some-runtime") == release
        keys.append(profile_key("some-runtime"))
    assert len(set(keys)) == 2


def test_the_key_tells_gpus_apart_where_one_computes() -> None:
    keys = [profile_key("numpy"), profile_key("numpy", gpus=["H100"]), profile_key("numpy", gpus=["H100", "H100"])]
    assert len(set(keys)) == 3
    assert profile_key("numpy", gpus=[]) == keys[0], "what was measured on the CPU keeps its key"


def test_a_build_for_gpus_counts_as_its_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machines.write(tmp_path, {"some_library_gpu-1.dist-info/METADATA": "Name: some-library-gpu\nVersion: 2.0"})
    monkeypatch.syspath_prepend(tmp_path)
    assert version_of("some-library") == "2.0"


def test_what_is_not_installed_has_no_version() -> None:
    assert version_of("no-such-runtime") == "not installed"


def test_the_key_follows_the_affinity_of_this_process() -> None:
    code = (
        "import os; from cluster.hardware import profile_key; one = {min(os.sched_getaffinity(0))}; "
        "before = profile_key('numpy'); many = len(os.sched_getaffinity(0)); os.sched_setaffinity(0, one); "
        "print(many, before == profile_key('numpy'))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    many, same = done.stdout.split()
    assert same == str(int(many) == 1)


@pytest.mark.parametrize(
    ("text", "cores"), [("", []), ("0", [0]), ("0-3,8,10-11", [0, 1, 2, 3, 8, 10, 11]), ("0-1\n", [0, 1])]
)
def test_the_kernels_lists(text: str, cores: list[int]) -> None:
    assert cores_in(text) == cores


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1 KiB"), (1536, "1.5 KiB"), (512 << 10, "512 KiB"), (32 << 20, "32 MiB"),
     (24 << 30, "24 GiB"), (3 << 40, "3 TiB"), (5 << 50, "5120 TiB")],
)  # fmt: skip
def test_sizes_in_words(size: int, text: str) -> None:
    assert binary(size) == text


@given(st.integers(0, 1 << 60))
def test_a_size_in_words_is_near_the_size(size: int) -> None:
    amount, unit = binary(size).split()
    there = float(amount) * 1024 ** ("B", "KiB", "MiB", "GiB", "TiB").index(unit)
    assert abs(there - size) <= 0.0006 * size
