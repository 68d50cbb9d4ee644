"""Report -> are we meeting the SLO? One sentence, a check for each promise, and what the figures do not say."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.load import CPU_LIMIT
from cluster.stats import Verdict
from cluster.studies import Outcome
from cluster.variants import figure
from tune_spaces.measure import Comparison, bound_label
from tune_spaces.report.before_after import before_after, is_a_floor
from tune_spaces.report.report import Report
from tune_spaces.report.words import accuracy_text, count, mib, ms, rate

_TO_PUBLISH_S = 20.0
"""Shorter steps see too few requests beyond p99 (benchmarks/PROTOCOL.md)."""


@dataclass(frozen=True)
class Check:
    """One promise of the SLO and what was measured of it."""

    promise: str
    measured: str
    verdict: Verdict


@dataclass(frozen=True)
class Answer:
    """`verdict` is the worst of the checks'."""

    verdict: Verdict
    sentence: str
    checks: tuple[Check, ...]
    caveats: tuple[str, ...]


def answer(report: Report) -> Answer:
    """The SLO, judged on what was measured of the plan."""
    checks = (_latency(report), _accuracy(report), *_memory(report))
    verdicts = [check.verdict for check in checks]
    verdict: Verdict = next((v for v in ("fails", "unclear") if v in verdicts), "holds")
    return Answer(verdict, _sentence(report, verdict), checks, tuple(_caveats(report)))


def _latency(report: Report) -> Check:
    """Of a load that the SLO names p99 must hold; without one, some load must be carried."""
    bound = f"p99 within {report.slo.latency_p99_ms:g} ms"
    slo_rate, at_least = _slo_rate(report)
    if not _load_is_named(report):
        unknown: Verdict = "unclear" if slo_rate is None else "fails"
        return Check(f"{bound}, at the highest rate that has it", rate(slo_rate, at_least=at_least),
                     "holds" if slo_rate else unknown)  # fmt: skip
    chosen, load = report.chosen, report.reference_rps
    promise = f"{bound} at {count(load or report.slo.rate_rps or 0)} req/s"
    if chosen is None or load is None:
        return Check(promise, "not measured", "unclear")
    measured = f"p99 {ms(chosen.latency_p99_s)}, {chosen.attainment:.2%} answered rightly in time"
    verdict: Verdict = "holds" if chosen.latency_p99_s <= report.slo.latency_p99_s else "fails"
    if report.comparison is not None and slo_rate is not None and slo_rate < load and not at_least:
        # The comparison measured longer than a trial: it has the last word.
        return Check(promise, f"{measured}; in the longer comparison it held only {rate(slo_rate)}", "fails")
    return Check(promise, measured, verdict)


def _accuracy(report: Report) -> Check:
    measured = report.served.accuracy_in(report.plan.runtime.name)
    metric = "accuracy" if measured is None else measured.metric
    promise = f"{metric} {report.slo.accuracy.of(measured)}"
    return Check(promise, accuracy_text(measured), report.slo.accuracy.verdict(measured))


def _memory(report: Report) -> list[Check]:
    budget, chosen = report.slo.budget.memory_mib, report.chosen
    if budget is None:
        return []
    used = None if chosen is None else chosen.memory_bytes
    verdict: Verdict = "unclear" if used is None else "holds" if used <= budget << 20 else "fails"
    return [Check(f"replicas within {budget:,} MiB", mib(used), verdict)]


def _slo_rate(report: Report) -> tuple[float | None, bool]:
    """(req/s, is it only a floor): the comparison's, which measured longest, else the study's."""
    label = bound_label(report.slo.latency_p99_s)
    if report.comparison is not None and label in report.comparison.after.slo_rate:
        after = report.comparison.after
        return after.slo_rate[label], after.slo_rate_is_a_floor.get(label, False)
    chosen = report.chosen
    return (None, False) if chosen is None else (chosen.slo_rate_rps, is_a_floor(report, chosen))


def _sentence(report: Report, verdict: Verdict) -> str:
    opening = {"holds": "Yes", "fails": "No", "unclear": "Can't tell yet"}[verdict]
    plan, chosen, (slo_rate, at_least) = report.plan, report.chosen, _slo_rate(report)
    parts = []
    if chosen is not None and (slo_rate is None or _load_is_named(report)):
        parts.append(f"has p99 {ms(chosen.latency_p99_s)} at {count(report.reference_rps or 0)} req/s")
    if slo_rate is not None:
        bound = f"{report.slo.latency_p99_ms:g} ms"
        parts.append(f"answers {rate(slo_rate, at_least=at_least)} with p99 within {bound}{_gain(report)}")
    accuracy = report.served.accuracy_in(plan.runtime.name)
    if accuracy is not None:
        named = figure(accuracy.metric, accuracy.value, higher_is_better=accuracy.higher_is_better)
        parts.append(f"is right in {accuracy.value:.2%}" if accuracy.metric == "accuracy" else f"has {named}")
    told = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts) or "was not measured"
    return f"{opening}: {plan.variant_name} on {plan.runtime}, in batches of up to {plan.max_batch_size}, {told}."


def _gain(report: Report) -> str:
    said = next(line.ratio for line in before_after(report) if line.key == "slo_rate")
    return "" if said in ("-", "") else f" ({said} what was there before)"


def _load_is_named(report: Report) -> bool:
    return report.slo.rate_rps is not None or report.slo.trace is not None


def _caveats(report: Report) -> list[str]:
    said = _of_study(report) if report.comparison is None else _of_comparison(report.comparison)
    failed = sum(trial.error is not None for trial in report.study.trials)
    if failed:
        trials = len(report.study.trials)
        said.append(f"{failed} of {trials} trials could not be measured; the list of trials says why.")
    return [*said, *report.notes]


def _shared(server: Sequence[int] | None, client: Sequence[int] | None) -> list[str]:
    if not server or not client:
        return ["Servers and load generator were not pinned to cores of their own: no figure is of the server alone."]
    if set(server) & set(client):
        return ["Servers and load generator shared a core: no figure is of the server alone."]
    return []


def _of_study(report: Report) -> list[str]:
    header, chosen = report.study.header, report.chosen
    said = _shared(header.cpus.get("server"), header.cpus.get("client"))
    step_s = header.protocol.get("step_s")
    if isinstance(step_s, int | float) and step_s < _TO_PUBLISH_S:
        said.insert(0, f"Short steps ({step_s:g} s): good for choosing, not for publishing.")
    if chosen is None:
        return [*said, "The study holds no measurement of the chosen configuration."]
    if chosen.trials < 3:
        times = "once" if chosen.trials == 1 else "twice"
        said.append(f"The chosen configuration was measured {times}: its scatter is not known.")
    if len(report.study.outcomes()) > 1:
        said.append("The best of many noisy measurements is a little lucky: measured again it may do slightly worse.")
    if chosen.slo_rate_rps is not None and is_a_floor(report, chosen):
        said.append("Its SLO rate is a floor: it still held at the highest rate that the client could hold.")
    if any(client > CPU_LIMIT for client in _client_shares(report, chosen)):
        said.append("The load generator was short of CPU in some of its trials.")
    return said


def _client_shares(report: Report, outcome: Outcome) -> list[float]:
    return [
        trial.figures.client_cpu_share
        for trial in report.study.trials
        if trial.figures is not None and trial.configuration.key == outcome.configuration.key
    ]


def _of_comparison(both: Comparison) -> list[str]:
    said = []
    if both.protocol.step_s < _TO_PUBLISH_S:
        said.append(f"Short steps ({both.protocol.step_s:g} s): good for a look, not for publishing.")
    said += _shared(both.server_cpus, both.client_cpus)
    said.append("Both deployments were up all the while, so each one idled on the other's cores.")
    if not both.self_check.get("ok"):
        said.append("The load generator held no rate against a null server: no SLO rate can be told.")
    sides = (("before", both.before), ("after", both.after))
    for name, figures in sides:
        for label in [bound for bound, floor in figures.slo_rate_is_a_floor.items() if floor]:
            said.append(f"The SLO rate at {label} {name} is a floor: the client could not hold more.")
        if figures.max_rate_is_a_floor:
            said.append(f"The max rate {name} is a floor: the load generator was short of CPU.")
        if any(value is None for value in figures.slo_rate.values()):
            said.append(f'An SLO rate {name} is "can\'t tell": not every seed had an answer that is the server\'s.')
    if both.client_cpu_share > CPU_LIMIT:
        said.append(f"At equal load the client used {both.client_cpu_share:.0%} of its core: it may be what was slow.")
    if both.equal_load_from != "slo rate":
        said.append("The baseline's SLO rate is not known: the equal load is a sixth of its closed-loop maximum.")
    return said


def failing(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those without a p99: over 1% of their requests were refused or failed."""
    return [outcome for outcome in outcomes if math.isinf(outcome.latency_p99_s)]
