"""Outcomes -> those that no other beats: the choices worth discussing. Pure.

One outcome beats another if it is as good in every respect and better in one: SLO rate, p99 at the reference load,
quality (more accuracy, less error), CPU time per answer (Miettinen, "Nonlinear Multiobjective Optimization", 1999,
definition 2.2.1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from cluster.studies import Outcome

Goodness = tuple[float, float, float, float]


def goodness(outcome: Outcome) -> Goodness:
    """(SLO rate, -p99, quality, -cost): larger is better in each; what was not measured is the worst there is."""
    rate, cost = outcome.slo_rate_rps, outcome.core_s_per_million
    return (
        -math.inf if rate is None else rate,
        -outcome.latency_p99_s,
        outcome.quality,
        -math.inf if cost is None else -cost,
    )


def dominates(one: Outcome, other: Outcome) -> bool:
    """Is `one` as good as `other` in everything and better in something?"""
    mine, its = goodness(one), goodness(other)
    return mine != its and all(a >= b for a, b in zip(mine, its, strict=True))


def pareto(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Those that none of `outcomes` dominates, in the order given; of equals, all."""
    return [outcome for outcome in outcomes if not any(dominates(other, outcome) for other in outcomes)]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The line of a plot: of (p99, rate) those with no faster answer at a higher rate, by rising p99.

    In the plane alone, so it may leave out what `pareto` keeps for its accuracy or its cost.
    """
    kept: list[tuple[float, float]] = []
    for latency, rate in sorted(points, key=lambda point: (point[0], -point[1])):
        if not kept or rate > kept[-1][1]:
            kept.append((latency, rate))
    return kept
