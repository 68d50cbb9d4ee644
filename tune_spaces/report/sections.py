"""Report -> the page's sections, each titled by the question that it answers."""

from __future__ import annotations

from dataclasses import dataclass

from tune_spaces.report.answer import answer, failing
from tune_spaces.report.batch import knees
from tune_spaces.report.before_after import BEFORE_AFTER_HEADERS, Line, before_after, sides
from tune_spaces.report.latency_plot import latency_chart, latency_sides
from tune_spaces.report.markup import badge, bullets, details, escape, pairs, table
from tune_spaces.report.plots import Chart, Chip, batch_chart, pareto_chart
from tune_spaces.report.report import Report
from tune_spaces.report.search_plot import search_chart
from tune_spaces.report.setting import machine_rows, protocol_rows, slo_rows, stage_rows
from tune_spaces.report.study_rows import (
    OBJECTIVES,
    OUTCOME_HEADERS,
    PREDICTION_HEADERS,
    TRIAL_HEADERS,
    outcome_rows,
    prediction_rows,
    trial_rows,
)
from tune_spaces.report.summary import PROFILE_HEADERS, profile_rows
from tune_spaces.report.words import VERDICTS, sentence


@dataclass(frozen=True)
class Section:
    """`name` is its anchor, `short` its word in the navigation; `inside` is HTML, and so is `below`, after the plot."""

    name: str
    short: str
    title: str
    inside: str
    chart: Chart | None = None
    below: str = ""


def answer_section(report: Report) -> Section:
    found, lines, (before, after) = answer(report), before_after(report), sides(report)
    opening, _, rest = found.sentence.partition(": ")
    checks = table(
        ("promise", "measured", ""), [(c.promise, c.measured, c.verdict) for c in found.checks],
        label="Each promise of the SLO", kind="words checks",
        last=lambda verdict: badge(next(v for v in VERDICTS if v == verdict)),
    )  # fmt: skip
    compared = table(
        BEFORE_AFTER_HEADERS, [(line.what, line.before, line.after, line.ratio) for line in lines],
        label="Before and after",
    )  # fmt: skip
    caveats = f'<aside class="aside"><h3>What do these figures not say?</h3>{bullets(found.caveats)}</aside>'
    inside = (
        f'<p class="said">{badge(found.verdict, opening)} {escape(rest)}</p>{_tiles(lines)}'
        f"<h3>Each promise</h3>{checks}<h3>Before and after</h3>"
        f'<p class="note"><b>Before:</b> {escape(before)}.<br><b>After:</b> {escape(after)}.</p>{compared}'
        f"{caveats if found.caveats else ''}"
    )
    return Section("answer", "Answer", "Are we meeting the SLO?", inside)


def _tiles(lines: list[Line]) -> str:
    """The four figures that people ask for first."""
    picked = {line.key: line for line in reversed(lines)}
    return '<div class="tiles">' + "".join(
        _tile(picked[key]) for key in ("slo_rate", "p99", "accuracy", "cost") if key in picked
    ) + "</div>"  # fmt: skip


def _tile(line: Line) -> str:
    what, figure, unit, before = line.what.partition(" [")[0], *_figure(line.after), line.before
    floor = "at least " if line.after.startswith("at least ") else ""
    if unit.startswith("["):  # an interval is too long for a tile, and stands right below
        unit, before = "", before.partition(" [")[0]
    gain = f" &middot; {escape(line.ratio)}" if line.ratio not in ("", "-") else ""
    return (
        f'<div class="tile"><div class="label">{escape(what)}</div><div class="figure">'
        f"<small>{floor}</small>{escape(figure)} <small>{escape(unit)}</small></div>"
        f'<div class="was">before: {escape(before)}{gain}</div></div>'
    )


def _figure(said: str) -> tuple[str, str]:
    """(the figure, its unit): "5.02 ms" -> 5.02 and ms; words are no figure."""
    figure, _, unit = said.removeprefix("at least ").partition(" ")
    return (figure, unit) if figure[:1].isdigit() else (said, "")


def pareto_section(report: Report) -> Section:
    outcomes = report.study.outcomes()
    failed = failing(outcomes)
    hollow = [o for o in outcomes if o.slo_rate_rps is None and o not in failed]
    told = [
        "Each mark is one configuration under load. Up is more requests within the bound, left is faster answers; the "
        "dotted line joins those that nothing measured beats in both. An outlined mark is unbeaten when accuracy and "
        "cost count too. The larger the mark, the more CPU time an answer costs."
    ]
    if failed:
        told.append(f"Only in the table, since over 1% of the requests were refused or failed: {len(failed)}.")
    if hollow:
        told.append(f"Hollow, at the closed loop's maximum, since the SLO rate is not known: {len(hollow)}.")
    rows = outcome_rows(report)
    full = table(
        OUTCOME_HEADERS, rows, label="All configurations", kind="long outcomes", marked=lambda row: "chosen" in row[-1]
    )
    return Section(
        "pareto", "Trade-offs", "Which configurations are worth having?", f"<p>{escape(' '.join(told))}</p>",
        pareto_chart(report), details(f"All {len(rows)} configurations as a table", full),
    )  # fmt: skip


def latency_section(report: Report) -> Section | None:
    """None where no side kept its latencies."""
    if not latency_sides(report):
        return None
    inside = (
        "<p>Every request counts from the moment when it was due, so a queue shows. At p99 one request in a hundred "
        "waited longer than the line says. Refused and failed requests are not in these lines: the table above counts "
        "them.</p>"
    )
    return Section("latency", "Latency", "How long do users wait?", inside, latency_chart(report))


def batch_section(report: Report) -> Section | None:
    """None where nothing was profiled."""
    if not report.curves:
        return None
    profiles = [point for curve in report.curves for point in curve.points]
    rows = table(PROFILE_HEADERS, profile_rows(profiles, report.variants), label="All profiles", kind="long")
    said = details("The knees in words", bullets(knees(report)))
    inside = (
        "<p>The graph alone in a process of its own, without HTTP around it. The ring marks the knee: where a larger "
        "batch makes everyone wait longer and gains little.</p>"
    )
    below = said + details(f"All {len(profiles)} profiles as a table", rows)
    return Section("batch", "Batching", "How large should a batch be?", inside, batch_chart(report), below)


def search_section(report: Report) -> Section:
    study, predicted = report.study, prediction_rows(report.plan.predicted, report.plan.measured)
    rows = table(TRIAL_HEADERS, trial_rows(study), label="All trials", kind="long trials")
    told = table(PREDICTION_HEADERS, predicted, label="Predicted and measured")
    guess = (
        '<h3>Did the prediction hold?</h3><p class="note">From the batch curves, before anything was deployed. It '
        f"decides what is worth measuring and promises nothing.</p>{told}"
        if predicted
        else ""
    )
    inside = (
        f"<p>{escape(sentence(report.plan.made_by))} Looked for: {escape(OBJECTIVES[report.slo.objective])}. The line "
        "is the best so far that kept the SLO; an outlined mark moved it.</p>"
    )
    below = details(f"All {len(study.trials)} trials as a table", rows) + guess
    return Section("search", "Search", "How was it found?", inside, search_chart(report), below)


def setting_section(report: Report) -> Section:
    inside = (
        f'<div class="columns"><div>{pairs(slo_rows(report), label="The SLO")}</div>'
        f"<div>{pairs(machine_rows(report), label='The machine')}</div></div>"
        f"{pairs(protocol_rows(report), label='How it was measured')}"
    )
    return Section("setting", "Machine", "What was measured, and on which machine?", inside)


def repeat_section(report: Report) -> Section:
    commands = "".join(
        f'<div class="command"><pre><code>{escape(command)}</code></pre>'
        '<button type="button" class="copy" hidden>Copy</button></div>'
        for command in report.commands
    )
    files = pairs(report.files.items(), label="Written beside this page") if report.files else ""
    inside = (
        f'{commands}<div class="columns"><div>{files}</div>'
        f"<div>{pairs(stage_rows(report), label='How long it took')}</div></div>"
    )
    return Section("repeat", "Repeat", "How do I repeat it?", inside)


def chips(chart: Chart) -> str:
    """The switches above a plot; a chip without a key is only a legend."""
    return "".join(
        f'<div class="chips" role="group" aria-label="{escape(name or "Series")}">'
        + (f"<span>{escape(name)}</span>" if name else "")
        + "".join(_chip(chart.name, chip) for chip in group)
        + "</div>"
        for name, group in chart.chips
    )


def _chip(chart: str, chip: Chip) -> str:
    if chip.sign:
        style = f' style="color:{chip.colour}"' if chip.colour else ""
        mark = f'<b aria-hidden="true"{style}>{chip.sign}</b>'
    else:
        mark = f'<i aria-hidden="true" style="--swatch:{chip.colour}"></i>'
    if not chip.key:
        return f'<span class="still">{mark}{escape(chip.label)}</span>'
    return (
        f'<button type="button" class="chip" aria-pressed="true" data-chart="{escape(chart)}" '
        f'data-key="{escape(chip.key)}">{mark}{escape(chip.label)}</button>'
    )
