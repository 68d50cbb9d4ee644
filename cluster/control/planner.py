"""Variants + Profiles -> Plan. Pure: the same measurements always give the same plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ConfigError
from cluster.plans import Plan
from cluster.profiles import Profile
from cluster.slo import AccuracyFloor
from cluster.variants import Variant

_NEAR_BEST = 0.95
"""A batch size within 5% of the best is as good; the smallest such one asks least of caches and memory."""
_PER_BATCH_S = 0.001
"""What a batch costs outside the graph (threads, queue, joining and splitting), which no profile holds: measured as
the difference that a cap of 8 against 64 makes to a full deployment, 0.39 against 0.28 ms a request."""
_BATCH_S = 0.010
"""How long one batch may keep the executor: a fifth of the default bound of 50 ms, so that whoever just missed it is
still served in time."""


def choose(
    variants: Sequence[Variant], profiles: Sequence[Profile], *, floor: AccuracyFloor | None = None, model_name: str,
    store: Path, num_replicas: int = 1,
) -> Plan:  # fmt: skip
    """The profiled variant with the highest throughput (smaller file on a tie) whose floor holds in the runtime of its
    profile, at the batch size of `_cap`. "unclear" is not good enough.

    Raises ConfigError when no variant holds its accuracy floor, none of those was profiled, or the profiles are of
    several machines.
    """
    floor = floor or AccuracyFloor()
    allowed = {v.id: v for v in variants if any(floor.verdict(a) == "holds" for a in v.accuracies)}
    if not allowed:
        verdicts = {v.name: (floor.verdict(v.accuracy) if v.accuracy else "not measured") for v in variants}
        raise ConfigError(
            f"no variant holds its accuracy floor: {verdicts}; train longer (--set epochs=...), or quantize less"
        )
    rows = [
        p for p in profiles
        if p.variant_id in allowed and floor.verdict(allowed[p.variant_id].accuracy_in(p.runtime.name)) == "holds"
    ]  # fmt: skip
    if not rows:
        names = sorted(v.name for v in allowed.values())
        raise ConfigError(f"no variant that holds its floor was profiled: {names}; pass their profiles too")
    machines = [p.hardware for p in rows if p.hardware != rows[0].hardware]
    if machines:
        raise ConfigError(
            f"the profiles are of several machines ({rows[0].hardware} and {machines[0]}); their throughputs do not "
            "compare, profile every variant on the one that will serve"
        )
    # The last three only break exact ties, so that the order of the profiles decides nothing.
    best = max(
        rows,
        key=lambda p: (
            p.throughput_rps, -allowed[p.variant_id].size_bytes, -p.runtime.threads, p.runtime.name, p.variant_id
        ),
    )  # fmt: skip
    variant = allowed[best.variant_id]
    same = [p for p in rows if p.variant_id == best.variant_id and p.runtime == best.runtime]
    good = _cap(same)
    return Plan(
        model_name=model_name,
        variant_id=variant.id,
        variant_name=variant.name,
        runtime=best.runtime,
        store=str(store),
        max_batch_size=good.batch_size,
        num_replicas=num_replicas,
        num_cpus_per_replica=float(best.runtime.threads),
        predicted={"kernel_throughput_rps": good.throughput_rps, "batch_latency_p50_s": good.latency_p50_s},
        made_by="sluice planner: highest profiled throughput among variants that hold their floor",
    )


def _cap(same: Sequence[Profile]) -> Profile:
    """The batch size that serves most requests per second, its own cost counted, among those that are done soon; the
    shortest if none is.

    max_batch_size is a cap and not a wait: a batch forms when the executor frees, so it is only ever filled by requests
    that wait already.
    """

    def rate(profile: Profile) -> float:
        return profile.batch_size / (profile.latency_p50_s + _PER_BATCH_S)

    shortest = min(same, key=lambda p: (p.latency_p99_s, p.batch_size))
    soon = [p for p in same if p.latency_p99_s <= _BATCH_S] or [shortest]
    best = max(map(rate, soon))
    return min(
        (p for p in soon if rate(p) >= _NEAR_BEST * best),
        key=lambda p: (p.batch_size, -p.throughput_rps, p.latency_p50_s),
    )
