"""Are we meeting the SLO? The verdict follows the measurement, in all three answers, and the limits are said."""

from __future__ import annotations

import pytest

from cluster.slo import AccuracyFloor, Budget, Slo
from tests.unit.tune_spaces.report import made
from tune_spaces.report.answer import answer
from tune_spaces.report.report import Report


def said(report: Report) -> str:
    return " ".join(answer(report).caveats)


def test_yes_with_the_figures() -> None:
    found = answer(made.report())
    assert found.verdict == "holds"
    assert found.sentence == (
        "Yes: cnn_fashion_mnist/int8 on openvino, in batches of up to 64, answers 2,010 req/s with p99 within 50 ms "
        "(80.40x what was there before) and is right in 91.61%."
    )
    assert {check.verdict for check in found.checks} == {"holds"}


def test_a_tune_answers_from_its_study() -> None:
    report = made.report(compared=False)
    assert report.chosen is not None
    assert f"{report.chosen.slo_rate_rps:,.0f} req/s" in answer(report).sentence


def test_no_where_accuracy_fails_or_the_p99_at_the_asked_load_does() -> None:
    strict = made.report(slo=Slo(accuracy=AccuracyFloor(minimum=0.95)))
    assert answer(strict).sentence.startswith("No: ")
    late = made.report(compared=False, slo=Slo(latency_p99_ms=2.0, rate_rps=made.REFERENCE_RPS))
    assert answer(late).checks[0].verdict == "fails"
    assert "p99 6." in answer(late).checks[0].measured


def test_a_named_load_is_answered_at_that_load() -> None:
    found = answer(made.report(compared=False, slo=Slo(rate_rps=made.REFERENCE_RPS)))
    assert "has p99 6.25 ms at 400 req/s, answers 2,666 req/s with p99 within 50 ms" in found.sentence
    assert found.sentence.endswith(" and is right in 91.61%.")


def test_the_longer_comparison_has_the_last_word_on_a_named_load() -> None:
    report = made.report(slo=Slo(rate_rps=made.REFERENCE_RPS))
    assert report.comparison is not None
    assert answer(report).checks[0].verdict == "holds"
    report.comparison.after.slo_rate["50ms"] = 300.0
    assert answer(report).checks[0].verdict == "fails"
    report.comparison.after.slo_rate_is_a_floor["50ms"] = True
    assert answer(report).checks[0].verdict == "holds", "at least 300 says nothing against 400"


def test_cannot_tell_is_not_yes() -> None:
    report = made.report()
    assert report.comparison is not None
    report.comparison.after.slo_rate["50ms"] = None
    found = answer(report)
    assert found.verdict == "unclear"
    assert found.sentence.startswith("Can't tell yet: ")
    assert found.checks[0].measured == "can't tell"


@pytest.mark.parametrize(("mib", "verdict"), [(100, "fails"), (1000, "holds")])
def test_a_memory_budget_is_a_promise(mib: int, verdict: str) -> None:
    report = made.report(slo=Slo(budget=Budget(memory_mib=mib)))
    assert answer(report).checks[-1].verdict == verdict


def test_limits_of_a_comparison_are_said() -> None:
    report = made.report(notes=["the disk was full"])
    both = report.comparison
    assert both is not None
    assert "Short steps (3 s)" in said(report)
    assert "idled on the other's cores" in said(report)
    assert "1 of 20 trials could not be measured" in said(report)
    assert said(report).endswith("the disk was full")
    assert "floor" not in said(report)
    both.after.slo_rate_is_a_floor["50ms"] = True
    both.after.max_rate_is_a_floor = True
    both.before.slo_rate["50ms"] = None
    both.client_cpu_share = 0.97
    both.self_check["ok"] = False
    both.equal_load_from = "closed loop"
    for words in ("SLO rate at 50ms after is a floor", "max rate after is a floor", "An SLO rate before is",
                  "97% of its core", "held no rate", "a sixth"):  # fmt: skip
        assert words in said(report)


def test_shared_cores_are_said() -> None:
    report = made.report()
    assert report.comparison is not None
    assert "core" not in said(report).replace("other's cores", "")
    report.comparison.client_cpus = [0]
    assert "shared a core" in said(report)
    report.comparison.client_cpus = None
    assert "not pinned" in said(report)


def test_limits_of_a_study_are_said() -> None:
    report = made.report(compared=False)
    assert "Short steps (2 s)" in said(report)
    assert "a little lucky" in said(report)
    assert "its scatter" not in said(report), "it was measured three times"
    once = tuple(trial for trial in report.study.trials if trial.origin != "confirm")
    assert "measured once" in said(made.report(compared=False, study=type(report.study)(report.study.header, once)))
