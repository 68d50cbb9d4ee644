"""Study -> Plan: which of the configurations that were measured live is deployed. Pure.

The same measurements always give the same plan. "Best" is the SLO's objective; configurations that differ by less than
measurements scatter count as equal, and the faster answer, the better accuracy and the smaller batch decide.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.plans import Configuration, Plan
from cluster.slo import Slo
from cluster.studies import Outcome, Study

_AS_GOOD = 0.03
"""Figures within 3% of the best are as good: the SLO rates of one configuration scatter about that much."""


def holds(outcome: Outcome, slo: Slo) -> bool:
    """Does it keep the promise? Of a load that the SLO names 99% must be answered within the bound, and the memory
    budget holds. Without a named load any rate that it held will do: its SLO rate or, where the load generator could
    not tell that one, the reference load. (Accuracy is decided before anything is measured.)"""
    if not _in_memory(outcome, slo):
        return False
    if slo.rate_rps is None and slo.trace is None and outcome.slo_rate_rps is not None:
        return outcome.slo_rate_rps > 0
    return outcome.latency_p99_s <= slo.latency_p99_s


def _in_memory(outcome: Outcome, slo: Slo) -> bool:
    """What was not measured is not known to fit."""
    budget = slo.budget.memory_mib
    return budget is None or (outcome.memory_bytes is not None and outcome.memory_bytes <= budget << 20)


def score(outcome: Outcome, slo: Slo) -> float:
    """Larger is better, comparable within one study."""
    if slo.objective == "min_latency":
        return -outcome.latency_p99_s
    if slo.objective == "min_cost":
        # An unknown cost comes after every known one: as if it kept a million cores busy.
        unknown = 1e12 / outcome.max_rate_rps if outcome.max_rate_rps > 0 else math.inf
        return -(outcome.core_s_per_million if outcome.core_s_per_million is not None else unknown)
    if outcome.slo_rate_rps is not None:
        return outcome.slo_rate_rps
    # Its SLO rate is not known, and the closed loop's maximum is none: what it did hold is all that is proven.
    return outcome.reference_rate_rps if outcome.latency_p99_s <= slo.latency_p99_s else 0.0


def ranked(outcomes: Sequence[Outcome], slo: Slo) -> list[Outcome]:
    """Those that hold, best first: as `choose` prefers them."""
    left = [o for o in outcomes if holds(o, slo)]
    order: list[Outcome] = []
    while left:
        best = max(score(o, slo) for o in left)
        as_good = [o for o in left if score(o, slo) >= best - _AS_GOOD * abs(best)]
        first = min(
            as_good,
            key=lambda o: (
                round(o.latency_p99_s, 4), -o.quality, o.configuration.max_batch_size, -score(o, slo),
                o.configuration.key,
            ),
        )  # fmt: skip
        order.append(first)
        left.remove(first)
    return order


def choose(study: Study, *, store: Path, predicted: dict[str, Any] | None = None) -> Plan:
    """The best configuration of the study that keeps the SLO.

    Raises ConfigError, saying what came nearest, if none does.
    """
    slo, outcomes = study.header.slo, study.outcomes()
    order = ranked(outcomes, slo)
    if not order:
        raise ConfigError(_nothing_holds(outcomes, slo))
    best = order[0]
    return plan_of(
        best.configuration,
        model_name=slo.model_name,
        store=store,
        slo=slo.model_dump(mode="json"),
        predicted=predicted or {},
        measured={
            "slo_rate_rps": best.slo_rate_rps,
            "max_rate_rps": best.max_rate_rps,
            "latency_p50_s": best.latency_p50_s,
            "latency_p99_s": best.latency_p99_s,
            best.metric: best.accuracy,
            "core_s_per_million": best.core_s_per_million,
            "memory_bytes": best.memory_bytes,
            "trials": best.trials,
        },
        made_by=f"study {study.header.name}: best of {len(outcomes)} configurations measured live by {slo.objective}",
    )


def plan_of(configuration: Configuration, *, model_name: str, store: Path, made_by: str, **more: Any) -> Plan:
    """The plan that deploys a configuration; each replica asks for as many CPUs as its runtime can keep busy."""
    return Plan(
        **configuration.model_dump(include=set(Configuration.model_fields)), model_name=model_name, store=str(store),
        num_cpus_per_replica=float(configuration.runtime.cores), made_by=made_by, **more,
    )  # fmt: skip


def _nothing_holds(outcomes: Sequence[Outcome], slo: Slo) -> str:
    if not outcomes:
        return "no configuration could be measured; the trials' files say why"
    load = slo.peak_rps()
    wish = f"{load:,.0f} req/s with p99" if load else "any rate with p99"
    nearest = min(
        outcomes,
        key=lambda o: (not _in_memory(o, slo), o.latency_p99_s, -o.max_rate_rps, o.configuration.key),
    )
    memory = f" and {slo.budget.memory_mib:,} MiB" if slo.budget.memory_mib else ""
    has = "" if nearest.memory_bytes is None else f", {math.ceil(nearest.memory_bytes / (1 << 20)):,} MiB"
    late = math.isinf(nearest.latency_p99_s)
    p99 = "over 1% failed" if late else f"p99 {nearest.latency_p99_s * 1e3:,.1f} ms"
    more = "more cores, a lower rate or a longer bound" if _in_memory(nearest, slo) else "more memory"
    return (
        f"none of {len(outcomes)} configurations holds {wish} within {slo.latency_p99_ms:g} ms{memory}; nearest: "
        f"{nearest.configuration}, {p99} at {nearest.reference_rate_rps:,.0f} req/s, at most "
        f"{nearest.max_rate_rps:,.0f} req/s{has}; give it {more}"
    )
