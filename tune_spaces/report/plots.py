"""Report -> the plots of the page, as plotly figures whose colours are the names of CSS properties (style.py).

Names reach plotly escaped: it reads some HTML in texts, and %{...} in templates, so a hover is always a hovertext.
"""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from cluster.profiles import Curve
from cluster.studies import Outcome
from cluster.variants import decimals
from tune_spaces.pareto import front, pareto
from tune_spaces.report.report import Report
from tune_spaces.report.style import FONT, series
from tune_spaces.report.words import cost, count, mib, ms, rate, short_names

SYMBOLS: Mapping[str, tuple[str, str]] = {
    "onnxruntime": ("circle", "●"), "openvino": ("diamond", "◆"), "torch": ("square", "■"),
}  # fmt: skip
"""(plotly's name, as text) by runtime"""
DASHES: Mapping[str, str] = {"onnxruntime": "solid", "openvino": "dash", "torch": "dot"}
_SMALLEST, _LARGEST = 10.0, 22.0
"""Diameters of markers, in pixels."""


@dataclass(frozen=True)
class Chip:
    """A switch beside the plot: traces that bear its `key` are hidden while it is off; "" makes it a mere legend."""

    key: str
    label: str
    colour: str = ""
    sign: str = ""


@dataclass(frozen=True)
class Chart:
    """One plot: `name` is its id in the page, `label` what a screen reader says of it."""

    name: str
    label: str
    figure: go.Figure
    chips: Sequence[tuple[str, Sequence[Chip]]] = ()
    """(what they are, them)"""
    low: bool = False


def plain(words: str) -> str:
    """Not read as markup by plotly, which decodes these three and no quotes."""
    return html.escape(words, quote=False)


def hover(*lines: str) -> str:
    """Lines of a hovertext, the first of them bold."""
    first, *rest = map(plain, lines)
    return "<br>".join((f"<b>{first}</b>", *rest))


def layout(x: str, y: str, **more: Any) -> dict[str, Any]:
    """What all plots have in common; the y axis is named above itself, where a phone has room for it."""
    small = {"color": "var(--muted)", "size": 13}
    axis = {"gridcolor": "var(--grid)", "zerolinecolor": "var(--grid)", "linecolor": "var(--line)", "automargin": True,
            "tickfont": {"color": "var(--muted)"}}  # fmt: skip
    axis_y = {**axis, **more.pop("yaxis", {})}
    axis_x = {**axis, "title": {"text": x, "font": small, "standoff": 10}, **more.pop("xaxis", {})}
    said = {"text": y, "xref": "paper", "yref": "paper", "x": 0, "y": 1, "xanchor": "left", "yanchor": "bottom",
            "yshift": 8, "showarrow": False, "align": "left", "font": small}  # fmt: skip
    return {
        "template": "none", "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "showlegend": False,
        "margin": {"l": 8, "r": 16, "t": 36, "b": 8}, "hovermode": "closest", "uirevision": "kept",
        "font": {"family": FONT, "size": 13, "color": "var(--ink)"}, "xaxis": axis_x, "yaxis": axis_y,
        "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "var(--muted)", "activecolor": "var(--ink)"},
        "hoverlabel": {"bgcolor": "var(--surface)", "bordercolor": "var(--muted)", "align": "left",
                       "font": {"family": FONT, "size": 13, "color": "var(--ink)"}},
        "annotations": [said, *more.pop("annotations", [])], **more,
    }  # fmt: skip


def log_ticks(values: Iterable[float], unit: str = "") -> dict[str, Any]:
    """A log axis over these, with margins, labelled at 1, 2 and 5 of each decade, or more often if it is short."""
    shown = [value for value in values if value > 0] or [1.0]
    low, high = min(shown) / 1.25, max(shown) * 1.25
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks: list[float] = []
    for digits in ((1, 2, 5), (1, 2, 3, 4, 5, 6, 8)):
        if len(ticks) < 4:
            every = [digit * 10.0**exponent for exponent in exponents for digit in digits]
            ticks = [tick for tick in every if low <= tick <= high]
    return {"type": "log", "range": [math.log10(low), math.log10(high)], "tickvals": ticks,
            "ticktext": [f"{tick:,g}{unit}" for tick in ticks]}  # fmt: skip


def variant_chips(report: Report, ids: Iterable[str]) -> list[Chip]:
    names = short_names({v.id: v.name for v in report.variants})
    used = set(ids)
    return [Chip(f"v{k}", names[v.id], series(k)) for k, v in enumerate(report.variants) if v.id in used]


def runtime_chips(names: Iterable[str]) -> list[Chip]:
    return [Chip(f"r-{name}", name, sign=SYMBOLS[name][1]) for name in dict.fromkeys(names)]


def number_of(report: Report, variant_id: str) -> int:
    """The series that a variant has in every plot."""
    return next((k for k, v in enumerate(report.variants) if v.id == variant_id), 0)


def carried(outcome: Outcome) -> float:
    """The height of a point: its SLO rate, or what a closed loop got where nobody looked for that."""
    return outcome.max_rate_rps if outcome.slo_rate_rps is None else outcome.slo_rate_rps


def pareto_chart(report: Report) -> Chart:
    """Every configuration that has a p99: how much it carries against how long its users wait."""
    outcomes = report.study.outcomes()
    shown = [o for o in outcomes if math.isfinite(o.latency_p99_s)]
    unbeaten = {o.configuration.key for o in pareto(outcomes)}
    sizes = _sizes(shown)
    figure = go.Figure()
    line = front([(o.latency_p99_s * 1e3, carried(o)) for o in shown])
    figure.add_scatter(x=[x for x, _ in line], y=[y for _, y in line], mode="lines", name="front", hoverinfo="skip",
                       line={"color": "var(--muted)", "width": 1.5, "dash": "dot", "shape": "hv"})  # fmt: skip
    for key in dict.fromkeys((o.configuration.variant_id, o.configuration.runtime.name) for o in shown):
        group = [o for o in shown if (o.configuration.variant_id, o.configuration.runtime.name) == key]
        figure.add_trace(_points(report, group, sizes, unbeaten))
    bound = report.slo.latency_p99_ms
    xs = [o.latency_p99_s * 1e3 for o in shown]
    near = bool(xs) and bound <= 4 * max(xs)
    rates = "SLO rate" if any(o.slo_rate_rps is not None for o in outcomes) else "Max rate"
    figure.update_layout(layout(
        f"p99 at {count(report.reference_rps or 0)} req/s, ms", f"{rates}, req/s",
        xaxis=log_ticks([*xs, bound] if near else xs), yaxis={"rangemode": "tozero", "tickformat": ",.0f"},
        annotations=[*_named(report, shown), *([_bound(bound)] if near else [])],
        shapes=[_bound_line(bound)] if near else [],
    ))  # fmt: skip
    chips = (
        ("Variant", variant_chips(report, (o.configuration.variant_id for o in shown))),
        ("Runtime", runtime_chips(o.configuration.runtime.name for o in shown)),
    )
    label = f"{len(shown)} configurations by p99 and rate; the table below says the same"
    return Chart("pareto", label, figure, chips)


def _sizes(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Diameters: the dearer an answer, the larger; all alike where costs are not known."""
    costs = [math.log(o.core_s_per_million) for o in outcomes if o.core_s_per_million]
    low, high = min(costs, default=0.0), max(costs, default=0.0)

    def size(o: Outcome) -> float:
        if not o.core_s_per_million or high <= low:
            return 0.6 * _LARGEST
        return _SMALLEST + (_LARGEST - _SMALLEST) * (math.log(o.core_s_per_million) - low) / (high - low)

    return {o.configuration.key: size(o) for o in outcomes}


def _points(report: Report, group: Sequence[Outcome], sizes: Mapping[str, float], unbeaten: set[str]) -> go.Scatter:
    """One variant on one runtime; hollow where only the closed loop's rate is known, ringed where nothing beats it."""
    first = group[0].configuration
    number = number_of(report, first.variant_id)
    symbol = SYMBOLS[first.runtime.name][0]
    return go.Scatter(
        x=[o.latency_p99_s * 1e3 for o in group], y=[carried(o) for o in group], mode="markers",
        name=plain(f"{first.variant_name} on {first.runtime.name}"), hoverinfo="text",
        hovertext=[_told(o, o.configuration.key in unbeaten) for o in group],
        meta={"keys": [f"v{number}", f"r-{first.runtime.name}"]},
        marker={
            "color": series(number), "size": [sizes[o.configuration.key] for o in group], "opacity": 0.92,
            "symbol": [symbol if o.slo_rate_rps is not None else f"{symbol}-open" for o in group],
            "line": {"color": ["var(--ink)" if o.configuration.key in unbeaten else "var(--surface)" for o in group],
                     "width": [1.8 if o.configuration.key in unbeaten else 1.0 for o in group]},
        },
    )  # fmt: skip


def _told(o: Outcome, unbeaten: bool) -> str:
    scatter = f" ({', '.join(count(round(r)) for r in o.slo_rates_rps)})" if len(o.slo_rates_rps) > 1 else ""
    c = o.configuration
    replicas = f", {c.num_replicas} replicas" if c.num_replicas > 1 else ""
    return hover(
        c.variant_name, f"{c.runtime}, max_batch_size {c.max_batch_size}", f"queue {c.max_queued_requests}{replicas}",
        f"SLO rate {rate(o.slo_rate_rps)}{scatter}", f"max rate {rate(o.max_rate_rps)}",
        f"p50 {ms(o.latency_p50_s)}, p99 {ms(o.latency_p99_s)}",
        f"{o.metric} {decimals(o.accuracy, higher_is_better=o.higher_is_better)}",
        f"{cost(o.core_s_per_million)} per million answers", f"memory {mib(o.memory_bytes)}",
        f"{o.trials} trial{'s' if o.trials > 1 else ''}{', unbeaten' if unbeaten else ''}",
    )  # fmt: skip


def _named(report: Report, shown: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Arrows to the chosen one and to the baseline."""
    points = (("chosen", report.chosen, -46), ("baseline", report.baseline, -38))
    return [
        {"x": math.log10(o.latency_p99_s * 1e3), "y": carried(o), "text": f"<b>{name}</b>", "ax": 0, "ay": ay,
         "showarrow": True, "arrowcolor": "var(--ink)", "arrowwidth": 1.2, "standoff": 11,
         "font": {"color": "var(--ink)"}, "bgcolor": "var(--surface)", "bordercolor": "var(--line)", "borderpad": 3}
        for name, o, ay in points
        if o is not None and o in shown
    ]  # fmt: skip


def _bound_line(bound_ms: float) -> dict[str, Any]:
    """Up the plot, at the SLO's bound."""
    return {"type": "line", "xref": "x", "yref": "paper", "x0": bound_ms, "x1": bound_ms, "y0": 0, "y1": 1,
            "line": {"color": "var(--bad)", "width": 1.5, "dash": "dash"}}  # fmt: skip


def _bound(bound_ms: float) -> dict[str, Any]:
    return {"text": f"SLO {bound_ms:g} ms", "showarrow": False, "font": {"color": "var(--bad)"},
            "x": math.log10(bound_ms), "y": 1, "yref": "paper", "xanchor": "right", "yanchor": "top",
            "xshift": -4}  # fmt: skip


def batch_chart(report: Report) -> Chart:
    """Samples per second of the graph alone, by batch size."""
    figure = go.Figure()
    for curve in report.curves:
        figure.add_trace(_curve(report, curve))
    for curve in report.curves:
        figure.add_trace(_knee(report, curve))
    sizes = sorted({point.batch_size for curve in report.curves for point in curve.points})
    figure.update_layout(layout(
        "batch size", "Samples per second, graph alone", yaxis={"rangemode": "tozero", "tickformat": ",.0f"},
        xaxis={"type": "log", "tickvals": sizes, "ticktext": list(map(str, sizes))},
    ))  # fmt: skip
    chips = (
        ("Variant", variant_chips(report, (c.variant_id for c in report.curves))),
        ("Runtime", runtime_chips(c.runtime.name for c in report.curves)),
    )
    return Chart("batch", f"{len(report.curves)} curves of throughput by batch size", figure, chips)


def _keys(report: Report, curve: Curve) -> dict[str, Any]:
    return {"keys": [f"v{number_of(report, curve.variant_id)}", f"r-{curve.runtime.name}"]}


def _curve(report: Report, curve: Curve) -> go.Scatter:
    number = number_of(report, curve.variant_id)
    name = f"{report.variants[number].name} on {curve.runtime}"
    return go.Scatter(
        x=[p.batch_size for p in curve.points], y=[p.throughput_rps for p in curve.points], mode="lines+markers",
        name=plain(name), hoverinfo="text", meta=_keys(report, curve),
        hovertext=[
            hover(name, f"batch {p.batch_size}: {p.throughput_rps:,.0f} samples/s",
                  f"p50 {ms(p.latency_p50_s)} [{ms(p.latency_p50_interval_s[0])}, {ms(p.latency_p50_interval_s[1])}]",
                  f"p99 {ms(p.latency_p99_s)}, {p.repeats} repeats")
            for p in curve.points
        ],
        line={"color": series(number), "width": 2, "dash": DASHES[curve.runtime.name]},
        marker={"size": 7, "symbol": SYMBOLS[curve.runtime.name][0], "color": series(number)},
    )  # fmt: skip


def _knee(report: Report, curve: Curve) -> go.Scatter:
    number, knee = number_of(report, curve.variant_id), curve.knee
    name = f"{report.variants[number].name} on {curve.runtime}"
    return go.Scatter(
        x=[knee.batch_size], y=[knee.throughput_rps], mode="markers", name=plain(f"knee of {name}"),
        hoverinfo="text", meta=_keys(report, curve),
        hovertext=[hover(name, f"knee: batch {knee.batch_size}, {knee.throughput_rps:,.0f} samples/s",
                         f"p50 {ms(knee.latency_p50_s)}", "larger batches pay little from here on")],
        marker={"size": 16, "symbol": "circle-open", "color": "var(--ink)", "line": {"width": 2}},
    )  # fmt: skip
