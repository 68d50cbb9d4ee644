"""The report in a real browser: drawn, readable, silent, and asking nothing of any network."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

from tests.unit.tune_spaces.report import made
from tests.unit.tune_spaces.report.test_page import HOSTILE, QUESTIONS
from tune_spaces.report.report import Report, write

Scheme = Literal["light", "dark"]
CHARTS = {"pareto": 16, "latency": 2, "batch": 8, "search": 19}
"""Marks or lines in each plot of the made report: configurations, sides, curves, measured trials."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.fail("the report is tested in a browser and there is none; apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(
            executable_path=path,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run"],
        )
        yield launched
        launched.close()


@dataclass
class Opened:
    """A page with everything that it asked for, complained of, or refused."""

    page: Page
    path: Path
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def count(self, selector: str) -> int:
        return self.page.locator(selector).count()

    def colour(self, selector: str, name: str) -> str:
        found: str = self.page.eval_on_selector(selector, f"element => getComputedStyle(element).{name}")
        return found

    def require_silence(self) -> None:
        assert self.requests == [self.path.as_uri()]
        assert self.complaints == []


Open = Callable[..., Opened]


@pytest.fixture
def opened(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Writes a report and opens its page, with every request but the file's own refused."""
    contexts = []

    def go(report: Report | None = None, *, scheme: Scheme = "light", width: int = 1280) -> Opened:
        path = write(report or made.report(), tmp_path)
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        found = Opened(context.new_page(), path)

        def guard(route: Route) -> None:
            route.continue_() if route.request.url == path.as_uri() else route.abort()

        context.route("**/*", guard)
        found.page.on("request", lambda request: found.requests.append(request.url))
        found.page.on("console", lambda said: found.complaints.append(f"{said.type}: {said.text}"))
        found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
        found.page.on("dialog", lambda dialog: (found.complaints.append("a dialog"), dialog.dismiss()))
        found.page.goto(path.as_uri())
        found.page.wait_for_selector("html[data-ready]")
        return found

    yield go
    for context in contexts:
        context.close()


def marks(page: Opened, chart: str) -> int:
    """What is to be seen of a plot: marks of points, or lines where it has none."""
    found = page.count(f"#chart-{chart} .scatterlayer .trace .lines path.js-line")
    if chart in ("pareto", "search"):
        found = page.count(f"#chart-{chart} .xy .scatterlayer .point")
    return found


@pytest.mark.parametrize("compared", [True, False], ids=["demo", "tune"])
def test_every_section_and_plot_is_there_and_the_page_is_silent(opened: Open, compared: bool) -> None:
    page = opened(made.report(compared=compared))
    assert page.page.locator("h2").all_inner_texts() == list(QUESTIONS)
    for chart, count in CHARTS.items():
        assert marks(page, chart) == count, chart
    expect(page.page.locator(".said")).to_contain_text("cnn_fashion_mnist/int8 on openvino")
    page.require_silence()


def test_hovering_a_configuration_tells_its_figures(opened: Open) -> None:
    page = opened()
    point = page.page.locator("#chart-pareto .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    label = page.page.locator("#chart-pareto .hoverlayer .hovertext")
    expect(label).to_be_visible()
    for words in ("fp32-torch", "SLO rate 353 req/s", "p99 4.74 ms", "accuracy 0.9161", "core-s", "310 MiB", "1 trial"):
        expect(label).to_contain_text(words)
    page.require_silence()


def test_a_chip_hides_its_series_and_brings_it_back(opened: Open) -> None:
    page = opened()
    chip = page.page.locator("button.chip[data-chart=batch]", has_text="int8")
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    expect(page.page.locator("#chart-batch .scatterlayer .trace .lines path.js-line")).to_have_count(6)
    page.page.locator("button.chip[data-chart=batch]", has_text="openvino").click()
    expect(page.page.locator("#chart-batch .scatterlayer .trace .lines path.js-line")).to_have_count(3)
    chip.click()
    expect(page.page.locator("#chart-batch .scatterlayer .trace .lines path.js-line")).to_have_count(4)
    page.require_silence()


def looks(page: Opened) -> list[str]:
    """Colours of the page, of its words, and of three parts of a plot."""
    return [
        page.colour("body", "backgroundColor"),
        page.colour("body", "color"),
        page.colour("#chart-batch .xtick text", "fill"),
        page.colour("#chart-batch .js-line", "stroke"),
        page.colour("#chart-batch .gridlayer path", "stroke"),
    ]


def test_light_and_dark_differ_in_every_part_and_the_button_goes_between_them(opened: Open) -> None:
    light, dark = opened(scheme="light"), opened(scheme="dark")
    by_day, by_night = looks(light), looks(dark)
    assert all(a != b for a, b in zip(by_day, by_night, strict=True)), (by_day, by_night)
    light.page.locator("#theme").click()
    expect(light.page.locator("#theme")).to_have_text("Light")
    light.page.wait_for_function(
        "colour => getComputedStyle(document.querySelector('#chart-batch .js-line')).stroke === colour", arg=by_night[3]
    )
    assert looks(light) == by_night
    light.page.locator("#theme").click()
    light.page.wait_for_function(
        "colour => getComputedStyle(document.querySelector('#chart-batch .js-line')).stroke === colour", arg=by_day[3]
    )
    assert looks(light) == by_day
    light.require_silence()


def test_the_page_follows_a_system_that_turns_dark(opened: Open) -> None:
    page = opened(scheme="light")
    before = looks(page)
    page.page.emulate_media(color_scheme="dark")
    page.page.wait_for_function(
        "colour => getComputedStyle(document.querySelector('#chart-batch .js-line')).stroke !== colour", arg=before[3]
    )
    assert all(a != b for a, b in zip(before, looks(page), strict=True))


OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter((element) => {
  const box = element.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !element.closest('.scroll, nav, .skip, svg, script, .hoverlayer');
}).map((element) => element.tagName + '.' + element.className)"""


@pytest.mark.parametrize("width", [390, 320])
def test_nothing_overflows_a_phone(opened: Open, width: int) -> None:
    page = opened(width=width)
    for summary in page.page.locator("summary").all():
        summary.click()
    assert page.page.evaluate("document.documentElement.scrollWidth") == width
    assert page.page.evaluate(OVERFLOWING) == []
    for chart in CHARTS:
        box = page.page.locator(f"#chart-{chart} .main-svg").first.bounding_box()
        assert box is not None
        assert box["width"] > 0.7 * width, chart
    page.require_silence()


def test_names_that_are_markup_are_shown_as_they_are(opened: Open) -> None:
    page = opened(made.report(folder=HOSTILE, error=HOSTILE, run_name=HOSTILE, commands=[HOSTILE], notes=[HOSTILE]))
    assert page.count("img") == 0
    assert page.page.locator("h1").inner_text() == HOSTILE
    assert page.page.locator(".command code").inner_text() == HOSTILE
    point = page.page.locator("#chart-pareto .scatterlayer .point").first
    point.scroll_into_view_if_needed()
    point.hover(force=True)
    expect(page.page.locator("#chart-pareto .hoverlayer .hovertext")).to_contain_text(f"{HOSTILE}/fp32-torch")
    page.require_silence()


def test_no_button_of_a_plot_sends_it_anywhere_and_its_picture_can_be_kept(opened: Open) -> None:
    page = opened()
    titles = [
        button.get_attribute("data-title") for button in page.page.locator("#chart-pareto .modebar-btn").all()
    ]
    assert "Download plot as a PNG" in titles
    assert not [title for title in titles if title and ("hare" in title or "loud" in title or "dit" in title)]
    page.page.locator("#chart-pareto").hover()
    with page.page.expect_download() as picture:
        page.page.locator('#chart-pareto .modebar-btn[data-title="Download plot as a PNG"]').click()
    assert Path(picture.value.path()).read_bytes().startswith(b"\x89PNG")
    assert [url for url in page.requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert page.complaints == []


def test_a_command_is_copied_as_it_is(opened: Open) -> None:
    page = opened()
    page.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.page.locator("button.copy").first.click()
    expect(page.page.locator("button.copy").first).to_have_text("Copied")
    assert page.page.evaluate("navigator.clipboard.readText()") == "sluice demo --run demo-20261201 --protocol quick"


def test_without_scripts_the_tables_still_tell_everything(browser: Browser, tmp_path: Path) -> None:
    path = write(made.report(), tmp_path)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("h2").all_inner_texts() == list(QUESTIONS)
    expect(page.locator("noscript").first).to_be_visible()
    assert page.locator("#theme").is_hidden()
    assert page.locator("#pareto table tbody tr").count() == 16
    context.close()
