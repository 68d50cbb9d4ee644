"""`sluice hardware` prints the machine that is there, for people and for machines."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.hardware import cores_in
from cluster.machine import Gpu, read_machine
from cluster.native import native
from tests.unit.cluster import machines
from tune_spaces.hardware import machine_rows, pair_rows, ranges, show


def test_json_is_the_machine_and_its_runtimes(capsys: pytest.CaptureFixture[str]) -> None:
    show(as_json=True)
    told = json.loads(capsys.readouterr().out)
    machine = read_machine()
    expected = json.loads(json.dumps(machine.as_dict())) | {"runtimes": [p.as_dict() for p in native(machine)]}
    for either in (told, expected):
        either["memory"].pop("available")  # changes from moment to moment
    assert told == expected


def test_tables_hold_every_fact(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    show(as_json=False)
    printed = capsys.readouterr().out
    machine = read_machine()
    memory = {"memory"}
    for what, value in machine_rows(machine):
        assert what in printed
        assert what in memory or value in printed
    for row in pair_rows(native(machine)):
        assert any(all(cell in line for cell in row) for line in printed.splitlines()), row


def test_a_narrow_terminal_loses_no_word(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    show(as_json=False)
    printed = capsys.readouterr().out
    assert "…" not in printed
    assert all(len(line) <= 80 for line in printed.splitlines())
    assert {name for name in read_machine().libraries if name in printed} == set(read_machine().libraries)


def test_two_sockets_in_words(tmp_path: Path) -> None:
    machine = read_machine(machines.two_sockets(tmp_path))
    rows = dict(machine_rows(machine))
    assert rows["cores"] == "logical 8, physical 4, sockets 2; usable 8 (0-7); control group: no limit"
    assert rows["caches"] == "L1d 4 x 32 KiB, L2 4 x 512 KiB, L3 2 x 16 MiB"
    assert rows["NUMA nodes"] == "0: cores 0-1,4-5, 31.25 GiB; 1: cores 2-3,6-7, 31.25 GiB"
    assert rows["instruction sets"].startswith("AVX2; not: AVX-512F, ")
    assert rows["memory"] == "62.5 GiB, 31.25 GiB available; control group: no limit"
    assert rows["GPUs"] == "NVIDIA A100-PCIE-40GB, driver 535.104.05"
    h100 = dataclasses.replace(machine, gpus=(Gpu("NVIDIA H100", 80 << 30, "550.54", "9.0"),))
    assert dict(machine_rows(h100))["GPUs"] == "NVIDIA H100, 80 GiB, driver 550.54, compute capability 9.0"


def test_a_container_in_words(tmp_path: Path) -> None:
    rows = dict(machine_rows(read_machine(machines.container_v2(tmp_path))))
    assert rows["cores"].endswith("usable 2 (2-3); control group: 1.5 cores' worth of time")
    assert rows["memory"].endswith("control group: 2 GiB")


def test_a_silent_kernel_in_words(tmp_path: Path) -> None:
    rows = dict(machine_rows(read_machine(tmp_path)))
    cores = "logical unknown, physical unknown, sockets unknown; usable unknown; control group: no limit"
    assert rows["cores"] == cores
    assert rows["caches"] == rows["NUMA nodes"] == rows["instruction sets"] == "unknown"
    assert rows["GPUs"] == "none found"


def test_a_row_says_what_the_tuner_tries(tmp_path: Path) -> None:
    rows = {row[:2]: row[2:4] for row in pair_rows(native(read_machine(machines.two_sockets(tmp_path))))}
    assert rows["openvino", "bf16"] == ("emulated", "no")
    assert rows["openvino", "int8"] == ("emulated", "yes")
    assert rows["torch", "int8"] == ("not executable", "no")


@given(st.sets(st.integers(0, 300)))
def test_ranges_are_read_back(cores: set[int]) -> None:
    assert cores_in(ranges(cores)) == sorted(cores)
