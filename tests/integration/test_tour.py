"""docs/tour.md line by line: families are trained, served and asked, and their answers have the form that is shown."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.integration.pages import ROOT, blocks, lines_of, terminal

pytestmark = [pytest.mark.ray, pytest.mark.tour, pytest.mark.timeout(900)]
CUT = "..."
VERSION = re.compile(r"[0-9a-f]{16}")


def shown(text: str) -> Any:
    """An answer as the page has it, with CUT where it is cut short."""
    return orjson.loads(re.sub(r"(?<=[\[, ])\.\.\.(?=[],])", f'"{CUT}"', text))


def assert_alike(page: Any, answer: Any, where: str = "") -> None:
    """The same fields, names, datatypes and shapes; numbers of a tensor may be others, of the same kind and count."""
    assert type(page) is type(answer), f"{where}: {page!r}, {answer!r}"
    if isinstance(page, dict):
        assert list(page) == list(answer), where
        for key, value in page.items():
            assert_alike(value, answer[key], f"{where}.{key}")
    elif where.endswith(".shape") or (isinstance(page, str) and not VERSION.fullmatch(page)):
        assert page == answer, where
    elif isinstance(page, list):
        kept = [each for each in page if each != CUT]
        assert len(kept) < len(answer) if len(kept) < len(page) else len(kept) == len(answer), where
        for number, each in enumerate(kept):
            assert_alike(each, answer[number], f"{where}[{number}]")


def test_every_line_works_and_answers_as_is_shown(tmp_path: Path) -> None:
    answers: list[str] = []
    compared = 0
    with terminal(tmp_path) as reader:
        for kind, text in blocks(ROOT / "docs" / "tour.md", "console", "text"):
            if kind == "console":
                answers = [reader.run(line) for line in lines_of(kind, text)]
            else:
                assert_alike(shown(text), orjson.loads(answers[-1]))
                compared += 1
    assert compared == 4
