"""A report survives its JSON, and what is written is whole."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from tests.unit.tune_spaces.report import made
from tune_spaces.report.report import Report, read, write


@pytest.mark.parametrize("compared", [True, False])
def test_as_dict_is_json_without_infinities(compared: bool) -> None:
    report = made.report(compared=compared)
    text = json.dumps(report.as_dict(), allow_nan=False)
    assert json.loads(text) == report.as_dict(), "no key or value changes on the way"


@pytest.mark.parametrize("compared", [True, False])
def test_a_report_is_read_back_as_it_was(compared: bool, tmp_path: Path) -> None:
    report = made.report(compared=compared, notes=["one"])
    write(report, tmp_path)
    again = read(tmp_path / "report.json")
    assert again.as_dict() == report.as_dict()
    assert again.chosen == report.chosen
    assert again.curves == report.curves
    assert again.plan == report.plan
    assert list(again.variants) == list(report.variants)
    write(again, tmp_path / "again")
    for name in ("report.html", "report.md", "report.json"):
        assert (tmp_path / "again" / name).read_text() == (tmp_path / name).read_text(), name


def test_figures_by_seed_keep_their_numbers(tmp_path: Path) -> None:
    write(made.report(), tmp_path)
    again = read(tmp_path / "report.json")
    assert again.comparison is not None
    assert list(again.comparison.after.slo_rate_per_seed["50ms"]) == [1, 2, 3]
    assert again.comparison.protocol == made.comparison().protocol


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"report_version": 1}', '{"report_version": 2}'])
def test_what_is_no_report_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"is no report\.json of this version"):
        read(path)


def test_all_three_files_name_the_choice_and_the_page_is_returned(tmp_path: Path) -> None:
    path = write(made.report(), tmp_path / "new")
    assert path == tmp_path / "new" / "report.html"
    for name in ("report.html", "report.md", "report.json"):
        assert "cnn_fashion_mnist/int8" in (tmp_path / "new" / name).read_text()


def test_chosen_and_baseline_are_of_the_study() -> None:
    report: Report = made.report()
    assert report.chosen is not None
    assert report.chosen.trials == 3, "one by profiles, two confirmations"
    assert report.baseline is not None
    assert report.baseline.configuration.variant_name.endswith("fp32-torch")
