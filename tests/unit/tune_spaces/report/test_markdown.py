"""Markdown holds the same facts, and names in it are neither Markdown nor HTML."""

from __future__ import annotations

import pytest

from tests.unit.tune_spaces.report import made
from tune_spaces.report.answer import answer
from tune_spaces.report.before_after import before_after_rows
from tune_spaces.report.markdown import code, markdown, table, text
from tune_spaces.report.setting import machine_rows, protocol_rows, slo_rows
from tune_spaces.report.study_rows import outcome_rows, trial_rows
from tune_spaces.report.summary import variant_rows


@pytest.mark.parametrize("compared", [True, False])
def test_every_fact_of_the_page_is_there(compared: bool) -> None:
    report = made.report(compared=compared)
    told = markdown(report)
    rows = [
        *before_after_rows(report), *outcome_rows(report), *trial_rows(report.study), *report.left_out,
        *variant_rows(report.variants, report.slo.accuracy), *slo_rows(report), *machine_rows(report),
        *protocol_rows(report),
    ]  # fmt: skip
    for row in rows:
        for cell in row:
            assert text(cell) in told, cell
    for words in (answer(report).sentence, *answer(report).caveats):
        assert text(words) in told
    for command in report.commands:
        assert command in told


def test_usual_names_are_readable_as_they_stand() -> None:
    assert text("cnn_fashion_mnist/int8 [0.91, 0.92] at 50%") == "cnn_fashion_mnist/int8 [0.91, 0.92] at 50%"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a|b", r"a\|b"),
        ("<img onerror=x>", "&lt;img onerror=x&gt;"),
        ("[click](javascript:x)", r"[click\](javascript:x)"),
        ("`code` *bold* _soft_", r"\`code\` \*bold\* \_soft\_"),
        ("two\nlines", "two lines"),
    ],
)
def test_markup_in_a_name_is_text(given: str, expected: str) -> None:
    assert text(given) == expected


def test_a_row_stays_one_row() -> None:
    made_table = table(("a", "b"), [("x|y", "1\n2")])
    assert len(made_table.splitlines()) == 3
    assert made_table.splitlines()[2] == r"| x\|y | 1 2 |"


def test_a_command_cannot_leave_its_block() -> None:
    block = code("echo ```\nrm x")
    assert block.startswith("````console\n")
    assert block.endswith("\n````")
