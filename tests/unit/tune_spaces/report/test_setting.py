"""Conditions of a measurement, and how figures are said."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.slo import Budget, Slo, TraceRate
from tests.unit.tune_spaces.report import made
from tune_spaces.report.setting import machine_rows, protocol_rows, slo_rows, stage_rows
from tune_spaces.report.words import cores_text, cost, count, duration, mib, ms, numbers_text, rate, short_names


def test_the_machine_is_told_whole_in_words() -> None:
    told = dict(machine_rows(made.report()))
    assert told["CPU"] == "Intel(R) Xeon(R) Processor"
    assert told["cache L3"] == "1 x 260 MiB"
    assert told["openvino"] == "2026.3.0"
    assert told["memory"] == "23.54 GiB"
    assert told["instruction sets"] == "avx2, avx512f, avx512_vnni"


def test_cores_seeds_and_the_client_s_proof_are_told() -> None:
    told = dict(protocol_rows(made.report()))
    assert told["cores in the study"] == "servers and all of Ray on core 0, load generator on core 1"
    assert told["seeds of the trials"] == "1 to 19"
    assert told["seeds of the comparison"] == "1, 2, 3"
    assert told["the client alone, against a null server"] == "held 3,632 req/s with a p99 send lag of 0.29 ms"
    assert told["trials"] == "name quick, step 2 s, warmup 0.5 s, steps 3, closed loop 1.5 s"
    assert "comparison" not in dict(protocol_rows(made.report(compared=False)))


def test_a_trace_is_named_and_not_read_again() -> None:
    """The report may be made where the trace is not."""
    slo = Slo(trace=TraceRate(path=Path("gone.csv"), scale=2.0), budget=Budget(cores=2, memory_mib=4096))
    told = dict(slo_rows(made.report(slo=slo)))
    assert told["load"] == "the busiest of the trace gone.csv, times 2"
    assert told["cores"] == "2 at most"
    assert told["memory"] == "4,096 MiB at most"


def test_the_floor_is_told_of_the_figure_that_was_measured() -> None:
    assert dict(slo_rows(made.report()))["accuracy"] == "at most 0.5 points below the trained model"
    assert dict(slo_rows(made.by_error(made.report())))["mse"] == "at most 5% above the trained model's error"


def test_the_stages_end_in_their_sum() -> None:
    assert stage_rows(made.report())[-1] == ("in all", "7 min 9 s")


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (numbers_text([3, 1, 2, 7, 5, 4, 9, 10]), "1 to 5, 7, 9, 10"),
        (numbers_text([]), ""),
        (cores_text([0]), "core 0"),
        (cores_text([0, 1, 2]), "cores 0 to 2"),
        (cores_text(None), "any core"),
        (duration(41.26), "41.3 s"),
        (duration(3720), "1 h 2 min"),
        (count(1201.4), "1,201"),
        (count(3.456), "3.46"),
        (rate(None), "can't tell"),
        (rate(1200.0, at_least=True), "at least 1,200 req/s"),
        (ms(float("inf")), "failed"),
        (ms(0.00123), "1.23 ms"),
        (mib(None), "not known"),
        (cost(318.4), "318 core-s"),
    ],
)
def test_a_figure_is_said_alike_everywhere(said: str, expected: str) -> None:
    assert said == expected


def test_a_folder_that_all_share_is_left_out() -> None:
    assert short_names({"1": "m/int8", "2": "m/fp32"}) == {"1": "int8", "2": "fp32"}
    assert short_names({"1": "m/int8", "2": "n/int8"}) == {"1": "m/int8", "2": "n/int8"}
    assert short_names({}) == {}
