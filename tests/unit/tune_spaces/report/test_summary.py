"""Terminal tables: every figure of a variant and of a comparison, ratios the right way round, units with each."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cluster.runtimes import RuntimeConfig
from cluster.slo import AccuracyFloor
from tests.unit.tune_spaces.report import made
from tune_spaces.report.before_after import before_after_rows
from tune_spaces.report.report import Report
from tune_spaces.report.summary import (
    PROFILE_HEADERS,
    VARIANT_HEADERS,
    print_tables,
    profile_rows,
    table,
    variant_rows,
)


@pytest.fixture
def report() -> Report:
    return made.report()


def shown(report: Report) -> str:
    console = Console(record=True, width=240, file=io.StringIO())
    print_tables(report, console)
    return console.export_text()


def test_ratios_are_after_over_before(report: Report) -> None:
    rows = {row[0]: row[1:] for row in before_after_rows(report)}
    assert rows["SLO rate (p99 within 50ms)"] == ("25 req/s", "2,010 req/s", "80.40x")
    assert rows["p99 at 18 req/s"] == ("50.63 ms", "5.02 ms", "0.10x")
    assert rows["size of the graph with its weights"] == ("388 KiB", "117 KiB", "0.30x")


def test_without_a_comparison_before_is_the_study_s_own_baseline() -> None:
    report = made.report(compared=False)
    assert report.baseline is not None
    assert report.chosen is not None
    rows = {row[0]: row[1:] for row in before_after_rows(report)}
    before, after = report.baseline.slo_rate_rps, report.chosen.slo_rate_rps
    assert before is not None
    assert after is not None
    ratio = f"{after / before:,.2f}x"
    assert rows["SLO rate (p99 within 50ms)"] == (f"{before:,.0f} req/s", f"{after:,.0f} req/s", ratio)
    assert rows["p99 at 400 req/s"][1] == f"{report.chosen.latency_p99_s * 1e3:,.2f} ms"


def test_a_study_without_a_baseline_says_so_and_gives_no_ratio() -> None:
    whole = made.report(compared=False)
    later = tuple(trial for trial in whole.study.trials if trial.origin != "baseline")
    report = made.report(compared=False, study=type(whole.study)(whole.study.header, later))
    for row in before_after_rows(report):
        assert row[1] == "not measured", row
        assert row[3] in ("", "-"), row


def test_what_nobody_could_tell_is_not_a_number(report: Report) -> None:
    both = report.comparison
    assert both is not None
    both.before.slo_rate["50ms"] = None
    both.before.latency_p99_s = None
    both.after.slo_rate_is_a_floor["50ms"] = True
    rows = {row[0]: row[1:] for row in before_after_rows(report)}
    assert rows["SLO rate (p99 within 50ms)"] == ("can't tell", "at least 2,010 req/s", "-")
    assert rows["p99 at 18 req/s"] == ("failed", "5.02 ms", "-")
    both.before.slo_rate["50ms"] = 100.0
    assert {row[0]: row[3] for row in before_after_rows(report)}["SLO rate (p99 within 50ms)"] == "at least 20.10x"
    both.before.slo_rate_is_a_floor["50ms"] = True
    assert {row[0]: row[3] for row in before_after_rows(report)}["SLO rate (p99 within 50ms)"] == "-"


def test_a_floor_of_the_max_rate_bounds_its_ratio(report: Report) -> None:
    assert report.comparison is not None
    report.comparison.after.max_rate_is_a_floor = True
    rows = {row[0]: row[1:] for row in before_after_rows(report)}
    assert rows["max rate, closed loop"] == ("80 req/s", "at least 2,905 req/s", "at least 36.31x")


def test_every_row_is_in_the_terminal_table(report: Report) -> None:
    text = shown(report)
    for row in before_after_rows(report):
        for cell in row:
            assert cell in text
    assert "cnn_fashion_mnist/pruned-int8" in text


def test_a_variant_has_a_row_for_each_runtime_with_its_verdict() -> None:
    rows = variant_rows(made.variants().values(), AccuracyFloor())
    assert all(len(row) == len(VARIANT_HEADERS) for row in rows)
    verdicts = {(row[0].rsplit("/", 1)[-1], row[4]): row[7] for row in rows}
    assert verdicts["int8", "openvino"] == "holds"
    assert verdicts["pruned-int8", "onnxruntime"] == "fails"
    lower = variant_rows(made.variants().values(), AccuracyFloor(max_drop=0.02))
    assert {row[7] for row in lower} == {"holds"}


def test_a_variant_that_was_not_measured_is_in_the_table() -> None:
    unknown = made.variants()["int8"].model_copy(update={"accuracies": ()})
    assert [row[5:] for row in variant_rows([unknown])] == [("not measured", "", "can't tell")]


def test_profiles_say_the_threads_that_they_were_measured_with() -> None:
    one = made.variants()["int8"]
    curve = made.curve(one, RuntimeConfig(name="openvino", threads=4, streams=2))
    first = profile_rows(curve.points, [one])[0]
    assert len(first) == len(PROFILE_HEADERS)
    assert first[:3] == (one.name, "openvino 2x4", "1")


def test_brackets_in_a_table_are_text() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    console.print(table("[red]title", ("[b]",), [("[link=x]name[/link]",)]))
    text = console.export_text()
    assert "[red]title" in text
    assert "[link=x]name[/link]" in text
