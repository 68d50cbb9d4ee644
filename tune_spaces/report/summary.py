"""DemoReport -> the before | after table on the terminal, report.md and report.json beside the Serve config."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.hardware import fingerprint
from cluster.plans import Plan
from cluster.profiles import Profile
from cluster.variants import Accuracy, Variant
from tune_spaces.measure import Comparison, Figures, bound_label

Row = tuple[str, str, str, str]


@dataclass(frozen=True)
class DemoReport:
    """Everything that the demo learnt, with how to repeat it."""

    run_name: str
    plan: Plan
    variants: list[Variant]
    profiles: list[Profile]
    comparison: Comparison
    stage_seconds: dict[str, float]
    total_seconds: float
    command: str
    serve_config: str

    @property
    def before_variant(self) -> Variant:
        return next(v for v in self.variants if v.format == "torch_export")

    @property
    def after_variant(self) -> Variant:
        return next(v for v in self.variants if v.id == self.plan.variant_id)

    def as_dict(self) -> dict[str, Any]:
        return {
            "run_name": self.run_name,
            "command": self.command,
            "hardware": fingerprint(),
            "plan": self.plan.model_dump(mode="json"),
            "variants": [v.model_dump(mode="json") for v in self.variants],
            "profiles": [p.model_dump(mode="json") for p in self.profiles],
            "comparison": self.comparison.as_dict(),
            "stage_seconds": self.stage_seconds,
            "total_seconds": self.total_seconds,
            "serve_config": self.serve_config,
        }


def accuracy_text(accuracy: Accuracy | None) -> str:
    """0.9105 [0.9048, 0.9160]"""
    if accuracy is None:
        return "not measured"
    return f"{accuracy.value:.4f} [{accuracy.interval[0]:.4f}, {accuracy.interval[1]:.4f}]"


def _ratio(after: float | None, before: float | None) -> str:
    return f"{after / before:,.2f}x" if after is not None and before else "-"


def _slo_ratio(before: Figures, after: Figures, label: str) -> str:
    """A floor on one side makes the ratio a bound, on both it makes it nothing."""
    low, high = before.slo_rate_is_a_floor.get(label), after.slo_rate_is_a_floor.get(label)
    ratio = _ratio(after.slo_rate.get(label), before.slo_rate.get(label))
    if ratio == "-" or (low and high):
        return "-"
    return f"at most {ratio}" if low else f"at least {ratio}" if high else ratio


def _cost(core_s: float | None) -> str:
    return "nothing answered" if core_s is None else f"{core_s:,.0f}"


def _ms(seconds: float | None) -> str:
    return "failed" if seconds is None else f"{seconds * 1e3:,.2f} ms"


def _max(figures: Figures) -> str:
    return f"{'at least ' if figures.max_rate_is_a_floor else ''}{figures.max_rate:,.0f} req/s"


def _kib(variant: Variant) -> str:
    """Of the graph alone: the torch variant keeps its weights a second time, for the baseline's model class."""
    return f"{variant.model_file.size_bytes / 1024:,.0f} KiB"


def _rate(figures: Figures, label: str) -> str:
    rate = figures.slo_rate.get(label)
    if rate is None:
        return "can't tell"
    return f"{'at least ' if figures.slo_rate_is_a_floor.get(label) else ''}{rate:,.0f} req/s"


def before_after_rows(report: DemoReport) -> list[Row]:
    """(what, before, after, ratio): the table that the demo ends with."""
    both = report.comparison
    before, after = both.before, both.after
    rows: list[Row] = []
    for bound_s in both.protocol.bounds_s:
        label = bound_label(bound_s)
        ratio = _slo_ratio(before, after, label)
        rows.append((f"SLO rate (p99 within {label})", _rate(before, label), _rate(after, label), ratio))
    load = f"at {both.equal_load_rate:,.0f} req/s"
    old, new = report.before_variant, report.after_variant
    rows += [
        ("max rate, closed loop", _max(before), _max(after), _ratio(after.max_rate, before.max_rate)),
        (f"p50 {load}", _ms(before.latency_p50_s), _ms(after.latency_p50_s),
         _ratio(after.latency_p50_s, before.latency_p50_s)),
        (f"p99 {load}", _ms(before.latency_p99_s), _ms(after.latency_p99_s),
         _ratio(after.latency_p99_s, before.latency_p99_s)),
        ("utilisation of the server cores, at max rate", f"{before.utilisation:.0%}", f"{after.utilisation:.0%}", ""),
        (f"errors {load}", f"{before.error_rate:.3%}", f"{after.error_rate:.3%}", ""),
        ("accuracy [95% interval]", accuracy_text(old.accuracy), accuracy_text(new.accuracy), ""),
        ("size of the graph with its weights", _kib(old), _kib(new),
         _ratio(new.model_file.size_bytes, old.model_file.size_bytes)),
        ("core-seconds per million answers, at max rate", _cost(before.core_s_per_million),
         _cost(after.core_s_per_million), _ratio(after.core_s_per_million, before.core_s_per_million)),
        (f"core-seconds per million answers, {load}", _cost(before.core_s_per_million_equal_load),
         _cost(after.core_s_per_million_equal_load),
         _ratio(after.core_s_per_million_equal_load, before.core_s_per_million_equal_load)),
    ]
    return rows


def variant_rows(variants: list[Variant]) -> list[tuple[str, ...]]:
    """(name, id, format, size, accuracy, delta to parent, verdict)"""
    rows: list[tuple[str, ...]] = []
    for v in variants:
        a = v.accuracy
        delta = ""
        if a is not None and a.delta is not None and a.delta_interval is not None:
            delta = f"{a.delta:+.4f} [{a.delta_interval[0]:+.4f}, {a.delta_interval[1]:+.4f}]"
        rows.append((v.name, v.id, v.format, _kib(v), accuracy_text(a), delta,
                     (a.verdict or "") if a else ""))
    return rows


def profile_rows(profiles: list[Profile], variants: list[Variant]) -> list[tuple[str, ...]]:
    """(variant, runtime, batch, p50, p99, images/s)"""
    names = {v.id: v.name for v in variants}
    return [
        (names.get(p.variant_id, p.variant_id), p.runtime.name, str(p.batch_size), _ms(p.latency_p50_s),
         _ms(p.latency_p99_s), f"{p.throughput_rps:,.0f}")
        for p in profiles
    ]


VARIANT_HEADERS = ("variant", "id", "format", "size", "accuracy", "change to parent", "floor")
PROFILE_HEADERS = ("variant", "runtime", "batch", "p50", "p99", "images/s")


def table(title: str, headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> Table:
    """A rich table; every column after the first is right-aligned."""
    made = Table(title=title, title_justify="left")
    for index, header in enumerate(headers):
        made.add_column(header, justify="left" if index == 0 else "right")
    for row in rows:
        made.add_row(*row)
    return made


def print_tables(report: DemoReport, console: Console) -> None:
    """Variants, then before | after."""
    console.print(table("Variants", VARIANT_HEADERS, variant_rows(report.variants)))
    console.print(table("Before | after", ("", "before", "after", "after/before"), list(before_after_rows(report))))


def _markdown(headers: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = ["| " + " | ".join(headers) + " |", "|" + " --- |" * len(headers)]
    lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines)


def _cores(both: Comparison) -> str:
    shared = set(both.server_cpus or ()) & set(both.client_cpus or ())
    said = f"Servers and all of Ray on cores {both.server_cpus or 'any'}, client on {both.client_cpus or 'any'}."
    return f"{said} They shared a core: no figure is of the server alone." if shared or not both.server_cpus else said


def _per_seed(figures: Figures) -> str:
    return "; ".join(
        f"{label}: {', '.join(f'{rate:,.0f}' for rate in rates.values()) or 'none could tell'}"
        for label, rates in figures.slo_rate_per_seed.items()
    )


def markdown(report: DemoReport) -> str:
    """The whole report as Markdown."""
    hardware = ", ".join(f"{key}: {value}" for key, value in fingerprint().items())
    both = report.comparison
    stages = "\n".join(f"- {name}: {took:.1f} s" for name, took in report.stage_seconds.items())
    caution = "Short steps: good for a look, not for publishing." if both.protocol.step_s < 20 else ""
    return f"""# {report.run_name}

`{report.command}` took {report.total_seconds:.0f} s. Protocol: {both.protocol.name} ({both.protocol.step_s:g} s a step,
{len(both.protocol.seeds)} seeds). {caution}
{_cores(both)} Both deployments were up all the while, so each one idled on the other's cores.
The client alone, against a null server, {"held" if both.self_check["ok"] else "did not hold"}
{both.self_check["rate"]:,.0f} req/s with a p99 send lag of {both.self_check["send_lag_p99_s"] * 1e3:.2f} ms;
at equal load it used {both.client_cpu_share:.0%} of its core. The equal load is {both.equal_load_rate:,.0f} req/s, from
the baseline's {both.equal_load_from}.

{_markdown(("", "before", "after", "after/before"), list(before_after_rows(report)))}

Before: fp32 eager torch in a stock Ray Serve deployment, JSON, no batching. After: `{report.plan.variant_name}` on
{report.plan.runtime.name}, max_batch_size {report.plan.max_batch_size}, binary tensors.

SLO rate by seed (req/s): before {_per_seed(both.before)}; after {_per_seed(both.after)}.

## Variants

{_markdown(VARIANT_HEADERS, variant_rows(report.variants))}

## Profiles

{_markdown(PROFILE_HEADERS, profile_rows(report.profiles, report.variants))}

## Stages

{stages}

Machine: {hardware}
"""


def write_report(report: DemoReport, folder: Path) -> Path:
    """Write report.md and report.json; returns the Markdown's path."""
    (folder / "report.json").write_text(json.dumps(report.as_dict(), indent=2))
    path = folder / "report.md"
    path.write_text(markdown(report))
    return path
