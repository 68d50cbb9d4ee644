"""docs/decisions: every dependency has its one short file, and the index knows every file."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DECISIONS = ROOT / "docs" / "decisions"
DEPENDENCY_FILES = sorted(DECISIONS.glob("dependency-*.md"))


def names_in(path: Path) -> set[str]:
    """Distributions that a file's title names."""
    title = path.read_text().splitlines()[0].removeprefix("# ")
    words = re.sub(r"\[[^\]]*\]", "", title).replace(",", " ").split()
    return set(words) - {"and", "the", "stubs"}


def declared() -> list[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = [*project["project"]["dependencies"], *project["build-system"]["requires"]]
    for group in project["project"]["optional-dependencies"].values():
        wanted += group
    return [re.split(r"[\[<>=~!; ]", name)[0] for name in wanted]


@pytest.mark.parametrize("dependency", declared())
def test_every_dependency_is_decided_in_one_file(dependency: str) -> None:
    assert len([path for path in DEPENDENCY_FILES if dependency in names_in(path)]) == 1


@pytest.mark.parametrize("path", DEPENDENCY_FILES, ids=lambda path: path.name)
def test_a_choice_of_dependency_is_short_and_says_what_why_and_what_not(path: Path) -> None:
    text = path.read_text()
    assert 3 <= len(text.splitlines()) <= 8
    for part in ("\nDecision: ", "\nWhy: ", "\nRejected: "):
        assert part in text


def test_no_file_speaks_of_a_dependency_that_is_gone() -> None:
    elsewhere = set((ROOT / "tests/conformance/requirements-tritonclient.txt").read_text().split())
    known = set(declared()) | {name.split("[")[0] for name in elsewhere}
    for path in DEPENDENCY_FILES:
        assert names_in(path) <= known, path.name


def test_the_index_knows_every_decision() -> None:
    links = re.findall(r"\]\(([\w.-]+\.md)\)", (DECISIONS / "README.md").read_text())
    assert sorted(links) == sorted(path.name for path in DECISIONS.glob("*.md") if path.name != "README.md")
