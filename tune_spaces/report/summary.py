"""Variants, profiles, a whole report -> tables on the terminal, and the rows that Markdown and HTML share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.profiles import Profile
from cluster.slo import AccuracyFloor
from cluster.variants import Variant
from tune_spaces.report.answer import answer
from tune_spaces.report.before_after import BEFORE_AFTER_HEADERS, before_after_rows
from tune_spaces.report.report import Report
from tune_spaces.report.words import VERDICTS, accuracy_text, difference_text, kib, ms

VARIANT_HEADERS = ("variant", "id", "format", "size", "runtime", "accuracy [95%]", "to the trained model", "floor")
PROFILE_HEADERS = ("variant", "runtime", "batch", "p50", "p99", "samples/s")


def variant_rows(variants: Iterable[Variant], floor: AccuracyFloor | None = None) -> list[tuple[str, ...]]:
    """A row for each runtime that a variant was measured in; `floor` None: at most half a point is lost."""
    floor = floor or AccuracyFloor()
    rows: list[tuple[str, ...]] = []
    for v in variants:
        known = (v.name, v.id, v.format, kib(v))
        rows += [
            (*known, a.runtime, accuracy_text(a), difference_text(a.to_root), VERDICTS[floor.verdict(a)])
            for a in v.accuracies
        ] or [(*known, "", accuracy_text(None), "", VERDICTS[floor.verdict(None)])]
    return rows


def profile_rows(profiles: Iterable[Profile], variants: Iterable[Variant]) -> list[tuple[str, ...]]:
    """(variant, runtime, batch, p50, p99, samples/s)"""
    names = {v.id: v.name for v in variants}
    return [
        (names.get(p.variant_id, p.variant_id), str(p.runtime), str(p.batch_size), ms(p.latency_p50_s),
         ms(p.latency_p99_s), f"{p.throughput_rps:,.0f}")
        for p in profiles
    ]  # fmt: skip


def table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A rich table; every column after the first is right-aligned. What stands in brackets is text, not markup."""
    made = Table(title=Text(title), title_justify="left")
    for index, header in enumerate(headers):
        made.add_column(Text(header), justify="left" if index == 0 else "right")
    for row in rows:
        made.add_row(*(Text(cell) for cell in row))
    return made


def print_tables(report: Report, console: Console) -> None:
    """Variants, before | after, and the answer in one sentence."""
    console.print(table("Variants", VARIANT_HEADERS, variant_rows(report.variants, report.slo.accuracy)))
    console.print(table("Before | after", BEFORE_AFTER_HEADERS, before_after_rows(report)))
    console.print(Text(answer(report).sentence))
