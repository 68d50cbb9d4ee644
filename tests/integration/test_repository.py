"""Load and unload on a real Serve, under load: two replicas behind HAProxy, and on a port of their own."""

from __future__ import annotations

import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import httpx
import orjson
import psutil
import pytest

from cluster.control import actuator
from cluster.local import LocalCluster, free_ports
from serve_apps.oip.codec import encode_request
from tests.conftest import Trained, deploy, meanwhile, plan_of, replica_pids

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

MODEL = "/v2/models/classifier"
REPOSITORY = "/v2/repository/models/classifier"


class Both:
    """Two replicas of one deployment, and the two ways to them."""

    def __init__(self, cluster: LocalCluster, direct_port: int) -> None:
        self.cluster = cluster
        self.ways = {"proxy": f"http://127.0.0.1:{cluster.http_port}", "direct": f"http://127.0.0.1:{direct_port}"}

    def ask(self, method: str, path: str, **content: object) -> httpx.Response:
        return httpx.request(method, self.ways["proxy"] + path, timeout=60.0, **content)  # type: ignore[arg-type]

    def pids(self) -> set[int]:
        return replica_pids(self.cluster)

    def versions(self, trained: Trained) -> Counter[str]:
        """Of forty answers, each on a connection of its own, half of them each way."""
        body, headers = encode_request({"image": trained.pictures[:1]}, binary=True)
        said = [
            httpx.post(f"{way}{MODEL}/infer", content=body, headers=headers, timeout=60.0)
            for way in self.ways.values() for _ in range(20)
        ]  # fmt: skip
        return Counter(str(each.json().get("model_version", each.status_code)) for each in said)


@pytest.fixture(scope="module")
def both(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    with LocalCluster("both", state_dir=tmp_path_factory.mktemp("state")) as cluster:
        [direct_port] = free_ports(1)  # now that Ray has taken its own
        plan = plan_of(
            trained.store, trained.fp32, num_replicas=2, num_cpus_per_replica=0.5, repository=True,
            direct_port=direct_port,
        )  # fmt: skip
        deploy(cluster, plan)
        yield Both(cluster, direct_port)


@contextmanager
def load(both: Both, trained: Trained) -> Iterator[list[tuple[float, int, str]]]:
    """Two clients each way that ask without a pause: (when, status, version or complaint) of every answer."""
    body, headers = encode_request({"image": trained.pictures[:1]}, binary=True)
    seen: list[tuple[float, int, str]] = []

    def keep_asking(base: str, done: threading.Event) -> None:
        with httpx.Client(base_url=base, timeout=60.0) as own:
            while not done.is_set():
                try:
                    answer = own.post(f"{MODEL}/infer", content=body, headers=headers)
                    said = answer.json()
                    told = said.get("model_version") or said["error"]
                    seen.append((time.monotonic(), answer.status_code, told))
                except httpx.HTTPError as error:
                    seen.append((time.monotonic(), 0, repr(error)))

    with meanwhile([partial(keep_asking, base) for base in both.ways.values() for _ in range(2)]):
        yield seen
    assert len(seen) > 50, "there was no load, so nothing was proved"


def test_unload_and_load_hold_for_every_replica_and_lose_nothing(both: Both, trained: Trained) -> None:
    """Unloaded, one of the two is killed: its successor is unloaded as well, until both load another variant."""
    before = both.pids()
    assert len(before) == 2
    with load(both, trained) as seen:
        time.sleep(0.3)
        answer = both.ask("POST", f"{REPOSITORY}/unload")
        unloaded = time.monotonic()
        assert (answer.status_code, answer.json()[0]["state"]) == (200, "UNAVAILABLE"), answer.text
        assert both.versions(trained) == {"503": 40}
        assert both.ask("GET", "/v2/health/live").status_code == 200
        assert both.ask("GET", f"{MODEL}/ready").json() == {"name": "classifier", "ready": False}
        assert both.ask("POST", f"{REPOSITORY}/unload").status_code == 200, "once more changes nothing"
        assert both.pids() == before, "nothing was restarted"

        killed = time.monotonic()
        psutil.Process(min(before)).kill()
        while len(both.pids() - before) < 1 or len(running(both)) < 2:
            assert time.monotonic() < killed + 60, "no successor came"
            time.sleep(0.1)
        assert both.versions(trained) == {"503": 40}
        came = time.monotonic()

        answer = both.ask("POST", f"{REPOSITORY}/load", json={"parameters": {"variant": trained.int8.name}})
        loaded = time.monotonic()
        assert (answer.status_code, answer.json()[0]["version"]) == (200, trained.int8.id), answer.text
        assert both.versions(trained) == {trained.int8.id: 40}
    refused = {told for when, status, told in seen if status == 503 and not killed <= when <= came}
    assert refused
    assert all(f"{REPOSITORY}/load loads it again" in told for told in refused), refused
    # While one of them is gone, what was sent to it may fail; that apart there are answers, and refusals that say why.
    assert {status for when, status, _ in seen if not killed <= when <= came} == {200, 503}
    # (An answer of 200 may be on its way to its client while ours to the unload is, and the other way round.)
    assert 200 not in {status for when, status, _ in seen if unloaded + 0.2 < when < came}
    assert {told for when, _, told in seen if when > loaded + 0.2} == {trained.int8.id}
    assert {told for _, status, told in seen if status == 200} == {trained.fp32.id, trained.int8.id}


def running(both: Both) -> list[int]:
    """Replicas that Serve calls running."""
    answer = httpx.get(f"{both.cluster.dashboard_address}/api/serve/applications/").json()
    listed = answer["applications"]["classifier"]["deployments"]["ModelDeployment"]["replicas"]
    return [replica["pid"] for replica in listed if replica["state"] == "RUNNING"]


def test_a_load_that_cannot_be_is_refused_and_the_deployment_stays(both: Both, trained: Trained) -> None:
    both.ask("POST", f"{REPOSITORY}/load", json={"parameters": {"variant": trained.fp32.id}})
    before = actuator.read(both.cluster.dashboard_address, "classifier").config
    for ref, status in (("../../../etc/passwd", 400), (trained.torch.id, 400), ("nobody/none", 400)):
        refused = both.ask("POST", f"{REPOSITORY}/load", json={"parameters": {"variant": ref}})
        assert (refused.status_code, ref in refused.text or "cannot execute" in refused.text) == (status, True)
    assert actuator.read(both.cluster.dashboard_address, "classifier").config == before
    assert both.versions(trained) == {trained.fp32.id: 40}


ALIKE = [
    ("GET", "/v2"), ("GET", "/v2/"), ("GET", "/v2/health/live"), ("GET", "/v2/health/ready"), ("GET", "/healthz"),
    ("GET", MODEL), ("GET", f"{MODEL}/ready"), ("GET", f"{MODEL}/config"), ("HEAD", MODEL), ("HEAD", "/healthz"),
    ("OPTIONS", MODEL), ("OPTIONS", f"{MODEL}/infer"), ("POST", f"{MODEL}/infer"), ("GET", f"{MODEL}/infer"),
    ("DELETE", MODEL), ("POST", "/v2/repository/index"), ("GET", "/v2/models/nobody"), ("GET", "/nothing"),
    ("GET", f"{MODEL}/versions/7"), ("POST", f"{MODEL}/versions/7/infer"),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path"), ALIKE)
def test_both_ways_answer_alike(both: Both, method: str, path: str) -> None:
    one, two = (
        httpx.request(method, f"{way}{path}", timeout=60.0, content=b"[" if method == "POST" else None)
        for way in both.ways.values()
    )
    assert (one.status_code, one.content) == (two.status_code, two.content)
    for name in ("content-type", "allow", "retry-after", "content-length"):
        assert one.headers.get(name) == two.headers.get(name), name
    if one.status_code >= 400 and method != "HEAD":
        assert list(one.json()) == ["error"]


def test_serve_s_own_health_stays(both: Both) -> None:
    assert both.ask("GET", "/-/healthz").status_code == 200
    assert both.ask("GET", "/-/routes").json()


def test_requests_sent_ahead_are_answered_in_their_order(both: Both, trained: Trained) -> None:
    """Both kinds of way through a replica, one after the other on a single connection, sent before the first answer."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 28, 28], "data": [0] * 784}
    infer = [orjson.dumps({"id": f"r{number}", "inputs": [tensor]}) for number in range(3)]
    sent = b""
    for body in infer:
        sent += b"POST %s/infer HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n" % (MODEL.encode(), len(body)) + body
        sent += b"GET %s/ready HTTP/1.1\r\nHost: h\r\n\r\nHEAD /v2 HTTP/1.1\r\nHost: h\r\n\r\n" % MODEL.encode()
    sent += b"GET /v2/health/live HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
    for way in both.ways.values():
        port = int(way.rsplit(":", 1)[1])
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(sent)
            got = b""
            while data := connection.recv(1 << 16):
                got += data
        assert got.count(b"HTTP/1.1 200 OK") == 10, got[-2000:]
        order = [got.index(b'"id":"r%d"' % number) for number in range(3)]
        assert order == sorted(order)
        assert got.rstrip().endswith(b'{"live":true}')
