"""Report -> one HTML page that needs nothing else: plotly's script, styles and figures travel inside it.

A content security policy forbids every request, and every script but the two whose hashes it names: what a variant or
an error is called can neither fetch nor run anything, even were it not escaped.
"""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

from plotly.offline import get_plotlyjs

from tune_spaces.report.lineage_section import lineage_section
from tune_spaces.report.markup import escape, script_json
from tune_spaces.report.plots import Chart
from tune_spaces.report.report import Report
from tune_spaces.report.script import SCRIPT
from tune_spaces.report.sections import (
    Section,
    answer_section,
    batch_section,
    chips,
    latency_section,
    pareto_section,
    repeat_section,
    search_section,
    setting_section,
)
from tune_spaces.report.style import css

_LOGO = (
    '<svg viewBox="0 0 24 24" fill="none" stroke="currentColor" stroke-width="2.4" stroke-linecap="round" '
    'aria-hidden="true"><path d="M3 5h18M3 5v14M21 5v14M8 5v6h8V5"/><path d="M6 16c2-2 4 2 6 0s4 2 6 0M6 20c2-2 4 2 6 0'
    's4 2 6 0" stroke-width="1.8"/></svg>'
)


def page(report: Report) -> str:
    """The whole file."""
    sections = _sections(report)
    figures = {s.chart.name: _figure(s.chart) for s in sections if s.chart is not None}
    plotly = get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")  # as the browser reads it before it hashes
    policy = (
        f"default-src 'none'; script-src {_hash(plotly)} {_hash(SCRIPT)}; style-src 'unsafe-inline'; "
        "img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    links = "".join(f'<a href="#{s.name}">{escape(s.short)}</a>' for s in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(report.run_name)}: are we meeting the SLO?</title>
<style>{css()}</style>
</head>
<body>
<a class="skip" href="#main">Skip to the answer</a>
<div class="bar"><div class="wide"><span class="brand">{_LOGO}Sluice</span><nav aria-label="Sections">{links}</nav>
<button type="button" id="theme" hidden>Dark</button></div></div>
<main id="main" class="wide">
<h1>{escape(report.run_name)}</h1>
<p class="when">{escape(_when(report))}</p>
{"".join(_section(s) for s in sections)}
</main>
<footer class="wide">Made by Sluice. This file is complete: it asks nothing of any network.</footer>
<script type="application/json" id="figures">{script_json(figures)}</script>
<script>{plotly}</script>
<script>{SCRIPT}</script>
</body>
</html>
"""


def _sections(report: Report) -> list[Section]:
    made = (
        answer_section(report), pareto_section(report), latency_section(report), batch_section(report),
        lineage_section(report), search_section(report), setting_section(report), repeat_section(report),
    )  # fmt: skip
    return [section for section in made if section is not None]


def _section(section: Section) -> str:
    chart = "" if section.chart is None else _chart(section.chart)
    title = escape(section.title)
    return f'<section id="{section.name}"><h2>{title}</h2>{section.inside}{chart}{section.below}</section>\n'


def _chart(chart: Chart) -> str:
    return (
        f'<figure>{chips(chart)}<div class="chart{" low" if chart.low else ""}" id="chart-{chart.name}" role="img" '
        f'aria-label="{escape(chart.label)}"></div><noscript>The plot needs JavaScript; the tables do not.</noscript>'
        "</figure>"
    )


def _figure(chart: Chart) -> dict[str, Any]:
    drawn: dict[str, Any] = json.loads(chart.figure.to_json())
    return drawn


def _hash(script: str) -> str:
    """As a content security policy names an inline script (CSP Level 3, section 2.3.1)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _when(report: Report) -> str:
    """When, on what: what a reader looks for first."""
    header = report.study.header
    hardware = header.hardware
    cores = hardware.get("cores_usable", hardware.get("cores"))
    parts = [header.created_at.replace("T", " ")[:16], str(hardware.get("cpu", "")), f"{cores} cores" if cores else ""]
    return " · ".join(part for part in parts if part)
