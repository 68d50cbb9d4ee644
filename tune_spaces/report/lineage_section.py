"""Variants -> the section with their tree: passes, size, accuracy in every runtime, and how far it may have fallen."""

from __future__ import annotations

import json
from collections.abc import Sequence

from cluster.stats import Verdict
from cluster.variants import Accuracy, Pass
from tune_spaces.report.lineage import Node, judged, tree
from tune_spaces.report.markup import badge, escape, table
from tune_spaces.report.report import Report
from tune_spaces.report.sections import Section
from tune_spaces.report.words import accuracy_text, difference_text, kib

Span = tuple[float, float]


def lineage_section(report: Report) -> Section:
    roots = "".join(_node(report, node, _span(report)) for node in tree(report.variants))
    known = report.trained.accuracy
    floor = None if known is None else report.slo.accuracy.allowed(known)
    strip = "" if floor is None else (
        " In each strip the grey line is the trained model, the dashed one the floor; the bar is the 95% interval of "
        "the difference on the same pictures."
    )  # fmt: skip
    left = (
        "<h3>What was left out, and why?</h3>" + table(("what", "why"), report.left_out, label="Left out", kind="words")
        if report.left_out
        else ""
    )
    inside = (
        f"<p>{_opening(known)} The floor: {escape(report.slo.accuracy.of(known))}."
        f'{strip}</p><ul class="tree">{roots}</ul>{left}'
    )
    return Section("lineage", "Accuracy", "What did compression cost in accuracy?", inside)


def _opening(known: Accuracy | None) -> str:
    if known is None or known.metric == "accuracy":
        return "Accuracy is of the full test set, in the runtime that serves it."
    differs = "" if known.higher_is_better else " A difference is a share of the trained model's error; minus is worse."
    return f"The figure is {escape(known.metric)} of the full test set, in the runtime that serves it.{differs}"


def _span(report: Report) -> Span:
    """One scale for all strips."""
    ends = [0.0]
    for variant in report.variants:
        for accuracy in variant.accuracies:
            ends.append(-(report.slo.accuracy.allowed(accuracy) or 0.0))
            ends += accuracy.to_root.interval if accuracy.to_root else ()
    margin = 0.06 * (max(ends) - min(ends)) or 0.001
    return min(ends) - margin, max(ends) + margin


def _node(report: Report, node: Node, span: Span) -> str:
    v = node.variant
    is_chosen = v.id == report.plan.variant_id
    runs = "".join(_run(report, a, verdict, span) for a, verdict in judged(v, report.slo.accuracy))
    below = "".join(_node(report, child, span) for child in node.children)
    return (
        f'<li><div class="node{" chosen" if is_chosen else ""}"><header><strong>{escape(v.name)}</strong>'
        f'{"<span class=tag>chosen</span>" if is_chosen else ""}<span class="tag">{escape(v.precision)}</span>'
        f'<span class="tag">{escape(v.format)}</span><span class="tag">{escape(kib(v))}</span>'
        f'<span class="made">{escape(_steps(v.passes))} &middot; <code>{escape(v.id)}</code></span></header>'
        f'{runs or badge("unclear", "not measured")}</div>{f"<ul>{below}</ul>" if below else ""}</li>'
    )  # fmt: skip


def _steps(passes: Sequence[Pass]) -> str:
    """prune_channels(ratio=0.3), finetune: what is nested in a parameter is left to the manifest."""
    told = []
    for step in passes:
        plain = {name: value for name, value in step.params.items() if not isinstance(value, dict | list)}
        given = ", ".join(f"{name}={json.dumps(value)}" for name, value in plain.items())
        told.append(f"{step.name}({given})" if given else step.name)
    return ", ".join(told) or "no pass"


def _run(report: Report, accuracy: Accuracy, verdict: Verdict, span: Span) -> str:
    chosen = report.slo.accuracy.allowed(accuracy)
    strip = "" if accuracy.to_root is None else _strip(accuracy.to_root.value, accuracy.to_root.interval, chosen, span)
    return (
        f'<div class="runs"><span>{escape(accuracy.runtime)}</span><span>{escape(accuracy_text(accuracy))}</span>'
        f'<span class="wide-only">{escape(difference_text(accuracy.to_root) or "the trained model itself")}</span>'
        f'<span class="wide-only">{strip}</span>{badge(verdict)}</div>'
    )


def _strip(value: float, interval: Span, floor: float | None, span: Span) -> str:
    """A small picture of the interval; the words beside it say the same."""

    def at(difference: float) -> str:
        return f"{200 * (difference - span[0]) / (span[1] - span[0]):.1f}"

    floor_line = "" if floor is None else f'<line class="floor" x1="{at(-floor)}" x2="{at(-floor)}" y1="1" y2="19"/>'
    return (
        f'<svg viewBox="0 0 200 20" preserveAspectRatio="none" aria-hidden="true">'
        f'<line class="zero" x1="{at(0)}" x2="{at(0)}" y1="1" y2="19"/>{floor_line}'
        f'<line class="whisker" x1="{at(interval[0])}" x2="{at(interval[1])}" y1="10" y2="10"/>'
        f'<circle class="dot" cx="{at(value)}" cy="10" r="3.5"/></svg>'
    )
