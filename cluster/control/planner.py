"""Variants + Profiles -> Plan. Pure: the same measurements always give the same plan."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ConfigError
from cluster.plans import Plan
from cluster.profiles import Profile
from cluster.variants import Variant

_NEAR_BEST = 0.95
"""A batch size within 5% of the best throughput is as good; the smallest such one waits least."""


def eligible(variants: Sequence[Variant]) -> list[Variant]:
    """Variants whose accuracy floor holds; one without a parent is its own floor. "unclear" is not good enough."""
    return [v for v in variants if v.accuracy is not None and (v.parent_id is None or v.accuracy.verdict == "holds")]


def choose(
    variants: Sequence[Variant], profiles: Sequence[Profile], *, model_name: str, store: Path, num_replicas: int = 1
) -> Plan:
    """The eligible variant with the highest profiled throughput (smaller file on a tie), at its smallest good batch.

    Raises ConfigError when no variant holds its accuracy floor or none of those was profiled.
    """
    allowed = {v.id: v for v in eligible(variants)}
    rows = [p for p in profiles if p.variant_id in allowed]
    if not rows:
        verdicts = {v.name: (v.accuracy.verdict if v.accuracy else "not measured") for v in variants}
        raise ConfigError(f"no profiled variant holds its accuracy floor: {verdicts}; lower the floor or train longer")
    best = max(rows, key=lambda p: (p.throughput_rps, -allowed[p.variant_id].size_bytes))
    variant = allowed[best.variant_id]
    same = [p for p in rows if p.variant_id == best.variant_id and p.runtime == best.runtime]
    good = min((p for p in same if p.throughput_rps >= _NEAR_BEST * best.throughput_rps), key=lambda p: p.batch_size)
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
