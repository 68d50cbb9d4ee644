"""The deployed classifier behind a real HAProxy: right answers, clear refusals, and neighbours that never notice."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import numpy as np
import orjson
import psutil
import pytest
from numpy.typing import NDArray

from cluster.control.serve_config import serve_config
from cluster.errors import InferenceFailed
from cluster.load import Target, build_request, poisson, run_open_loop
from cluster.local import LocalCluster
from cluster.runtimes import RuntimeConfig
from serve_apps.oip.codec import decode_response, encode_request
from tests.conftest import Trained, deploy, marked, plan_of
from tests.poison import poisonous_variant
from tune_spaces.traffic import check_answers, target_of

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

INFER = "/v2/models/classifier/infer"


@pytest.fixture
def client(served: LocalCluster) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"http://127.0.0.1:{served.http_port}", timeout=30.0) as made:
        yield made


def infer(
    client: httpx.Client, pictures: NDArray[np.generic], *, binary: bool = True, **options: object
) -> httpx.Response:
    body, headers = encode_request({"image": pictures}, binary=binary, binary_output=binary, parameters=dict(options))
    return client.post(INFER, content=body, headers=headers)


def logits_of(answer: httpx.Response) -> NDArray[np.generic]:
    assert answer.status_code == 200, answer.text
    return decode_response(answer.content, dict(answer.headers))["logits"]


@contextmanager
def neighbours(served: LocalCluster, trained: Trained) -> Iterator[list[str]]:
    """Well-behaved requests in the background the whole while; yields what went wrong with them (nothing may)."""
    wrong: list[str] = []
    done = threading.Event()
    expected = trained.expected(trained.int8, trained.pictures[:32])
    asked = Counter[str]()

    def ask() -> None:
        with httpx.Client(base_url=f"http://127.0.0.1:{served.http_port}", timeout=30.0) as own:
            while not done.is_set():
                index = asked["all"] % 32
                asked["all"] += 1
                answer = infer(own, trained.pictures[index : index + 1])
                if answer.status_code != 200:
                    wrong.append(f"{answer.status_code}: {answer.text[:200]}")
                elif np.argmax(logits_of(answer)) != np.argmax(expected[index]):
                    wrong.append(f"picture {index}: wrong answer")

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield wrong
    finally:
        done.set()
        thread.join()
    assert asked["all"] > 0


@pytest.mark.parametrize("binary", [True, False])
def test_answers_are_those_of_the_variant(client: httpx.Client, trained: Trained, binary: bool) -> None:
    pictures = trained.pictures[:7]
    got = logits_of(infer(client, pictures, binary=binary))
    np.testing.assert_allclose(got, trained.expected(trained.int8, pictures), atol=1e-3)


def test_the_demo_would_notice_wrong_answers(served: LocalCluster, trained: Trained) -> None:
    target = target_of("127.0.0.1", served.http_port, "classifier", trained.int8, trained.pictures)
    check_answers(trained.store, trained.int8, target, trained.pictures, RuntimeConfig())
    with pytest.raises(InferenceFailed, match="sample 0"):
        check_answers(trained.store, trained.fp32, target, trained.pictures, RuntimeConfig())


def test_metadata_and_health(client: httpx.Client, trained: Trained) -> None:
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 200
    assert client.get("/v2/models/classifier/ready").status_code == 200
    described = client.get("/v2/models/classifier").json()
    assert described["versions"] == [trained.int8.id]
    assert described["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, 1, 28, 28]}]


def request_json(**changes: object) -> bytes:
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, 1, 28, 28], "data": [0] * 784} | changes
    return orjson.dumps({"inputs": [tensor]})


REFUSED = {
    "wrong shape": (INFER, request_json(shape=[1, 28, 28]), 400, "shape"),
    "wrong datatype": (INFER, request_json(datatype="FP32"), 400, "FP32"),
    "too few values": (INFER, request_json(data=[0] * 783), 400, "783"),
    "value out of range": (INFER, request_json(data=[256] * 784), 400, "UINT8"),
    "unknown input": (INFER, request_json(name="img"), 400, "img"),
    "no JSON": (INFER, b"{", 400, "JSON"),
    "empty body": (INFER, b"", 400, "JSON"),
    "unknown model": ("/v2/models/nobody/infer", request_json(), 404, "nobody"),
    "unknown version": ("/v2/models/classifier/versions/7/infer", request_json(), 404, "7"),
    "unknown path": ("/v3/anything", request_json(), 404, "/v2"),
}


@pytest.mark.parametrize("what", sorted(REFUSED))
def test_bad_requests_are_refused_clearly(client: httpx.Client, what: str) -> None:
    path, body, status, says = REFUSED[what]
    answer = client.post(path, content=body, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    assert says in answer.json()["error"]


def test_json_of_ten_thousand_pictures_is_refused_and_the_same_in_binary_answered(
    served: LocalCluster, client: httpx.Client, trained: Trained
) -> None:
    many = np.tile(trained.pictures, (23, 1, 1, 1))[:10_000]
    with neighbours(served, trained) as wrong:
        refused = infer(client, many, binary=False)
        assert refused.status_code == 413, refused.text
        assert "binary" in refused.json()["error"]
        got = logits_of(infer(client, many))
    assert got.shape == (10_000, 10)
    np.testing.assert_allclose(got[-450:], np.tile(got[:450], (1, 1))[np.arange(9550, 10_000) % 450], atol=1e-3)
    assert wrong == []


def raw(served: LocalCluster, head: str, body: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", served.http_port), timeout=10)
    connection.sendall(f"{head}\r\nHost: x\r\n".encode() + body)
    return connection


def test_bodies_cut_short_disturb_nobody(served: LocalCluster, client: httpx.Client, trained: Trained) -> None:
    with neighbours(served, trained) as wrong:
        for length in (1, 100, 5_000, 100_000):
            half = f"Content-Length: {length * 2}\r\n\r\n".encode() + b"x" * length
            raw(served, f"POST {INFER} HTTP/1.1", half).close()
        raw(served, f"POST {INFER} HTTP/1.1", b"Content-Le").close()
        time.sleep(0.5)
    assert wrong == []
    logits_of(infer(client, trained.pictures[:1]))


def test_clients_that_leave_under_load_disturb_nobody(
    served: LocalCluster, trained: Trained, client: httpx.Client
) -> None:
    """Five hundred clients ask and hang up at once, in the middle of their neighbours' batches."""
    body, headers = encode_request({"image": trained.pictures[:8]}, binary=True)
    request = build_request("POST", INFER, "x", headers, body)

    async def leave(index: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", served.http_port)
        writer.write(request)
        await writer.drain()
        if index % 3:
            await asyncio.sleep(0.001 * (index % 5))
        writer.transport.abort()

    async def crowd() -> None:
        for start in range(0, 500, 50):
            await asyncio.gather(*(leave(index) for index in range(start, start + 50)))

    with neighbours(served, trained) as wrong:
        asyncio.run(crowd())
    refused = [line for line in wrong if not line.startswith("503")]  # a full queue is an honest answer
    assert refused == []
    np.testing.assert_allclose(
        logits_of(infer(client, trained.pictures[:3])), trained.expected(trained.int8, trained.pictures[:3]), atol=1e-3
    )


def test_a_full_queue_answers_503_with_retry_after_and_the_rest_rightly(
    served: LocalCluster, trained: Trained
) -> None:
    pictures = np.concatenate([trained.pictures[:16]] * 16)  # more work than 512 of them can wait for
    body, headers = encode_request({"image": pictures}, binary=True, binary_output=True)
    expected = np.tile(np.argmax(trained.expected(trained.int8, trained.pictures[:16]), axis=1), 16)

    request = build_request("POST", INFER, "x", headers, body)

    async def burst() -> list[httpx.Response]:
        """800 connections first, then a request on each: all there before the first batch is done."""
        pairs = await asyncio.gather(*(asyncio.open_connection("127.0.0.1", served.http_port) for _ in range(800)))
        for _, writer in pairs:
            writer.write(request)
        return [await answer_on(reader, writer) for reader, writer in pairs]

    answers = asyncio.run(burst())
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 503}, statuses
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert "max_queued_requests" in answer.json()["error"]
        else:
            np.testing.assert_array_equal(np.argmax(logits_of(answer), axis=1), expected)


async def answer_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> httpx.Response:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    content = await reader.readexactly(int(headers["content-length"]))
    writer.close()
    return httpx.Response(int(head[0].split()[1]), headers=headers, content=content)


def test_a_timeout_that_cannot_be_met_is_refused_at_once(client: httpx.Client, trained: Trained) -> None:
    answer = infer(client, trained.pictures[:1], timeout=1)
    assert answer.status_code == 503, answer.text
    assert int(answer.headers["retry-after"]) >= 1
    assert "timeout" in answer.json()["error"]
    logits_of(infer(client, trained.pictures[:1], timeout=20_000_000))


def test_settings_change_without_a_restart(served: LocalCluster, client: httpx.Client, trained: Trained) -> None:
    """`user_config` swaps the variant between two batches: same processes, no request lost."""
    mark = served.cluster_id
    replicas = {p.pid for p in marked(mark) if "ServeReplica" in " ".join(p.cmdline())}
    assert replicas
    plan = plan_of(trained.store, trained.int8, max_batch_size=16, max_queued_requests=64)
    config = serve_config(plan, http_host="127.0.0.1", http_port=served.http_port)
    try:
        with neighbours(served, trained) as wrong:
            config["applications"][0]["deployments"][0]["user_config"]["variant"] = trained.fp32.id
            served.deploy(config)
            wait_for_version(client, trained.fp32.id)
            np.testing.assert_allclose(
                logits_of(infer(client, trained.pictures[:5])),
                trained.expected(trained.fp32, trained.pictures[:5]), atol=1e-3,
            )  # fmt: skip
        # int8 and fp32 may disagree on a label; what may not happen is a request that is lost.
        assert [line for line in wrong if "wrong answer" not in line] == []
        assert {p.pid for p in marked(mark) if "ServeReplica" in " ".join(p.cmdline())} == replicas
    finally:
        config["applications"][0]["deployments"][0]["user_config"]["variant"] = trained.int8.id
        served.deploy(config)
        wait_for_version(client, trained.int8.id)


def wait_for_version(client: httpx.Client, version: str, timeout_s: float = 60.0) -> None:
    end = time.monotonic() + timeout_s
    while client.get("/v2/models/classifier").json()["versions"] != [version]:
        assert time.monotonic() < end, f"version {version} never came"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster whose deployments the tests below replace."""
    with LocalCluster("another", state_dir=tmp_path_factory.mktemp("state")) as cluster:
        yield cluster


def test_a_failing_model_fails_nobody_but_the_request_that_it_chokes_on(
    another: LocalCluster, trained: Trained
) -> None:
    """A hundred requests at once, every tenth of them poison to the model: those get 500, the others their answers."""
    deploy(another, plan_of(trained.store, poisonous_variant(trained.store), max_batch_size=32))

    def picture(index: int) -> NDArray[np.uint8]:
        value = 255 if index % 10 == 0 else index
        return np.full((1, 1, 28, 28), value, np.uint8)

    async def ask_all() -> list[httpx.Response]:
        base, limits = f"http://127.0.0.1:{another.http_port}", httpx.Limits(max_connections=100)
        bodies = [encode_request({"image": picture(index)}, binary=True, binary_output=True) for index in range(100)]
        async with httpx.AsyncClient(base_url=base, timeout=60, limits=limits) as own:
            return await asyncio.gather(*(own.post(INFER, content=body, headers=head) for body, head in bodies))

    for _ in range(3):  # and again: the batcher is not wedged
        for index, answer in enumerate(asyncio.run(ask_all())):
            if index % 10 == 0:
                assert answer.status_code == 500
                assert answer.json()["error"]
            else:
                np.testing.assert_array_equal(logits_of(answer), np.full((1, 10), index, np.float32))


def test_a_killed_replica_is_replaced_under_load(another: LocalCluster, trained: Trained) -> None:
    """kill -9 of one of two replicas under load: only requests that it held may fail, and it serves again."""
    deploy(another, plan_of(trained.store, trained.int8, num_replicas=2, num_cpus_per_replica=0.5))
    replicas = [p for p in marked(another.cluster_id) if "ServeReplica" in " ".join(p.cmdline())]
    victim = replicas[-1]
    body, headers = encode_request({"image": trained.pictures[:1]}, binary=True, binary_output=True)
    request = build_request("POST", INFER, "x", headers, body)
    target = Target("127.0.0.1", another.http_port, [request], [b'"outputs"'])
    threading.Timer(3.0, victim.kill).start()
    result = run_open_loop(target, poisson(50.0, 20.0, seed=1), duration_s=20.0, timeout_s=10.0)
    assert not victim.is_running() or victim.status() == psutil.STATUS_ZOMBIE
    late = result.scheduled_s > 15.0
    assert result.ok[late].all(), f"it does not serve again: {result.outcomes()}"
    failed = int((~result.ok).sum())
    assert failed <= 0.1 * result.count, f"{failed} of {result.count} failed: {result.outcomes()}"
