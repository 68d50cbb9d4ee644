"""The README's steps, read from it and run as they stand; only the recipe is the small one and the port a free one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.local import free_ports
from tests.conftest import marked

pytestmark = [pytest.mark.ray, pytest.mark.timeout(900)]

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = ("serve deploy", "kubectl", "make ")
"""Lines that other tests run (test_cli_serving, conformance/kuberay) or that run these tests."""


def console_lines() -> list[str]:
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line and not line.startswith(ELSEWHERE)]


def interrupt(server: subprocess.Popen[str]) -> None:
    """As a user's Ctrl-C, and wait until its port is free again."""
    server.send_signal(signal.SIGINT)
    assert server.wait(timeout=60) == 130
    assert server.stdout is not None
    server.stdout.close()


def test_every_line_works(tmp_path: Path) -> None:
    port = str(free_ports(1)[0])
    state = tmp_path / "state"
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "SLUICE_STORE": str(tmp_path / "store"),
        "SLUICE_RUNS": str(tmp_path / "runs"),
        "SLUICE_STATE": str(state),
        "PYTHONUNBUFFERED": "1",
    }
    lines = [
        re.sub(r"(sluice tune .*)", r"\1 --trials 2 --finalists 1 --protocol smoke", line)
        .replace("cnn_fashion_mnist_quick", "cnn_digits").replace("8000", port)
        for line in console_lines()
    ]  # fmt: skip
    assert [re.search(r"sluice (\w+)", line).group(1) for line in lines if "sluice " in line] == [  # type: ignore[union-attr]
        "init", "tune", "serve", "hardware", "recipes", "train", "compress", "variants", "profile", "tune", "report",
        "variants", "serve", "load", "status", "stop", "serve", "train", "train",
    ]  # fmt: skip
    server: subprocess.Popen[str] | None = None
    try:
        for line in lines:
            if line.startswith("sluice serve") and "--dry-run" not in line:
                if server is not None:
                    interrupt(server)
                server = subprocess.Popen(
                    [*line.split(), "--port", port], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    env=environment, cwd=tmp_path,
                )  # fmt: skip
                assert server.stdout is not None
                assert any("Ctrl-C stops it" in heard for heard in server.stdout), f"{line} ended with {server.wait()}"
                continue
            done = subprocess.run(
                line, shell=True, capture_output=True, text=True, env=environment, cwd=tmp_path, check=False
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
            assert done.stdout or ">" in line, f"{line} says nothing"
    finally:
        if server is not None:
            server.kill()
            server.wait()
            assert server.stdout is not None
            server.stdout.close()
    assert "import_path: serve_apps.app:build" in (tmp_path / "serve-config.yaml").read_text()
    assert not marked(state_dir=state)
