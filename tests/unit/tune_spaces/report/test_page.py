"""The page as text: nothing that comes in can become markup, nothing can be fetched, colours can be told apart."""

from __future__ import annotations

import itertools
import json
import re
from html.parser import HTMLParser

import pytest

from tests.unit.tune_spaces.report import made
from tune_spaces.report.lineage import lines, tree
from tune_spaces.report.markup import script_json, table
from tune_spaces.report.page import page
from tune_spaces.report.plots import batch_chart, pareto_chart
from tune_spaces.report.style import DARK, LIGHT, SERIES, css

HOSTILE = '</script><img src=x onerror="alert(1)"><b>%{x}'
QUESTIONS = (
    "Are we meeting the SLO?", "Which configurations are worth having?", "How long do users wait?",
    "How large should a batch be?", "What did compression cost in accuracy?", "How was it found?",
    "What was measured, and on which machine?", "How do I repeat it?",
)  # fmt: skip


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text of each kind of element."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self._open = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._open = tag

    def handle_data(self, data: str) -> None:
        self.text.setdefault(self._open, []).append(data)


@pytest.fixture(scope="module")
def hostile() -> str:
    return page(
        made.report(
            folder=HOSTILE, error=HOSTILE, run_name=HOSTILE, commands=[HOSTILE], notes=[HOSTILE],
            files={HOSTILE: HOSTILE}, left_out=[(HOSTILE, HOSTILE)], stage_seconds={HOSTILE: 1.0},
        )
    )  # fmt: skip


def test_every_section_is_titled_by_its_question() -> None:
    elements = Elements(page(made.report()))
    assert tuple(elements.text["h2"]) == QUESTIONS
    assert elements.text["h1"][0] == "demo-20261201"


def test_nothing_that_comes_in_becomes_an_element(hostile: str) -> None:
    elements = Elements(hostile)
    assert not [attributes for tag, attributes in elements.found if tag == "img"]
    assert sum(tag == "script" for tag, _ in elements.found) == 3
    assert not [name for _, attributes in elements.found for name in attributes if name.startswith("on")]
    assert hostile.count("&lt;/script&gt;&lt;img") > 20, "the names are there, as text"


def test_figures_survive_hostile_names_and_read_none_of_them_as_markup(hostile: str) -> None:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', hostile, re.DOTALL)
    assert found
    assert "<" not in found[1]
    figures = json.loads(found[1])
    assert set(figures) == {"pareto", "latency", "batch", "search"}
    hovers = [
        text for figure in figures.values() for trace in figure["data"] for text in trace.get("hovertext", [])
    ]
    assert any("&lt;img" in text for text in hovers)
    for text in hovers:
        assert set(re.findall(r"<[^>]*>", text)) <= {"<b>", "</b>", "<br>"}
    assert not [trace for figure in figures.values() for trace in figure["data"] if "hovertemplate" in trace]


def test_the_policy_forbids_every_request_and_every_other_script() -> None:
    metas = [attributes for tag, attributes in Elements(page(made.report())).found if tag == "meta"]
    policy = next(m["content"] for m in metas if m.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    rules = {name: value for name, _, value in (rule.strip().partition(" ") for rule in policy.split(";"))}
    assert rules["default-src"] == "'none'"
    assert re.fullmatch(r"('sha256-[A-Za-z0-9+/=]+' ?){2}", rules["script-src"])


def test_nothing_is_linked_from_elsewhere() -> None:
    for tag, attributes in Elements(page(made.report())).found:
        for name in ("src", "href", "srcset", "data", "action"):
            assert (attributes.get(name) or "#").startswith("#"), (tag, attributes)


@pytest.mark.parametrize("compared", [True, False])
def test_a_plot_has_what_was_measured(compared: bool) -> None:
    report = made.report(compared=compared)
    drawn = json.loads(pareto_chart(report).figure.to_json())
    points = [x for trace in drawn["data"] if trace["mode"] == "markers" for x in trace["x"]]
    assert len(points) == len(report.study.outcomes())
    assert [note["text"] for note in drawn["layout"]["annotations"]][1:3] == ["<b>chosen</b>", "<b>baseline</b>"]
    curves = json.loads(batch_chart(report).figure.to_json())["data"]
    assert sum(trace["mode"] == "lines+markers" for trace in curves) == len(report.curves)
    knees = [trace["x"] for trace in curves if trace["mode"] == "markers"]
    assert knees == [[curve.knee.batch_size] for curve in report.curves]


def test_what_has_no_place_in_the_plot_is_counted_beside_it() -> None:
    report = made.report(compared=False)
    changes: dict[int, dict[str, None]] = {17: {"latency_p99_s": None}, 16: {"slo_rate_rps": None}}
    trials = tuple(
        trial.model_copy(update={"figures": trial.figures.model_copy(update=changes.get(trial.number, {}))})
        if trial.figures is not None
        else trial
        for trial in report.study.trials
    )
    changed = made.report(compared=False, study=type(report.study)(report.study.header, trials))
    drawn = json.loads(pareto_chart(changed).figure.to_json())["data"]
    assert sum(len(trace["x"]) for trace in drawn if trace["mode"] == "markers") == 15
    assert sum("open" in symbol for trace in drawn[1:] for symbol in trace["marker"]["symbol"]) == 1
    text = page(changed)
    assert "over 1% of the requests were refused or failed: 1." in text
    assert "since the SLO rate is not known: 1." in text


def test_a_report_with_little_in_it_is_still_a_page() -> None:
    report = made.report(compared=False, curves=[], left_out=[], files={})
    alone = tuple(trial for trial in report.study.trials if trial.origin == "confirm")[:1]
    bare = alone[0].model_copy(update={"figures": alone[0].figures.model_copy(update={  # type: ignore[union-attr]
        "latency_histogram": "", "slo_rate_rps": None, "core_s_per_million": None, "memory_bytes": None})})  # fmt: skip
    text = page(made.report(compared=False, curves=[], study=type(report.study)(report.study.header, (bare,))))
    titles = Elements(text).text["h2"]
    assert "How long do users wait?" not in titles, "no latencies were kept"
    assert "How large should a batch be?" not in titles, "nothing was profiled"
    assert "Are we meeting the SLO?" in titles


def test_lineage_is_drawn_from_the_root_down() -> None:
    drawn = [f"{branch}{v.name.rsplit('/', 1)[-1]}" for branch, v in lines(tree(list(made.variants().values())))]
    assert drawn == ["fp32-torch", "├── fp32", "│   ├── int8", "│   └── bf16", "└── pruned", "    └── pruned-int8"]


def test_a_variant_without_its_parent_is_a_root() -> None:
    made_here = made.variants()
    assert [node.variant for node in tree([made_here["int8"], made_here["pruned"]])] == [
        made_here["int8"], made_here["pruned"],
    ]  # fmt: skip


def test_text_and_json_are_escaped_at_the_edge() -> None:
    assert "<i>" not in table(("<i>",), [("<i>", "<i>")], label="<i>", kind="")
    told = script_json({"a": "</script>\u2028&"})
    assert not set("<>&\u2028") & set(told)
    assert json.loads(told) == {"a": "</script>\u2028&"}


def luminance(colour: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    r, g, b = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_and_series_stand_out_from_what_is_behind_them(theme: dict[str, str]) -> None:
    for behind in ("page", "surface", "raised"):
        for name in ("ink", "muted", "accent"):
            assert contrast(theme[name], theme[behind]) >= 4.5, (name, behind)
    for name in ("good", "bad", "unsure"):
        assert contrast(theme[name], theme[f"{name}-soft"]) >= 4.5, name
        assert contrast(theme[name], theme["surface"]) >= 4.5, name
    for number in range(SERIES):
        assert contrast(theme[f"c{number}"], theme["surface"]) >= 3.0, number


def test_both_themes_declare_the_same_colours_and_the_rules_use_no_other() -> None:
    assert set(LIGHT) == set(DARK)
    used = set(re.findall(r"var\(--([a-z0-9-]+)\)", css()))
    assert used <= {*LIGHT, "font", "mono", "swatch"}
    assert len({*LIGHT.values()} & {*DARK.values()}) == 0
    assert all(a != b for a, b in itertools.combinations([LIGHT[f"c{k}"] for k in range(SERIES)], 2))
