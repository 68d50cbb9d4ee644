from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cluster.load import Target, build_request

TargetOf = Callable[..., Target]


@pytest.fixture(scope="session")
def faulty_port() -> Iterator[int]:
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("faulty_server.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    try:
        yield int(process.stdout.readline())
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def target_of(faulty_port: int) -> TargetOf:
    """`target_of("/ok", "/503", expect=[...])`: requests for these paths in turn."""

    def make(*paths: str, expect: list[bytes] | None = None) -> Target:
        requests = [build_request("POST", path, "127.0.0.1", {}, b"x" * 784) for path in paths]
        return Target("127.0.0.1", faulty_port, requests, expect)

    return make
