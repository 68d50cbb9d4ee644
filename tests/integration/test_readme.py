"""The README's steps, read from it and run as they stand; only the recipe is the small one and the port a free one."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.integration.pages import ROOT, blocks, lines_of, terminal

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ELSEWHERE = ("serve deploy", "kubectl", "make ")
"""Lines that other tests run (test_cli_serving, conformance/kuberay) or that run these tests."""


def test_every_line_works(tmp_path: Path) -> None:
    lines = [
        re.sub(r"(sluice tune .*)", r"\1 --trials 2 --finalists 1 --protocol smoke", line)
        .replace("cnn_fashion_mnist_quick", "cnn_digits")
        for kind, text in blocks(ROOT / "README.md", "console", "python") for line in lines_of(kind, text)
        if not line.startswith(ELSEWHERE)
    ]  # fmt: skip
    assert [re.search(r"sluice (\w+)", line).group(1) for line in lines if "sluice " in line] == [  # type: ignore[union-attr]
        "init", "tune", "serve", "hardware", "recipes", "train", "compress", "variants", "profile", "tune", "report",
        "variants", "serve", "load", "status", "stop", "serve", "train", "train",
    ]  # fmt: skip
    assert sum("curl" in line or "Client(" in line for line in lines) == 3
    with terminal(tmp_path) as reader:
        for line in lines:
            reader.run(line)
    assert "import_path: serve_apps.app:build" in (tmp_path / "serve-config.yaml").read_text()
