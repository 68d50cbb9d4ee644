"""The page at /v2/docs in a real browser, served by the real application over a real socket."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from playwright.sync_api import Browser, Page, expect

from serve_apps.oip.routes import OipApp
from tests.unit.serve_apps.oip.served import Host, serving


class Running:
    """A host and its application on a loop of their own: playwright's blocking calls have this thread."""

    def __init__(self) -> None:
        self._started, self._end = threading.Event(), asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()
        assert self._started.wait(30)

    async def _run(self) -> None:
        self.host = Host(model_name="adder")
        async with serving(OipApp(lambda: self.host)) as self.address:
            self._started.set()
            await self._end.wait()
        self.host.batcher.close()

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()


@pytest.fixture(scope="module")
def running() -> Iterator[Running]:
    made = Running()
    yield made
    made.stop()


@dataclass
class Opened:
    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: Browser, running: Running, *, width: int = 1100) -> Iterator[Opened]:
    page = browser.new_page(viewport={"width": width, "height": 800})
    seen = Opened(page)
    page.on("request", lambda request: seen.requests.append(request.url))
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.goto(f"http://{running.address}/v2/docs")
    expect(page.locator("#about a")).to_be_visible()
    yield seen
    page.close()


def test_it_lists_what_is_served_and_asks_nobody_else(browser: Browser, running: Running) -> None:
    with opened(browser, running) as seen:
        page = seen.page
        expect(page.locator("#model tbody tr")).to_have_count(3)
        expect(page.locator("#model")).to_contain_text("INT32")
        assert page.locator("details").count() == 20
        expect(page.locator("details[open] summary")).to_contain_text("/v2/models/adder/infer")
        assert seen.complaints == []
        assert seen.requests == [f"http://{running.address}/v2/{path}" for path in ("docs", "openapi.json")]


def test_the_example_is_sent_and_its_answer_shown(browser: Browser, running: Running) -> None:
    with opened(browser, running) as seen:
        page = seen.page
        asked = page.locator("details[open]")
        body = asked.locator("textarea")
        body.fill(body.input_value().replace("[0,0,0]", "[1,2,39]"))
        asked.get_by_role("button", name="Send").click()
        expect(asked.locator("output .status")).to_contain_text("200")
        expect(asked.locator("output pre").first).to_contain_text("42")
        expect(asked.locator("output")).to_contain_text("sluice-version")
        expect(asked.locator("output")).to_contain_text("curl -X POST")
        body.fill("{")
        asked.get_by_role("button", name="Send").click()
        expect(asked.locator("output .status")).to_contain_text("400")
        expect(asked.locator("output pre").first).to_contain_text("no JSON")
        assert [line for line in seen.complaints if "400" not in line] == []


def test_a_path_with_a_version_and_a_body_from_a_file(browser: Browser, running: Running) -> None:
    with opened(browser, running) as seen:
        page = seen.page
        one = page.locator("[id='get/v2/models/adder/versions/{version}']")
        one.locator("summary").click()
        one.get_by_role("button", name="Send").click()
        expect(one.locator("output pre").first).to_contain_text("onnx_onnxv1")
        asked = page.locator("details[open]").first
        asked.locator("select[name=kind]").select_option("application/octet-stream")
        asked.locator("input[type=file]").set_input_files(
            {"name": "row", "mimeType": "application/x-row", "buffer": bytes([7, 0, 0, 0] * 3)}
        )
        asked.get_by_role("button", name="Send").click()
        expect(asked.locator("output pre").first).to_contain_text("21")
        assert seen.complaints == []


@pytest.mark.parametrize("width", [1100, 390])
def test_it_fits_the_window_answer_and_all(browser: Browser, running: Running, width: int) -> None:
    with opened(browser, running, width=width) as seen:
        page = seen.page
        page.locator("details[open]").get_by_role("button", name="Send").click()
        expect(page.locator("output .status").first).to_contain_text("200")
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_it_says_that_nothing_is_served(browser: Browser, running: Running) -> None:
    served, running.host.served = running.host.served, None
    running.host.unavailable = "unloaded"
    try:
        with opened(browser, running) as seen:
            expect(seen.page.locator("#model")).to_contain_text("not loaded")
            seen.page.locator("details[open]").get_by_role("button", name="Send").click()
            expect(seen.page.locator("output .status").first).to_contain_text("503")
    finally:
        running.host.served, running.host.unavailable = served, None
