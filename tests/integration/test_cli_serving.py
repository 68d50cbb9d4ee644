"""serve, load, status, deploy and stop as a user types them, and the stock `serve deploy` with what we generate."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import yaml

from cluster.local import LocalCluster, free_ports
from tests.conftest import Trained, marked

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]


def sluice(*arguments: str, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *arguments], capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


@contextmanager
def serving(trained: Trained, port: int) -> Iterator[subprocess.Popen[str]]:
    """`sluice serve` in the foreground, until it says that it serves."""
    command = [sys.executable, "-u", "-m", "cluster.cli", "serve", trained.int8.id, "--port", str(port), "--store",
               str(trained.store.root)]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    try:
        heard = ""
        while "Ctrl-C stops it" not in heard:
            line = process.stdout.readline()
            assert line, f"it ended with {process.wait()}: {heard}"
            heard += line
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_serve_load_status_and_stop(trained: Trained, state_dir: Path) -> None:
    port = free_ports(1)[0]
    assert json.loads(sluice("status", "--json").stdout) == []
    with serving(trained, port) as process:
        running = json.loads(sluice("status", "--json").stdout)
        assert [(c["name"], c["http_port"]) for c in running] == [("serve", port)]
        url = f"http://127.0.0.1:{port}"
        figures = json.loads(sluice("load", url, "--rate", "20", "--duration-s", "2", "--json").stdout)
        assert figures["outcomes"] == {"200": figures["requests"]}
        assert figures["latency_s"]["0.99"] > 0
        table = sluice("load", url, "--rate", "20", "--duration-s", "1", "--arrivals", "constant").stdout
        assert "latency from the scheduled time" in table
        assert "no model 'nobody'" in sluice("load", url, "--model", "nobody", code=2).stderr
        assert "would stop serve" in sluice("stop", "--dry-run").stdout
        assert httpx.get(f"{url}/v2/health/ready").status_code == 200, "a dry run stops nothing"
        assert "stopped serve" in sluice("stop").stdout
        process.wait(timeout=30)
    assert not marked(state_dir=state_dir)
    assert json.loads(sluice("status", "--json").stdout) == []


def test_ctrl_c_stops_serve(trained: Trained, state_dir: Path) -> None:
    with serving(trained, free_ports(1)[0]) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=40) == 130
    assert not marked(state_dir=state_dir)


def test_stock_serve_deploy_and_ours_take_the_generated_config(
    trained: Trained, state_dir: Path, tmp_path: Path
) -> None:
    """What `sluice serve --dry-run` prints goes through Ray's own `serve deploy`, and through `sluice deploy`."""
    with LocalCluster("stock-cli", state_dir=state_dir) as cluster:
        store = str(trained.store.root)
        asked = ("serve", trained.int8.id, "--port", str(cluster.http_port), "--store", store, "--dry-run")
        printed = sluice(*asked).stdout
        config = tmp_path / "serve-config.yaml"
        config.write_text(printed)
        environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        done = subprocess.run(
            [str(Path(sys.executable).with_name("serve")), "deploy", str(config), "-a", cluster.dashboard_address],
            capture_output=True, text=True, check=False, timeout=100, env=environment,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "would deploy classifier" in sluice("deploy", str(config), "--dry-run").stdout
        sluice("deploy", str(config), "--address", cluster.dashboard_address)  # the same again: waits until it runs
        described = httpx.get(f"http://127.0.0.1:{cluster.http_port}/v2/models/classifier").json()
        assert described["versions"] == [trained.int8.id]
        refused = tmp_path / "bad.yaml"
        refused.write_text(yaml.safe_dump({"applications": [{"name": "x", "import_path": "no.such:thing"}]}))
        assert "no" in sluice("deploy", str(refused), "--address", cluster.dashboard_address, code=2).stderr
        mark = cluster.cluster_id
    assert not marked(mark)
