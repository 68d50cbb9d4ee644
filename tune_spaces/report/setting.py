"""Report -> under which conditions it was measured: SLO, machine, cores, protocol, the client's proof."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cluster.hardware import binary
from tune_spaces.report.report import Report
from tune_spaces.report.words import cores_text, count, duration, numbers_text

Pair = tuple[str, str]
_NAMES = {"cpu": "CPU", "flags": "instruction sets", "cores_usable": "cores that may be used", "python": "Python"}
_ABOVE = {"libraries": "", "caches": "cache "}
"""How the facts of `cluster.hardware.fingerprint` are called; the others by their own names."""


def slo_rows(report: Report) -> list[Pair]:
    """What was promised."""
    slo, header = report.slo, report.study.header
    load = f"{count(slo.rate_rps)} req/s" if slo.rate_rps is not None else "none named: as high as it goes"
    if slo.trace is not None:
        load = f"the busiest of the trace {slo.trace.path}, times {slo.trace.scale:g}"
    cores, memory = slo.budget.cores, slo.budget.memory_mib
    return [
        ("model", slo.model_name),
        ("latency", f"p99 within {slo.latency_p99_ms:g} ms; refused and failed requests count as late"),
        (header.metric, slo.accuracy.of_figure(higher_is_better=header.higher_is_better)),
        ("load", load),
        ("cores", "all that the machine has for servers" if cores is None else f"{cores:,} at most"),
        ("memory", "all that the machine has" if memory is None else f"{memory:,} MiB at most"),
        ("objective", slo.objective),
    ]


def machine_rows(report: Report) -> list[Pair]:
    """Hardware and libraries, as the study found them."""
    return [(name, value) for name, value in _flat(report.study.header.hardware)]


def protocol_rows(report: Report) -> list[Pair]:
    """Who ran where, for how long, how often."""
    header, both = report.study.header, report.comparison
    trials = header.protocol
    rows = [
        ("cores in the study",
         f"servers and all of Ray on {cores_text(header.cpus.get('server'))}, "
         f"load generator on {cores_text(header.cpus.get('client'))}"),
        ("trials", ", ".join(_setting(name, value) for name, value in trials.items())),
        ("seeds of the trials", numbers_text(trial.seed for trial in report.study.trials)),
        ("load of the trials' latencies",
         "none was measured" if report.reference_rps is None else f"{count(report.reference_rps)} req/s, Poisson"),
    ]  # fmt: skip
    if both is not None:
        protocol, check = both.protocol, both.self_check
        lag = check.get("send_lag_p99_s")
        told = "no p99 send lag" if lag is None else f"a p99 send lag of {lag * 1e3:.2f} ms"
        rows += [
            ("cores in the comparison",
             f"servers and all of Ray on {cores_text(both.server_cpus)}, "
             f"load generator on {cores_text(both.client_cpus)}"),
            ("comparison",
             f"protocol {protocol.name}: {protocol.step_s:g} s a step after {protocol.warmup_s:g} s of warm-up, "
             f"{protocol.rounds} interleaved rounds, {protocol.open_connections} connections open loop, "
             f"{' and '.join(map(str, protocol.connections))} closed loop"),
            ("seeds of the comparison", ", ".join(map(str, protocol.seeds))),
            ("SLO rate by seed, before", _per_seed(both.before.slo_rate_per_seed)),
            ("SLO rate by seed, after", _per_seed(both.after.slo_rate_per_seed)),
            ("equal load", f"{count(round(both.equal_load_rate))} req/s, from the baseline's {both.equal_load_from}"),
            ("the client alone, against a null server",
             f"{'held' if check.get('ok') else 'did not hold'} {count(round(check.get('rate') or 0))} req/s "
             f"with {told}"),
            ("the client's share of its core, at equal load", f"{both.client_cpu_share:.0%} at most"),
        ]  # fmt: skip
    return rows


def stage_rows(report: Report) -> list[Pair]:
    """How long each stage took, and all of it."""
    stages = [(name, duration(took)) for name, took in report.stage_seconds.items()]
    return [*stages, ("in all", duration(report.total_seconds))]


def _per_seed(rates: dict[str, dict[int, float]]) -> str:
    return "; ".join(
        f"{label}: {', '.join(f'{rate:,.0f}' for rate in per_seed.values()) or 'none could tell'} req/s"
        for label, per_seed in rates.items()
    )


def _setting(name: str, value: Any) -> str:
    """step_s=2.0 -> step 2 s"""
    said = name.removesuffix("_s").replace("_", " ")
    return f"{said} {_value(name, value)}{' s' if name.endswith('_s') else ''}"


def _flat(facts: dict[str, Any], above: str = "") -> Iterator[Pair]:
    for name, value in facts.items():
        if isinstance(value, dict):
            yield from _flat(value, _ABOVE.get(name, f"{above}{name} "))
        else:
            yield f"{above}{_NAMES.get(name, name)}".removesuffix("_bytes").replace("_", " "), _value(name, value)


def _value(name: str, value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "none"
    if name.endswith("_bytes") and isinstance(value, int):
        return binary(value)
    return f"{value:g}" if isinstance(value, float) else str(value)
