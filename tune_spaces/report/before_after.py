"""Report -> the before | after lines: what one had, what was chosen, and their ratio.

From the comparison with the stock baseline where there is one (benchmarks/PROTOCOL.md), else from the study's own
baseline trials. A ratio is after/before.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cluster.plans import Configuration
from cluster.studies import Outcome
from tune_spaces.measure import Comparison, Figures, bound_label
from tune_spaces.report.report import Report
from tune_spaces.report.words import accuracy_text, cost, count, kib, mib, ms, rate, ratio

Row = tuple[str, str, str, str]
BEFORE_AFTER_HEADERS = ("", "before", "after", "after/before")


@dataclass(frozen=True)
class Line:
    """One line of the table; `key` names the figure for whoever picks some of them."""

    key: str
    what: str
    before: str
    after: str
    ratio: str = ""


def before_after_rows(report: Report) -> list[Row]:
    """(what, before, after, ratio): the table that a run ends with."""
    return [(line.what, line.before, line.after, line.ratio) for line in before_after(report)]


def before_after(report: Report) -> list[Line]:
    """Every line; with a comparison from it, else from the study."""
    lines = _of_study(report) if report.comparison is None else _of_comparison(report.comparison)
    return [*lines, *_of_variants(report)]


def sides(report: Report) -> tuple[str, str]:
    """What "before" and "after" are, in words."""
    after = f"{_configured(report.plan)}"
    if report.comparison is not None:
        return (
            "fp32 eager torch in a stock Ray Serve deployment: default proxy, JSON, no batching, one replica",
            f"{after}, binary tensors",
        )
    return ("not measured" if report.baseline is None else _configured(report.baseline.configuration), after)


def _configured(configuration: Configuration) -> str:
    return str(Configuration.model_validate(configuration.model_dump(include=set(Configuration.model_fields))))


def is_a_floor(report: Report, outcome: Outcome) -> bool:
    """Did the search for its SLO rate meet the highest rate that the client can hold?"""
    return any(
        trial.figures is not None and trial.figures.slo_rate_is_a_floor
        for trial in report.study.trials
        if trial.configuration.key == outcome.configuration.key
    )


def _bounded_ratio(before: float | None, after: float | None, low: bool, high: bool) -> str:
    """A floor on one side makes the ratio a bound, on both it makes it nothing."""
    said = ratio(after, before)
    if said == "-" or (low and high):
        return "-"
    return f"at most {said}" if low else f"at least {said}" if high else said


def _of_comparison(both: Comparison) -> list[Line]:
    before, after = both.before, both.after
    load = f"at {count(round(both.equal_load_rate))} req/s"
    return [
        *(_slo_line(before, after, bound_label(bound_s)) for bound_s in both.protocol.bounds_s),
        Line("max_rate", "max rate, closed loop", _max(before), _max(after), _bounded_ratio(
            before.max_rate, after.max_rate, before.max_rate_is_a_floor, after.max_rate_is_a_floor)),
        Line("p50", f"p50 {load}", ms(before.latency_p50_s), ms(after.latency_p50_s),
             ratio(after.latency_p50_s, before.latency_p50_s)),
        Line("p99", f"p99 {load}", ms(before.latency_p99_s), ms(after.latency_p99_s),
             ratio(after.latency_p99_s, before.latency_p99_s)),
        Line("errors", f"errors {load}", f"{before.error_rate:.3%}", f"{after.error_rate:.3%}"),
        Line("cost", "CPU per million answers, at max rate", cost(before.core_s_per_million),
             cost(after.core_s_per_million), ratio(after.core_s_per_million, before.core_s_per_million)),
        Line("cost_equal", f"CPU per million answers, {load}", cost(before.core_s_per_million_equal_load),
             cost(after.core_s_per_million_equal_load),
             ratio(after.core_s_per_million_equal_load, before.core_s_per_million_equal_load)),
        Line("utilisation", "utilisation of the server cores, at max rate", f"{before.utilisation:.0%}",
             f"{after.utilisation:.0%}"),
    ]  # fmt: skip


def _slo_line(before: Figures, after: Figures, label: str) -> Line:
    old, new = before.slo_rate.get(label), after.slo_rate.get(label)
    low, high = before.slo_rate_is_a_floor.get(label, False), after.slo_rate_is_a_floor.get(label, False)
    what = f"SLO rate (p99 within {label})"
    gain = _bounded_ratio(old, new, low, high)
    return Line("slo_rate", what, rate(old, at_least=low), rate(new, at_least=high), gain)


def _max(figures: Figures) -> str:
    return rate(figures.max_rate, at_least=figures.max_rate_is_a_floor)


def _of_study(report: Report) -> list[Line]:
    old, new = report.baseline, report.chosen
    load = f"at {count(round(report.reference_rps or 0))} req/s"

    def line(key: str, what: str, figure: str, say: Callable[[Any], str]) -> Line:
        before, after = (None if o is None else getattr(o, figure) for o in (old, new))
        gain = "" if figure == "attainment" else ratio(after, before)
        return Line(key, what, _said(old, before, say), _said(new, after, say), gain)

    return [
        _study_slo_line(report, old, new),
        line("max_rate", "max rate, closed loop", "max_rate_rps", rate),
        line("p50", f"p50 {load}", "latency_p50_s", ms),
        line("p99", f"p99 {load}", "latency_p99_s", ms),
        line("attainment", f"answered rightly within the bound {load}", "attainment", "{:.2%}".format),
        line("cost", f"CPU per million answers {load}", "core_s_per_million", cost),
        line("memory", "memory of the replicas", "memory_bytes", mib),
    ]


def _said(outcome: Outcome | None, value: Any, say: Callable[[Any], str]) -> str:
    return "not measured" if outcome is None else say(value)


def _study_slo_line(report: Report, old: Outcome | None, new: Outcome | None) -> Line:
    low, high = (o is not None and is_a_floor(report, o) for o in (old, new))
    before, after = (None if o is None else o.slo_rate_rps for o in (old, new))
    return Line(
        "slo_rate", f"SLO rate (p99 within {bound_label(report.slo.latency_p99_s)})",
        _said(old, before, lambda value: rate(value, at_least=low)),
        _said(new, after, lambda value: rate(value, at_least=high)), _bounded_ratio(before, after, low, high),
    )  # fmt: skip


def _of_variants(report: Report) -> list[Line]:
    """What holds of the graphs themselves."""
    new, runtime = report.served, report.plan.runtime.name
    measured = new.accuracy_in(runtime)
    what = f"{'accuracy' if measured is None else measured.metric} [95% interval]"
    old, old_runtime = report.trained, None
    if report.comparison is None and report.baseline is not None:
        served = report.baseline.configuration
        old = next(v for v in report.variants if v.id == served.variant_id)
        old_runtime = served.runtime.name
    elif report.comparison is None:
        return [Line("accuracy", what, "not measured", accuracy_text(measured))]
    before = old.accuracy if old_runtime is None else old.accuracy_in(old_runtime)
    return [
        Line("accuracy", what, accuracy_text(before), accuracy_text(measured)),
        Line("size", "size of the graph with its weights", kib(old), kib(new),
             ratio(new.model_file.size_bytes, old.model_file.size_bytes)),
    ]  # fmt: skip
