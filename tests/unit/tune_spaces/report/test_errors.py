"""A report on a model that is judged by an error: said as one, compared as one, and floors are those of errors."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.slo import AccuracyFloor, Slo
from cluster.variants import Accuracy
from tests.unit.tune_spaces.report import made
from tune_spaces.pareto import pareto
from tune_spaces.report.answer import answer
from tune_spaces.report.before_after import before_after_rows
from tune_spaces.report.lineage_section import lineage_section
from tune_spaces.report.page import page
from tune_spaces.report.plots import pareto_chart
from tune_spaces.report.report import Report, read, write
from tune_spaces.report.study_rows import outcome_rows
from tune_spaces.report.summary import variant_rows
from tune_spaces.report.words import accuracy_text, difference_text


@pytest.fixture
def report() -> Report:
    return made.by_error(made.report())


def of(report: Report, short: str) -> Accuracy:
    accuracy = next(v for v in report.variants if v.name.endswith(f"/{short}")).accuracy
    assert accuracy is not None
    return accuracy


def test_the_figure_is_named_and_a_difference_is_a_share_of_it(report: Report) -> None:
    error = of(report, "pruned-int8")
    assert accuracy_text(error) == "mse 0.0929 [0.08733, 0.09871]"
    assert difference_text(error.to_root) == "-9.00% [-12.45%, -5.55%]"
    area = error.model_copy(update={"metric": "roc_auc", "higher_is_better": True, "interval": (0.08, 0.1)})
    assert accuracy_text(area) == "roc_auc 0.0929 [0.0800, 0.1000]"


def test_verdicts_are_those_of_the_error_s_floor(report: Report) -> None:
    rows = {(row[0].rsplit("/", 1)[-1], row[4]): row for row in variant_rows(report.variants, AccuracyFloor())}
    assert rows["pruned-int8", "onnxruntime"][7] == "fails"
    assert rows["int8", "openvino"][7] == "holds"
    lax = variant_rows(report.variants, AccuracyFloor(max_increase=0.2))
    assert {row[7] for row in lax} == {"holds"}
    strict = variant_rows(report.variants, AccuracyFloor(max_drop=0.0))
    assert {row[7] for row in strict} == {"holds", "fails"}, "points of accuracy say nothing here"


def test_the_answer_and_its_promise_name_it(report: Report) -> None:
    found = answer(report)
    assert found.sentence.endswith("(80.40x what was there before) and has mse 0.0839.")
    check = next(check for check in found.checks if check.promise.startswith("mse"))
    assert check.promise == "mse at most 5% above the trained model's error"
    assert (check.measured[:10], check.verdict) == ("mse 0.0839", "holds")
    strict = made.by_error(made.report(slo=Slo(accuracy=AccuracyFloor(maximum=0.05))))
    assert answer(strict).sentence.startswith("No: ")


def test_every_table_and_plot_names_it(report: Report) -> None:
    rows = {row[0]: row[1:] for row in before_after_rows(report)}
    assert rows["mse [95% interval]"][:2] == ("mse 0.0839 [0.07859, 0.08945]", "mse 0.0839 [0.07859, 0.08945]")
    assert all(row[5].startswith("mse 0.0") for row in outcome_rows(report))
    hovers = [text for trace in pareto_chart(report).figure.data for text in trace.hovertext or ()]
    assert all("<br>mse 0.0" in text for text in hovers)
    assert hovers
    assert "<th>mse</th>" in report.study._repr_html_()


def test_the_tree_says_what_a_difference_is_and_draws_its_floor(report: Report) -> None:
    section = lineage_section(report).inside
    assert "The figure is mse of the full test set" in section
    assert "A difference is a share of the trained model's error; minus is worse. The floor: at most 5%" in section
    assert section.count('class="floor"') == 10, "in each strip: five variants in two runtimes"
    without = made.by_error(made.report(slo=Slo(accuracy=AccuracyFloor(maximum=1.0))))
    assert 'class="floor"' not in lineage_section(without).inside


def test_less_of_it_is_better(report: Report) -> None:
    outcomes = report.study.outcomes()
    assert {o.metric for o in outcomes} == {"mse"}
    worst = max(outcomes, key=lambda o: o.accuracy)
    assert worst.quality == min(o.quality for o in outcomes)
    kept = {o.configuration.key for o in pareto(outcomes)}
    assert min(outcomes, key=lambda o: (o.accuracy, -(o.slo_rate_rps or 0))).configuration.key in kept


def test_it_comes_back_from_its_file(report: Report, tmp_path: Path) -> None:
    write(report, tmp_path)
    again = read(tmp_path / "report.json")
    assert again.study.header == report.study.header
    assert again.variants == report.variants
    assert page(again) == page(report)
