"""Study -> rows: each configuration, each trial with the best so far, predicted against measured."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.control.planner import holds, score
from cluster.plans import Configuration
from cluster.slo import Slo
from cluster.studies import Outcome, Study, Trial
from tune_spaces.pareto import pareto
from tune_spaces.report.before_after import is_a_floor
from tune_spaces.report.report import Report
from tune_spaces.report.words import cost, count, duration, mib, ms, outcome_text, rate, short_names

OUTCOME_HEADERS = ("configuration", "SLO rate", "max rate", "p50", "p99", "accuracy", "CPU per million", "memory",
                   "trials", "")  # fmt: skip
TRIAL_HEADERS = ("trial", "asked for by", "configuration", "SLO rate", "max rate", "p99", "in time", "best so far",
                 "took", "")  # fmt: skip
PREDICTION_HEADERS = ("", "predicted", "measured", "measured/predicted")
ORIGINS: Mapping[str, str] = {
    "baseline": "baseline",
    "profiles": "ranking by profiles",
    "optuna": "Optuna",
    "confirm": "confirmation",
    "grid": "grid",
}
OBJECTIVES: Mapping[str, str] = {
    "max_rate": "the highest SLO rate",
    "min_latency": "the lowest p99 at the SLO's load",
    "min_cost": "the least CPU time per answer",
}


@dataclass(frozen=True)
class Step:
    """One trial on the way: its own worth and the best that kept the SLO until then, both as the objective counts."""

    trial: Trial
    outcome: Outcome | None
    value: float | None
    """What the objective looks at, in the unit of `objective_of`; None: not measured."""
    best: float | None
    improved: bool


def outcome_rows(report: Report) -> list[tuple[str, ...]]:
    """A row for each configuration, best first by SLO rate; the last cell says what it is."""
    outcomes, names = report.study.outcomes(), short_names(report.study.header.variants)
    unbeaten = {o.configuration.key for o in pareto(outcomes)}
    baseline = report.baseline.configuration.key if report.baseline else None

    def role(outcome: Outcome) -> str:
        key = outcome.configuration.key
        marks = (("chosen", report.plan.key == key), ("baseline", baseline == key), ("unbeaten", key in unbeaten))
        return ", ".join(name for name, is_so in marks if is_so)

    return [
        (
            _said(o.configuration, names), rate(o.slo_rate_rps, at_least=is_a_floor(report, o)), rate(o.max_rate_rps),
            ms(o.latency_p50_s), ms(o.latency_p99_s), outcome_text(o), cost(o.core_s_per_million),
            mib(o.memory_bytes), str(o.trials), role(o),
        )
        for o in sorted(outcomes, key=lambda o: (-(o.slo_rate_rps or 0.0), -o.max_rate_rps))
    ]  # fmt: skip


def _said(configuration: Configuration, names: Mapping[str, str]) -> str:
    """By the variant's short name: a table says its folder once, if at all."""
    return str(configuration.model_copy(update={"variant_name": names[configuration.variant_id]}))


def objective_of(outcome: Outcome, slo: Slo) -> float | None:
    """What the objective compares, as people read it: req/s, ms, or core-seconds per million answers; None where over
    1% failed, or the cost is not known."""
    if slo.objective == "min_cost":
        return outcome.core_s_per_million
    worth = score(outcome, slo)
    value = worth if slo.objective == "max_rate" else -worth * 1e3
    return value if math.isfinite(value) else None


def objective_axis(slo: Slo) -> str:
    return {
        "max_rate": f"SLO rate, req/s with p99 within {slo.latency_p99_ms:g} ms",
        "min_latency": "P99 at the SLO's load, ms",
        "min_cost": "Core-seconds per million answers",
    }[slo.objective]


def steps(study: Study) -> list[Step]:
    """The trials in order."""
    slo, best, worth_so_far = study.header.slo, None, None
    made: list[Step] = []
    for trial in study.trials:
        outcome = next(iter(Study(study.header, (trial,)).outcomes()), None)
        value, improved = None, False
        if outcome is not None:
            value, worth = objective_of(outcome, slo), score(outcome, slo)
            improved = value is not None and holds(outcome, slo) and (worth_so_far is None or worth > worth_so_far)
            if improved:
                best, worth_so_far = value, worth
        made.append(Step(trial, outcome, value, best, improved))
    return made


def trial_rows(study: Study) -> list[tuple[str, ...]]:
    """A row for each trial, in order; the last cell says why it could not be measured, or that it took the lead."""
    unit = {"max_rate": " req/s", "min_latency": " ms", "min_cost": " core-s"}[study.header.slo.objective]
    names = short_names(study.header.variants)
    rows: list[tuple[str, ...]] = []
    for step in steps(study):
        trial, figures = step.trial, step.trial.figures
        head = (str(trial.number), ORIGINS[trial.origin], _said(trial.configuration, names))
        best = "" if step.best is None else f"{count(step.best)}{unit}"
        if figures is None:
            rows.append((*head, "failed", "", "", "", best, duration(trial.took_s), trial.error or ""))
            continue
        slo_rate = rate(figures.slo_rate_rps, at_least=figures.slo_rate_is_a_floor)
        note = "new best" if step.improved else ""
        rows.append((*head, slo_rate, rate(figures.max_rate_rps), ms(figures.latency_p99_s),
                     f"{figures.attainment:.2%}", best, duration(trial.took_s), note))  # fmt: skip
    return rows


_FIGURES: Sequence[tuple[str, str, str, Callable[[float | None], str]]] = (
    ("slo_rate_rps", "slo_rate_rps", "SLO rate", rate),
    ("capacity_rps", "max_rate_rps", "max rate", rate),
    ("latency_p50_s", "latency_p50_s", "p50", ms),
    ("latency_p99_s", "latency_p99_s", "p99", ms),
    ("core_s_per_million", "core_s_per_million", "CPU per million answers", cost),
    ("memory_bytes", "memory_bytes", "memory of the replicas", lambda size: mib(None if size is None else int(size))),
)
"""(name in `Plan.predicted`, name in `Plan.measured`, in words, how it is said)"""


def prediction_rows(predicted: Mapping[str, Any], measured: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Those figures that were both predicted from profiles and measured live."""
    rows: list[tuple[str, ...]] = []
    for name, counterpart, what, say in _FIGURES:
        guess, found = predicted.get(name), measured.get(counterpart)
        if isinstance(guess, int | float) and isinstance(found, int | float):
            rows.append((what, say(guess), say(found), f"{found / guess:.2f}x" if guess else "-"))
    return rows
