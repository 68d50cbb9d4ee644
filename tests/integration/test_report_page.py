"""The report in a real browser: drawn, readable, silent, and asking nothing of any network."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.unit.tune_spaces.report import made
from tests.unit.tune_spaces.report.test_page import HOSTILE, QUESTIONS
from tune_spaces.report.report import Report, write

Scheme = Literal["light", "dark"]
CHARTS = {"pareto": 16, "latency": 2, "batch": 8, "search": 20}
"""Marks or lines in each plot of the made report: configurations, sides, curves, trials (the failed one too)."""


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

    def looks(self) -> list[str]:
        """Colours of the page, of its words, and of three parts of a plot."""
        return [
            self.colour("body", "backgroundColor"),
            self.colour("body", "color"),
            self.colour("#chart-batch .xtick text", "fill"),
            self.colour("#chart-batch .js-line", "stroke"),
            self.colour("#chart-batch .gridlayer path", "stroke"),
        ]

    def hover_first_configuration(self) -> Locator:
        """The label that appears then."""
        point = self.page.locator("#chart-pareto .scatterlayer .point").first
        point.scroll_into_view_if_needed()
        point.hover(force=True)
        return self.page.locator("#chart-pareto .hoverlayer .hovertext")

    def require_silence(self) -> None:
        assert self.requests == [self.path.as_uri()]
        assert self.complaints == []


@contextmanager
def opened(
    browser: Browser, folder: Path, report: Report, *, scheme: Scheme = "light", width: int = 1280
) -> Iterator[Opened]:
    """The page of a report, every request but the file's own refused."""
    path = write(report, folder)
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
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
    yield found
    context.close()


@pytest.fixture(scope="module")
def demo(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Opened]:
    """A demo's report by day; reading 5 MB of script takes a browser seconds, so tests share it and leave it as it was.
    """
    with opened(browser, tmp_path_factory.mktemp("demo"), made.report()) as page:
        yield page


def require_whole(page: Opened) -> None:
    assert page.page.locator("h2").all_inner_texts() == list(QUESTIONS)
    expect(page.page.locator(".said")).to_contain_text("cnn_fashion_mnist/int8 on openvino")
    for chart, count in CHARTS.items():
        mark = ".point" if chart in ("pareto", "search") else ".js-line"
        drawn = page.page.locator(f"#chart-{chart} .scatterlayer {mark}")
        expect(drawn).to_have_count(count)
    page.require_silence()


def test_a_demo_s_page_has_every_section_and_plot_and_is_silent(demo: Opened) -> None:
    require_whole(demo)


def test_a_tune_s_page_too(browser: Browser, tmp_path: Path) -> None:
    with opened(browser, tmp_path, made.report(compared=False)) as page:
        require_whole(page)


def test_hovering_a_configuration_tells_its_figures(demo: Opened) -> None:
    label = demo.hover_first_configuration()
    expect(label).to_be_visible()
    for words in ("fp32-torch", "SLO rate 353 req/s", "p99 4.74 ms", "accuracy 0.9161", "core-s", "310 MiB", "1 trial"):
        expect(label).to_contain_text(words)
    demo.require_silence()


def test_a_chip_hides_its_series_and_brings_it_back(demo: Opened) -> None:
    drawn = demo.page.locator("#chart-batch .scatterlayer .js-line")
    variant = demo.page.locator("button.chip[data-chart=batch]", has_text="int8")
    runtime = demo.page.locator("button.chip[data-chart=batch]", has_text="openvino")
    for chip, left in ((variant, 6), (runtime, 3), (variant, 4), (runtime, 8)):
        before = chip.get_attribute("aria-pressed")
        chip.click()
        assert chip.get_attribute("aria-pressed") != before
        expect(drawn).to_have_count(left)
    demo.require_silence()


def test_dark_differs_in_every_part_by_button_and_by_system(demo: Opened) -> None:
    by_day, button, line = demo.looks(), demo.page.locator("#theme"), demo.page.locator("#chart-batch .js-line").first
    demo.page.emulate_media(color_scheme="dark")
    expect(button).to_have_text("Light")
    expect(line).not_to_have_css("stroke", by_day[3])
    by_night = demo.looks()
    assert all(a != b for a, b in zip(by_day, by_night, strict=True)), (by_day, by_night)
    for name, looks in (("Dark", by_day), ("Light", by_night), ("Dark", by_day)):
        button.click()
        expect(button).to_have_text(name)
        expect(line).to_have_css("stroke", looks[3])
        assert demo.looks() == looks
    demo.page.emulate_media(color_scheme="light")
    assert demo.looks() == by_day
    demo.require_silence()


OVERFLOWING = """() => [...document.querySelectorAll('body *')].filter((element) => {
  const box = element.getBoundingClientRect();
  return box.width && box.right > innerWidth + 1 && !element.closest('.scroll, nav, .skip, svg, script');
}).map((element) => element.tagName + '.' + element.className)"""


RESIZED = """async (width) => {
  const plots = [...document.querySelectorAll(".main-svg")];
  while (plots.some((plot) => plot.getBoundingClientRect().width >= width)) await new Promise(requestAnimationFrame);
}"""


def test_nothing_overflows_a_phone_by_night(browser: Browser, tmp_path: Path, demo: Opened) -> None:
    long = made.report(folder="a_model_whose_name_is_longer_than_any_phone_is_wide_" * 2, run_name="r" * 80)
    with opened(browser, tmp_path, long, scheme="dark", width=390) as page:
        assert all(a != b for a, b in zip(page.looks(), demo.looks(), strict=True)), "dark from the start"
        for summary in page.page.locator("summary").all():
            summary.click()
        for width in (390, 320):
            page.page.set_viewport_size({"width": width, "height": 844})
            page.page.evaluate(RESIZED, width)
            assert page.page.evaluate("document.documentElement.scrollWidth") == width
            assert page.page.evaluate(OVERFLOWING) == []
            for chart in CHARTS:
                box = page.page.locator(f"#chart-{chart} .main-svg").first.bounding_box()
                assert box is not None
                assert box["width"] > 0.7 * width, chart
        page.require_silence()


def test_names_that_are_markup_are_shown_as_they_are(browser: Browser, tmp_path: Path) -> None:
    report = made.report(folder=HOSTILE, error=HOSTILE, run_name=HOSTILE, commands=[HOSTILE], notes=[HOSTILE])
    with opened(browser, tmp_path, report) as page:
        assert page.count("img") == 0
        assert page.page.locator("h1").inner_text() == HOSTILE
        assert page.page.locator(".command code").inner_text() == HOSTILE
        expect(page.hover_first_configuration()).to_contain_text(f"{HOSTILE}/fp32-torch")
        page.require_silence()


def test_a_script_that_slipped_in_would_not_run(demo: Opened) -> None:
    """The second line of defence: the page's own policy."""
    ran = demo.page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.slipped = true";
      document.body.append(script);
      return Boolean(window.slipped);
    }""")
    refused = [complaint for complaint in demo.complaints if "Content Security Policy" in complaint]
    demo.complaints.clear()
    assert not ran
    assert refused


def test_a_plot_is_kept_as_a_picture_and_sent_nowhere(demo: Opened) -> None:
    titles = [button.get_attribute("data-title") for button in demo.page.locator(".modebar-btn").all()]
    assert "Download plot as a PNG" in titles
    assert not [title for title in titles if title and ("hare" in title or "loud" in title or "dit" in title)]
    demo.page.locator("#chart-pareto").hover()
    with demo.page.expect_download() as picture:
        demo.page.locator('#chart-pareto .modebar-btn[data-title="Download plot as a PNG"]').click()
    assert Path(picture.value.path()).read_bytes().startswith(b"\x89PNG")
    asked = [url for url in demo.requests if not url.startswith(("data:", "blob:"))]
    assert asked == [demo.path.as_uri()]
    demo.requests[:] = asked
    demo.require_silence()


def test_a_command_is_copied_as_it_is(demo: Opened) -> None:
    demo.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = demo.page.locator("button.copy").first
    button.click()
    expect(button).to_have_text("Copied")
    assert demo.page.evaluate("navigator.clipboard.readText()") == "sluice demo --run demo-20261201 --protocol quick"


def test_without_scripts_the_tables_still_tell_everything(browser: Browser, tmp_path: Path) -> None:
    path = write(made.report(), tmp_path)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(path.as_uri())
    assert page.locator("h2").all_inner_texts() == list(QUESTIONS)
    expect(page.locator("noscript").first).to_be_visible()
    assert page.locator("#theme").is_hidden()
    assert page.locator("#pareto table tbody tr").count() == CHARTS["pareto"]
    context.close()
