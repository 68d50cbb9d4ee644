"""Results of chaos and soak runs, kept under docs/results with their date and machine."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from cluster.hardware import fingerprint

RESULTS = Path(__file__).resolve().parents[2] / "docs/results"


@pytest.fixture(scope="session")
def results() -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Rows by title; written at the end of the session, one file for each title."""
    kept: dict[str, list[dict[str, Any]]] = {}
    yield kept
    RESULTS.mkdir(parents=True, exist_ok=True)
    for title, rows in kept.items():
        stem = RESULTS / f"{date.today():%Y-%m-%d}-{title}"
        stem.with_suffix(".json").write_text(json.dumps({"hardware": fingerprint(), "rows": rows}, indent=1))
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(str(row.get(name, "")) for name in columns) + " |" for row in rows]
        facts = ", ".join(f"{key}: {value}" for key, value in fingerprint().items())
        text = f"# {title}, {date.today():%Y-%m-%d}\n\n`make {title}`\n\n{{}}\n\nMachine: {facts}\n"
        text = text.replace("{}", "\n".join(lines))
        stem.with_suffix(".md").write_text(text)


@pytest.fixture
def record(results: dict[str, list[dict[str, Any]]]) -> Callable[..., None]:
    """`record("chaos", what=..., failed=...)` adds one row."""

    def add(title: str, **row: Any) -> None:
        results.setdefault(title, []).append(row)

    return add
