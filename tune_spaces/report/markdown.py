"""Report -> Markdown with the same facts as the page: for a terminal, a pull request, an archive."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from tune_spaces.report.answer import answer
from tune_spaces.report.batch import knees
from tune_spaces.report.before_after import BEFORE_AFTER_HEADERS, before_after_rows, sides
from tune_spaces.report.lineage import lines, tree
from tune_spaces.report.report import Report
from tune_spaces.report.setting import machine_rows, protocol_rows, slo_rows, stage_rows
from tune_spaces.report.study_rows import (
    OUTCOME_HEADERS,
    PREDICTION_HEADERS,
    TRIAL_HEADERS,
    outcome_rows,
    prediction_rows,
    trial_rows,
)
from tune_spaces.report.summary import PROFILE_HEADERS, VARIANT_HEADERS, profile_rows, variant_rows
from tune_spaces.report.words import VERDICTS, passes_text, sentence

_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", "\n": " ", "\r": " "})
_MARKS = re.compile(r"[\\`*|~]|(?<!\w)_|_(?!\w)|\](?=[(:\[])")
"""What Markdown takes for markup; an underscore inside a word and a bracket that opens no link are read as they are."""


def text(words: str) -> str:
    """As it stands: what a model or an error is called is neither Markdown nor HTML."""
    return _MARKS.sub(r"\\\g<0>", words).translate(_ENTITIES)


def code(command: str) -> str:
    """A code block, fenced by more backticks than it holds."""
    fence = "```"
    while fence in command:
        fence += "`"
    return f"{fence}console\n{command}\n{fence}"


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines_ = ["| " + " | ".join(map(text, headers)) + " |", "|" + " --- |" * len(headers)]
    lines_ += ["| " + " | ".join(map(text, row)) + " |" for row in rows]
    return "\n".join(lines_)


def markdown(report: Report) -> str:
    """The whole report."""
    parts = [f"# {text(report.run_name)}", *_answer(report), *_search(report), *_lineage(report), *_setting(report)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _bullets(items: Iterable[str]) -> str:
    return "\n".join(f"- {text(item)}" for item in items)


def _answer(report: Report) -> list[str]:
    found, (before, after) = answer(report), sides(report)
    return [
        "## Are we meeting the SLO?",
        f"**{text(found.sentence)}**",
        table(("promise", "measured", ""), [(c.promise, c.measured, VERDICTS[c.verdict]) for c in found.checks]),
        table(BEFORE_AFTER_HEADERS, before_after_rows(report)),
        _bullets((f"Before: {before}.", f"After: {after}.")),
        "### What do these figures not say?" if found.caveats else "",
        _bullets(found.caveats),
    ]


def _search(report: Report) -> list[str]:
    profiles = [profile for curve in report.curves for profile in curve.points]
    predicted = prediction_rows(report.plan.predicted, report.plan.measured)
    return [
        "## Which configurations are worth having?",
        f"{len(report.study.outcomes())} configurations were measured live.",
        table(OUTCOME_HEADERS, outcome_rows(report)),
        "## How large should a batch be?",
        table(PROFILE_HEADERS, profile_rows(profiles, report.variants)),
        _bullets(knees(report)),
        "## How was it found?",
        text(sentence(report.plan.made_by)),
        table(TRIAL_HEADERS, trial_rows(report.study)),
        "### Did the prediction hold?" if predicted else "",
        table(PREDICTION_HEADERS, predicted) if predicted else "",
    ]


def _lineage(report: Report) -> list[str]:
    drawn = "\n".join(f"{branch}{v.name}  ({passes_text(v)})" for branch, v in lines(tree(report.variants)))
    return [
        "## What did compression cost in accuracy?",
        code(drawn).replace("console", "text", 1),
        table(VARIANT_HEADERS, variant_rows(report.variants, report.slo.accuracy)),
        "### What was left out, and why?" if report.left_out else "",
        table(("what", "why"), report.left_out) if report.left_out else "",
    ]


def _setting(report: Report) -> list[str]:
    return [
        "## What was measured, and on which machine?",
        table(("SLO", ""), slo_rows(report)),
        table(("protocol", ""), protocol_rows(report)),
        table(("machine", ""), machine_rows(report)),
        "## How do I repeat it?",
        *map(code, report.commands),
        table(("file", ""), list(report.files.items())) if report.files else "",
        table(("stage", "took"), stage_rows(report)),
    ]
