"""Words and rows -> HTML. Whatever comes in is escaped here, once; what these functions return is HTML already."""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from cluster.stats import Verdict
from tune_spaces.report.words import VERDICTS

_SIGNS: dict[Verdict, str] = {"holds": "✓", "fails": "✗", "unclear": "?"}
Cell = Callable[[str], str]


def escape(words: str) -> str:
    return html.escape(words, quote=True)


def badge(verdict: Verdict, words: str | None = None) -> str:
    """A verdict by sign, word and colour: never by colour alone."""
    return f'<span class="badge {verdict}"><span aria-hidden="true">{_SIGNS[verdict]}</span> ' + (
        f"{escape(words or VERDICTS[verdict])}</span>"
    )


def table(
    headers: Sequence[str], rows: Iterable[Sequence[str]], *, label: str, kind: str = "",
    marked: Callable[[Sequence[str]], bool] = lambda row: False, last: Cell = escape,
) -> str:  # fmt: skip
    """A table that scrolls by itself where it is wider than the page. `last` makes the HTML of a row's last cell."""
    head = "".join(f'<th scope="col">{_breakable(header)}</th>' for header in headers)
    body = []
    for row in rows:
        first, *middle, end = row
        cells = f'<th scope="row">{escape(first)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in middle)
        body.append(f"<tr{' class=mark' if marked(row) else ''}>{cells}<td>{last(end)}</td></tr>")
    header = f"<thead><tr>{head}</tr></thead>" if any(headers) else ""
    return (
        f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(label)}"><table class="{kind}">'
        f"{header}<tbody>{''.join(body)}</tbody></table></div>"
    )


def _breakable(header: str) -> str:
    return escape(header).replace("/", "/<wbr>")


def pairs(rows: Iterable[tuple[str, str]], *, label: str) -> str:
    """Names and what they are."""
    return f"<h3>{escape(label)}</h3>" + table(("", ""), rows, label=label, kind="words")


def bullets(items: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"


def details(summary: str, inside: str) -> str:
    return f"<details><summary>{escape(summary)}</summary>{inside}</details>"


def script_json(value: Any) -> str:
    """JSON that no parser of HTML takes for the end of its script element, nor a parser of scripts for a line's end."""
    text = json.dumps(value, allow_nan=False, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
