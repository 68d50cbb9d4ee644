"""The page is whole in itself, and its policy lets just that run; tests/integration/test_docs_page.py has a browser."""

from __future__ import annotations

import base64
import hashlib
import re
from html.parser import HTMLParser

from serve_apps.oip.page import PAGE, POLICY
from serve_apps.oip.page_script import SCRIPT


class Seen(HTMLParser):
    """Its tags with their attributes, and what stands in its scripts and styles."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, str] = {}
        self.feed(PAGE.decode())
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.cdata_elem:
            self.inside[self.cdata_elem] = self.inside.get(self.cdata_elem, "") + data


def test_the_policy_names_the_one_script_and_the_one_style_by_their_hashes() -> None:
    seen = Seen()
    assert [tag for tag, _ in seen.tags if tag in ("script", "style")] == ["style", "script"]
    rules = dict(rule.split(" ", 1) for rule in POLICY.split("; "))
    for tag in ("script", "style"):
        digest = base64.b64encode(hashlib.sha256(seen.inside[tag].encode()).digest()).decode()
        assert rules[f"{tag}-src"] == f"'sha256-{digest}'"
    assert (rules["default-src"], rules["connect-src"]) == ("'none'", "'self'")
    assert "unsafe" not in POLICY


def test_nothing_in_it_would_need_more_than_the_policy_allows() -> None:
    seen = Seen()
    for tag, attributes in seen.tags:
        assert not {name for name in attributes if name.startswith("on") or name == "style"}, tag
        assert "src" not in attributes
    assert [attributes["href"] for tag, attributes in seen.tags if tag == "link"] == ["data:,"]
    assert not re.search(r"https?://|@import", PAGE.decode())
    assert "url(" not in seen.inside["style"]


def test_a_name_is_never_markup() -> None:
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function", SCRIPT)


def test_the_script_finds_what_it_looks_for() -> None:
    ids = {attributes["id"] for _, attributes in Seen().tags if "id" in attributes}
    wanted = set(re.findall(r'(?:getElementById\("|querySelector\("#)([\w-]+)"', SCRIPT))
    assert wanted
    assert wanted <= ids
