"""Study -> how the search went: each trial's worth in order, and the best that kept the SLO until then."""

from __future__ import annotations

from collections.abc import Mapping

import plotly.graph_objects as go

from tune_spaces.report.plots import Chart, Chip, hover, layout
from tune_spaces.report.report import Report
from tune_spaces.report.study_rows import ORIGINS, Step, objective_axis, steps
from tune_spaces.report.words import ms, rate

_MARKERS: Mapping[str, tuple[str, str, str]] = {
    "baseline": ("square", "■", "var(--c1)"), "profiles": ("diamond", "◆", "var(--c2)"),
    "optuna": ("circle", "●", "var(--c0)"), "confirm": ("triangle-up", "▲", "var(--c3)"),
    "grid": ("pentagon", "⬟", "var(--c6)"),
}  # fmt: skip
"""By origin: (plotly's name, as text, colour)"""


def search_chart(report: Report) -> Chart:
    """Trials without the figure that counts are crosses at the foot, whatever the scale."""
    way = steps(report.study)
    figure = go.Figure()
    led = [step for step in way if step.best is not None]
    figure.add_scatter(
        x=[step.trial.number for step in led], y=[step.best for step in led], mode="lines", name="best so far",
        hoverinfo="skip", line={"shape": "hv", "width": 2, "color": "var(--muted)"},
    )  # fmt: skip
    origins = list(dict.fromkeys(step.trial.origin for step in way))
    for origin in origins:
        figure.add_trace(_points(origin, [s for s in way if s.trial.origin == origin and s.value is not None]))
    failed = [step for step in way if step.value is None]
    figure.add_scatter(
        x=[step.trial.number for step in failed], y=[0.03] * len(failed), yaxis="y2", mode="markers", name="failed",
        hoverinfo="text", hovertext=[_told(step) for step in failed],
        marker={"symbol": "x", "size": 10, "color": "var(--bad)"},
    )  # fmt: skip
    figure.update_layout(layout(
        "trial", objective_axis(report.slo), yaxis={"rangemode": "tozero", "tickformat": ",.4~g"},
        xaxis={
            "range": [0.3, len(way) + 0.7], "tickformat": "d", "tick0": 0, "dtick": max(1, len(way) // 12),
            "showgrid": False,
        },
        yaxis2={"overlaying": "y", "range": [0, 1], "visible": False, "fixedrange": True},
    ))  # fmt: skip
    chips = [Chip(origin, ORIGINS[origin], _MARKERS[origin][2], _MARKERS[origin][1]) for origin in origins]
    if failed:
        chips.append(Chip("", "failed, or not known", "var(--bad)", "✕"))
    return Chart("search", f"{len(way)} trials in order", figure, (("Asked for by", chips),), low=True)


def _points(origin: str, group: list[Step]) -> go.Scatter:
    symbol, _, colour = _MARKERS[origin]
    return go.Scatter(
        x=[step.trial.number for step in group], y=[step.value for step in group], mode="markers", name=ORIGINS[origin],
        hoverinfo="text", hovertext=[_told(step) for step in group], meta={"keys": [origin]},
        marker={"symbol": symbol, "size": 11, "color": colour,
                "line": {"width": [2 if step.improved else 1 for step in group],
                         "color": ["var(--ink)" if step.improved else "var(--surface)" for step in group]}},
    )  # fmt: skip


def _told(step: Step) -> str:
    trial, c, figures = step.trial, step.trial.configuration, step.trial.figures
    head = (f"trial {trial.number}: {c.variant_name}", f"{c.runtime}, max_batch_size {c.max_batch_size}",
            f"queue {c.max_queued_requests}, asked for by {ORIGINS[trial.origin]}")  # fmt: skip
    if figures is None:
        return hover(*head, f"failed: {(trial.error or '')[:120]}")
    improved = ("best so far",) if step.improved else ()
    return hover(*head, f"SLO rate {rate(figures.slo_rate_rps)}", f"p99 {ms(figures.latency_p99_s)}", *improved)
