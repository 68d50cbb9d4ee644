"""A fingerprint names the machine; it agrees with other sources, and nobody can spoil it for the next caller."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from importlib.metadata import version

import psutil

from cluster.hardware import fingerprint


def test_agrees_with_other_sources() -> None:
    found = fingerprint()
    assert found["cores"] == psutil.cpu_count(logical=True)
    assert found["cores_usable"] == len(psutil.Process().cpu_affinity())
    assert abs(found["memory_bytes"] - psutil.virtual_memory().total) < 64 << 20
    assert found["kernel"] == os.uname().release
    assert found["python"] == platform.python_version()
    assert found["libraries"] == {name: version(name) for name in ("ray", "torch", "onnxruntime", "numpy")}


def test_the_cpu_has_a_name_and_only_flags_that_it_has() -> None:
    found = fingerprint()
    assert found["cpu"].strip()
    text = open("/proc/cpuinfo").read() if os.path.exists("/proc/cpuinfo") else ""  # noqa: SIM115
    assert found["cpu"] in text or not text
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
    assert fingerprint() == before


def test_imports_none_of_the_libraries() -> None:
    code = (
        "import sys; from cluster.hardware import fingerprint; fingerprint(); "
        "print(sorted({'ray', 'torch', 'onnxruntime', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
