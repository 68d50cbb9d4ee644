"""What a Serve config meets on its way to a dashboard; real clusters: tests/integration/test_local_cluster.py."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from cluster.errors import ClusterError
from cluster.local import deploy_config

CONFIG = {"applications": [{"name": "m"}]}


@contextmanager
def dashboard(drops: int, asked: list[str]) -> Iterator[str]:
    """Closes the first `drops` connections without a word; afterwards it has taken the config and all runs."""

    class Handler(BaseHTTPRequestHandler):
        def _do(self) -> None:
            asked.append(self.command)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if len(asked) <= drops:
                self.close_connection = True
                return
            body = json.dumps({"applications": {"m": {"status": "RUNNING"}}}).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_PUT = _do  # noqa: N815 - http.server's names

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("drops", [0, 1, 3])
def test_a_dashboard_that_drops_a_connection_is_asked_again(drops: int) -> None:
    asked: list[str] = []
    with dashboard(drops, asked) as address:
        deploy_config(address, CONFIG, timeout_s=20.0)
    assert asked == ["PUT"] * (drops + 1) + ["GET"]


def test_one_that_always_does_is_no_dashboard() -> None:
    with (
        dashboard(99, []) as address,
        pytest.raises(ClusterError, match=r"does not answer \(Server disconnected .*is Ray running there"),
    ):
        deploy_config(address, CONFIG, timeout_s=20.0)


def test_nobody_there_is_told_at_once() -> None:
    with pytest.raises(ClusterError, match="does not answer"):
        deploy_config("http://127.0.0.1:9", CONFIG, timeout_s=20.0)
