"""The search in rows: best so far never falls, counts only what keeps the SLO, and failures say why."""

from __future__ import annotations

import pytest

from cluster.slo import Objective, Slo
from cluster.studies import Study
from tests.unit.tune_spaces.report import made
from tune_spaces.report.study_rows import (
    OUTCOME_HEADERS,
    TRIAL_HEADERS,
    outcome_rows,
    prediction_rows,
    steps,
    trial_rows,
)


@pytest.mark.parametrize("objective", ["max_rate", "min_latency", "min_cost"])
def test_best_so_far_only_improves(objective: Objective) -> None:
    way = steps(made.study(made.variants(), Slo(objective=objective, rate_rps=made.REFERENCE_RPS)))
    led = [step.best for step in way if step.best is not None]
    assert led == sorted(led, reverse=objective != "max_rate")
    values = [step.value for step in way if step.value is not None]
    assert led[-1] == (max(values) if objective == "max_rate" else min(values))
    assert [step.best for step in way if step.improved] == list(dict.fromkeys(led))


def test_what_breaks_the_slo_never_leads() -> None:
    study = made.study(made.variants(), Slo(latency_p99_ms=5.0, rate_rps=made.REFERENCE_RPS))
    led = [step for step in steps(study) if step.improved]
    assert led
    assert all(step.outcome is not None and step.outcome.latency_p99_s <= 0.005 for step in led)
    nothing = made.study(made.variants(), Slo(latency_p99_ms=0.5, rate_rps=made.REFERENCE_RPS))
    assert all(step.best is None for step in steps(nothing))


def test_a_p99_that_failed_is_no_point_of_the_plot() -> None:
    study = made.study(made.variants(), Slo(objective="min_latency", rate_rps=made.REFERENCE_RPS))
    first = study.trials[0]
    assert first.figures is not None
    late = first.model_copy(update={"figures": first.figures.model_copy(update={"latency_p99_s": None})})
    step = steps(Study(study.header, (late,)))[0]
    assert step.value is None
    assert step.outcome is not None


def test_a_cost_that_is_not_known_is_no_point_and_never_leads() -> None:
    study = made.study(made.variants(), Slo(objective="min_cost", rate_rps=made.REFERENCE_RPS))
    first = study.trials[0]
    assert first.figures is not None
    unknown = first.model_copy(update={"figures": first.figures.model_copy(update={"core_s_per_million": None})})
    way = steps(Study(study.header, (unknown, *study.trials[1:3])))
    assert [step.value is None for step in way] == [True, False, False]
    assert [step.improved for step in way][:2] == [False, True]


def test_a_failed_trial_has_its_reason_in_its_row() -> None:
    rows = trial_rows(made.study(made.variants(), Slo(), error="no room"))
    assert all(len(row) == len(TRIAL_HEADERS) for row in rows)
    failed = [row for row in rows if row[3] == "failed"]
    assert [(row[0], row[-1]) for row in failed] == [("11", "no room")]


def test_outcomes_are_best_first_and_say_what_they_are() -> None:
    report = made.report()
    rows = outcome_rows(report)
    assert len(rows) == len(report.study.outcomes())
    assert all(len(row) == len(OUTCOME_HEADERS) for row in rows)
    rates = [float(row[1].split(" ")[0].replace(",", "")) for row in rows]
    assert rates == sorted(rates, reverse=True)
    assert [row[0] for row in rows if "chosen" in row[-1]] == ["int8 on openvino, max_batch_size 64, queue 256"]
    assert [row[0].split(" ")[0] for row in rows if "baseline" in row[-1]] == ["fp32-torch"]


def test_predictions_stand_beside_what_was_measured_of_the_same_thing() -> None:
    rows = prediction_rows({"capacity_rps": 100.0, "latency_p99_s": 0.01, "slo_rate_rps": 5.0},
                           {"max_rate_rps": 150.0, "latency_p99_s": None, "slo_rate_rps": 4.0})  # fmt: skip
    assert rows == [("SLO rate", "5 req/s", "4 req/s", "0.80x"), ("max rate", "100 req/s", "150 req/s", "1.50x")]
    assert prediction_rows({}, {"slo_rate_rps": 4.0}) == []
