"""HdrHistograms before and after -> latency by percentile, on the axes of HdrHistogram's own plots: each decade to the
right is a tenth of the requests, so that the tail has as much room as the bulk (Tene, "How NOT to Measure Latency",
2013)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go
from hdrh.histogram import HdrHistogram

from cluster.load import histogram_quantiles_s, merge_histograms
from cluster.studies import Outcome
from tune_spaces.report.plots import Chart, Chip, hover, layout, log_ticks
from tune_spaces.report.report import Report
from tune_spaces.report.words import count

_STEPS_A_DECADE = 16
_FIRST = math.log10(1 / 0.9)
"""Where the plot begins, in decades: p10. What is faster than that is of no concern."""
_LABELS = (
    (10 / 9, "p10"), (2.0, "p50"), (10.0, "p90"), (100.0, "p99"), (1e3, "p99.9"), (1e4, "p99.99"), (1e5, "p99.999"),
)  # fmt: skip


@dataclass(frozen=True)
class Side:
    """One line: how long its requests took."""

    name: str
    histogram: str
    colour: str

    @property
    def requests(self) -> int:
        return int(HdrHistogram.decode(self.histogram.encode("ascii")).total_count)


def latency_sides(report: Report) -> list[Side]:
    """Those of before and after that were measured."""
    colours = {"before": "var(--c1)", "after": "var(--c0)"}
    if report.comparison is not None:
        pairs = (("before", report.comparison.before), ("after", report.comparison.after))
        found = {name: figures.latency_histograms for name, figures in pairs}
    else:
        found = {name: _histograms(report, o) for name, o in (("before", report.baseline), ("after", report.chosen))}
    merged = {name: merge_histograms(encoded) for name, encoded in found.items() if encoded}
    sides = [Side(name, histogram, colours[name]) for name, histogram in merged.items()]
    return [side for side in sides if side.requests]


def _histograms(report: Report, outcome: Outcome | None) -> list[str]:
    return [
        trial.figures.latency_histogram
        for trial in report.study.trials
        if outcome is not None and trial.figures is not None and trial.figures.latency_histogram
        if trial.configuration.key == outcome.configuration.key
    ]


def latency_chart(report: Report) -> Chart:
    """A line for each side, with the SLO's bound across; no finer percentile than there were requests for."""
    sides = latency_sides(report)
    figure = go.Figure()
    seen: list[float] = [report.slo.latency_p99_ms]
    decades = 1.0
    for side in sides:
        line, end = _line(side)
        seen += [min(line.y), max(line.y)]
        decades = max(decades, end)
        figure.add_trace(line)
    bound = report.slo.latency_p99_ms
    labels = [(at, label) for at, label in _LABELS if math.log10(at) <= decades]
    rate = report.reference_rps if report.comparison is None else report.comparison.equal_load_rate
    across = {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": bound, "y1": bound,
              "line": {"color": "var(--bad)", "width": 1.5, "dash": "dash"}}  # fmt: skip
    at_p99 = {"type": "line", "yref": "paper", "y0": 0, "y1": 1, "x0": 100, "x1": 100,
              "line": {"color": "var(--muted)", "width": 1, "dash": "dot"}}  # fmt: skip
    said: dict[str, Any] = {
        "text": f"SLO: p99 within {bound:g} ms", "xref": "paper", "x": 0, "xanchor": "left", "xshift": 4,
        "y": math.log10(bound), "yanchor": "bottom", "showarrow": False, "font": {"color": "var(--bad)"},
    }  # fmt: skip
    figure.update_layout(layout(
        "percentile of the answered requests", f"Latency at {count(round(rate or 0))} req/s, ms",
        xaxis={"type": "log", "range": [_FIRST, decades], "tickvals": [at for at, _ in labels],
               "ticktext": [label for _, label in labels]},
        yaxis=log_ticks(seen), shapes=[across, at_p99], annotations=[said],
    ))  # fmt: skip
    chips = (("", [Chip(side.name, f"{side.name}, {side.requests:,} requests", side.colour) for side in sides]),)
    return Chart("latency", "Latency by percentile, before and after", figure, chips)


def _line(side: Side) -> tuple[go.Scatter, float]:
    """(the line, the decades that it spans)"""
    decades = math.log10(side.requests)
    steps = max(2, round(decades * _STEPS_A_DECADE))
    at = [10.0 ** (_FIRST + (decades - _FIRST) * k / steps) for k in range(steps + 1)]
    at = sorted({*at, *(tick for tick, _ in _LABELS if 10.0**_FIRST <= tick <= side.requests)})
    values = histogram_quantiles_s(side.histogram, [1.0 - 1.0 / x for x in at])
    latencies = [values[1.0 - 1.0 / x] * 1e3 for x in at]
    line = go.Scatter(
        x=at, y=latencies, mode="lines", name=side.name, hoverinfo="text", meta={"keys": [side.name]},
        hovertext=[
            hover(side.name, f"p{100 * (1 - 1 / x):.5g}: {latency:,.2f} ms")
            for x, latency in zip(at, latencies, strict=True)
        ],
        line={"color": side.colour, "width": 2.5, "dash": "solid" if side.name == "after" else "dash"},
    )  # fmt: skip
    return line, decades
