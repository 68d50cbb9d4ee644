"""Who is measured: ours, Mosec, LitServe, BentoML, and stock Ray Serve with and without its batching.

    with contestant.start(work, setting) as running:
        running.target      # requests and what their answers must contain, for wrk and for our own generator alike

Each serves the same file on one ONNX Runtime thread. A name may end in ":2", which gives it two worker processes.
Every one is checked before it is measured: each picture must be answered as the runtime itself answers it.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import os
import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peers import environments
from benchmarks.serving.processes import started
from benchmarks.serving.works import Work
from cluster.control.planner import plan_of
from cluster.control.serve_config import serve_config
from cluster.errors import ClusterError, ConfigError, InferenceFailed
from cluster.load import Target, build_request
from cluster.local import LocalCluster, free_ports
from cluster.plans import Configuration
from cluster.runtimes import RuntimeConfig

HOST = "127.0.0.1"
PEERS = ("mosec", "litserve", "bentoml")
DEFAULT = ("ours", "ours-direct", "mosec", "litserve", "bentoml", "ray-batch", "ray")
MAX_BATCH_SIZE = 64
WAIT_S = 0.002
MODEL_NAME = "classifier"
_SCRIPTS = Path(__file__).resolve().parent.parent / "serving_peers"
_ROOT = _SCRIPTS.parent.parent
_UP_S = 90.0
_BINARY = {"Content-Type": "application/octet-stream"}
_BOUNDARY = "sluice"


@dataclass(frozen=True)
class Setting:
    """What all servers of one run share."""

    venvs: Path
    server_cores: list[int]
    """None of them: on any."""
    max_latency_s: float = 60.0
    """For who chooses batches by it."""
    deadline_s: float | None = None
    """For ours, of each request; None: they have none."""


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    name: str
    target: Target
    speaks: str
    cpu_seconds: Callable[[], float]
    batches: Callable[[], tuple[int, int] | None]
    """(requests, batches) so far; None where it does not tell."""
    started_s: float = 0.0


@dataclass(frozen=True)
class _Wire:
    """How one contestant is asked and answers."""

    path: str
    speaks: str
    request: Callable[[Work, int], tuple[dict[str, str], bytes]]
    expect: Callable[[Work, int], bytes]


@dataclass(frozen=True)
class Contestant:
    """One server to measure."""

    name: str
    runs: Callable[[Work, Setting, int], AbstractContextManager[Running]] = field(repr=False)
    workers: int = 1

    @contextlib.contextmanager
    def start(self, work: Work, setting: Setting) -> Iterator[Running]:
        """Start it, wait until it answers, check every answer; end it after the block."""
        with self.runs(work, setting, self.workers) as running:
            check(running, work)
            yield running


def contestant_named(text: str) -> Contestant:
    """Raises ConfigError for a name that is none."""
    name, _, workers = text.partition(":")
    runs: dict[str, Callable[[Work, Setting, int], AbstractContextManager[Running]]] = {
        "ours": _ours, "ours-direct": _ours_direct, "mosec": _mosec, "litserve": _litserve, "bentoml": _bentoml,
        "ray-batch": _ray_batched, "ray": _ray_single,
    }  # fmt: skip
    if name not in runs or not re.fullmatch(r"|[1-9]\d?", workers):
        raise ConfigError(f"--only {text!r} is no server; there are {', '.join(runs)}, each with :N for N workers")
    return Contestant(text, runs[name], int(workers or 1))


# ---- answers


def check(running: Running, work: Work) -> None:
    """Every picture must be answered as the runtime itself does it. Raises InferenceFailed naming the first that is
    not."""
    connection = http.client.HTTPConnection(running.target.host, running.target.port, timeout=30.0)
    try:
        for number, request in enumerate(running.target.requests):
            status, found = _ask(connection, request)
            assert running.target.expect is not None
            if status != 200 or running.target.expect[number] not in b"\r\n\r\n" + found:
                raise InferenceFailed(
                    f"{running.name} answered picture {number} with {status} {found[:200]!r}; the runtime itself says "
                    f"class {work.classes[number]}, {np.round(work.logits[number], 2).tolist()}"
                )
    finally:
        connection.close()


def _ask(connection: http.client.HTTPConnection, request: bytes) -> tuple[int, bytes]:
    """Through an ordinary client, not the one that measures."""
    head, _, body = request.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    connection.request(method, path, body, dict(line.split(": ", 1) for line in lines))
    answer = connection.getresponse()
    return answer.status, answer.read()


def _target(wire: _Wire, work: Work, port: int) -> Target:
    requests, expect = [], []
    for number in range(len(work.bodies)):
        headers, body = wire.request(work, number)
        requests.append(build_request("POST", wire.path, f"{HOST}:{port}", headers, body))
        expect.append(wire.expect(work, number))
    return Target(HOST, port, requests, expect)


def _wait(name: str, target: Target, alive: Callable[[], None], seconds: float = _UP_S) -> None:
    """Until the first request is answered. Raises ClusterError with the server's last words."""
    end, said = time.monotonic() + seconds, "nothing"
    while time.monotonic() < end:
        alive()
        with contextlib.suppress(OSError, http.client.HTTPException):
            connection = http.client.HTTPConnection(target.host, target.port, timeout=30.0)
            try:
                status, found = _ask(connection, target.requests[0])
            finally:
                connection.close()
            if status == 200:
                return
            said = f"{status} {found[:200]!r}"
        time.sleep(0.1)
    raise ClusterError(f"{name} did not answer within {seconds:g} s; it said {said}")


def _raw(work: Work, number: int) -> tuple[dict[str, str], bytes]:
    return {"Content-Type": "image/jpeg"} if work.jpeg else _BINARY, work.bodies[number]


def _logits(work: Work, number: int) -> bytes:
    """Its bytes. Where those differ with the batch nothing but a 200 can be told under load, and what is compared is
    the head's end, which every answer has."""
    return work.logits[number].tobytes() if work.exact else b"\r\n\r\n"


# ---- servers in environments of their own


def _job(work: Work, setting: Setting, workers: int, port: int = 0) -> dict[str, Any]:
    """What served.py reads."""
    return {
        "model": str(work.model), "shape": list(work.shape), "jpeg": work.jpeg, "port": port, "workers": workers,
        "max_batch_size": MAX_BATCH_SIZE, "wait_s": WAIT_S, "max_latency_s": setting.max_latency_s,
    }  # fmt: skip


@contextlib.contextmanager
def _peer(
    name: str, command: list[str], wire: _Wire, work: Work, setting: Setting, workers: int,
    batches: Callable[[int], tuple[int, int] | None] = lambda port: None,
) -> Iterator[Running]:  # fmt: skip
    """`command` within the peer's environment; PORT in it becomes the port."""
    began = time.monotonic()
    (port,) = free_ports(1)
    environment = environments.variables(setting.venvs, name) | {
        "SLUICE_BENCH_JOB": json.dumps(_job(work, setting, workers, port)), "PYTHONPATH": str(_SCRIPTS),
        "BENTOML_DO_NOT_TRACK": "True",
    }  # fmt: skip
    folder = setting.venvs.absolute() / name / "bin"
    words = [str(folder / command[0]), *(word.replace("PORT", str(port)) for word in command[1:])]
    target = _target(wire, work, port)
    with started(words, environment, setting.server_cores) as server:
        _wait(name, target, server.check)
        yield Running(name, target, wire.speaks, server.cpu_seconds, lambda: batches(port), time.monotonic() - began)


def _mosec(work: Work, setting: Setting, workers: int) -> AbstractContextManager[Running]:
    script = str(_SCRIPTS / "mosec_server.py")
    command = ["python", script, "--address", HOST, "--port", "PORT", "--timeout", "60000", "--log-level", "warning"]
    wire = _Wire("/inference", "raw bytes in, logits as bytes out", _raw, _logits)
    return _peer("mosec", command, wire, work, setting, workers,
                 lambda port: _histogram(port, "mosec_service_batch_size"))  # fmt: skip


def _litserve(work: Work, setting: Setting, workers: int) -> AbstractContextManager[Running]:
    wire = _Wire("/predict", "raw bytes in, logits as bytes out", _raw, _logits)
    return _peer("litserve", ["python", str(_SCRIPTS / "litserve_server.py")], wire, work, setting, workers)


def _bentoml(work: Work, setting: Setting, workers: int) -> AbstractContextManager[Running]:
    command = ["bentoml", "serve", "bentoml_service:Classify", "--working-dir", str(_SCRIPTS), "--host", HOST,
               "--port", "PORT"]  # fmt: skip
    form = f"multipart/form-data; boundary={_BOUNDARY}"

    def request(work: Work, number: int) -> tuple[dict[str, str], bytes]:
        body = work.bodies[number]
        if not work.jpeg:
            text = json.dumps({"pictures": [base64.b64encode(body).decode()]}).encode()
            return {"Content-Type": "application/json"}, text
        head = f'--{_BOUNDARY}\r\nContent-Disposition: form-data; name="pictures"; filename="p.jpg"\r\n'
        return {"Content-Type": form}, (
            f"{head}Content-Type: image/jpeg\r\n\r\n".encode() + body + f"\r\n--{_BOUNDARY}--\r\n".encode()
        )

    speaks = ("a multipart form" if work.jpeg else "base64 in JSON") + " in, the class as JSON out"
    wire = _Wire("/classify", speaks, request, lambda work, number: b"\r\n\r\n[%d]" % work.classes[number])
    return _peer("bentoml", command, wire, work, setting, workers,
                 lambda port: _histogram(port, "bentoml_service_adaptive_batch_size"))  # fmt: skip


def _histogram(port: int, name: str) -> tuple[int, int] | None:
    """(sum, count) of a Prometheus histogram, over all its labels; None if it is not there."""
    text = _get(port, "/metrics")
    found: list[int] = []
    for what in ("sum", "count"):
        values = re.findall(rf"^{name}_{what}(?:{{[^}}]*}})? ([\d.e+]+)$", text, re.MULTILINE)
        if not values:
            return None
        found.append(int(sum(map(float, values))))
    return found[0], found[1]


def _get(port: int, path: str) -> str:
    """"" for what is not there."""
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}{path}", timeout=10.0) as answer:
            text: str = answer.read().decode()
            return text
    except OSError:
        return ""


# ---- servers on Ray


@contextlib.contextmanager
def _on_ray(setting: Setting, *, ha_proxy: bool) -> Iterator[LocalCluster]:
    """A cluster whose replicas find this folder's modules, as the peers' scripts are found."""
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(_ROOT), *([path] if path else [])])
    try:
        cluster = LocalCluster(f"bench-serving-{os.getpid()}", ha_proxy=ha_proxy, cpus=setting.server_cores)
        with cluster:
            yield cluster
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path


def _alive(cluster: LocalCluster) -> Callable[[], None]:
    def check() -> None:
        if not cluster.is_running():
            raise ClusterError("the local cluster ended by itself")

    return check


@contextlib.contextmanager
def _stock(name: str, builder: str, work: Work, setting: Setting, workers: int) -> Iterator[Running]:
    began = time.monotonic()
    wire = _Wire("/", "raw bytes in, logits as bytes out", _raw, _logits)
    with _on_ray(setting, ha_proxy=False) as cluster:
        deployment = "Batched" if builder == "build_batched" else "Single"
        cluster.deploy({
            "http_options": {"host": HOST, "port": cluster.http_port},
            "applications": [{
                "name": "stock", "route_prefix": "/", "import_path": f"benchmarks.serving_peers.ray_serve:{builder}",
                "args": _job(work, setting, workers),
                "deployments": [{"name": deployment, "num_replicas": workers}],
            }],
        })  # fmt: skip
        target = _target(wire, work, cluster.http_port)
        _wait(name, target, _alive(cluster))
        yield Running(name, target, wire.speaks, cluster.cpu_seconds, lambda: _told(cluster.http_port),
                      time.monotonic() - began)  # fmt: skip


def _told(port: int) -> tuple[int, int] | None:
    """ray_serve.py's own count; of several replicas it is one's."""
    try:
        said = json.loads(_get(port, "/stats"))
        return said["requests"], said["batches"]
    except (ValueError, KeyError, TypeError):
        return None


def _ray_batched(work: Work, setting: Setting, workers: int) -> AbstractContextManager[Running]:
    return _stock("ray-batch", "build_batched", work, setting, workers)


def _ray_single(work: Work, setting: Setting, workers: int) -> AbstractContextManager[Running]:
    return _stock("ray", "build_single", work, setting, workers)


def _ours(work: Work, setting: Setting, workers: int) -> AbstractContextManager[Running]:
    return _sluice("ours", work, setting, workers)


def _ours_direct(work: Work, setting: Setting, workers: int) -> AbstractContextManager[Running]:
    (port,) = free_ports(1)
    return _sluice("ours-direct", work, setting, workers, port)


@contextlib.contextmanager
def _sluice(
    name: str, work: Work, setting: Setting, workers: int, direct_port: int | None = None
) -> Iterator[Running]:
    """As `sluice serve` does it: a plan, the Serve config of it; HAProxy in front, or the replicas' own port."""
    began = time.monotonic()
    plan = plan_of(
        Configuration(
            variant_id=work.variant.id, variant_name=work.variant.name, runtime=RuntimeConfig(name="onnxruntime"),
            max_batch_size=MAX_BATCH_SIZE, max_queued_requests=1024, num_replicas=workers,
        ),
        model_name=MODEL_NAME, store=work.store.root, made_by="benchmarks.serving",
        default_timeout_s=setting.deadline_s, direct_port=direct_port,
    )  # fmt: skip
    path = f"/v2/models/{plan.model_name}/infer"
    with _on_ray(setting, ha_proxy=True) as cluster:
        cluster.deploy(serve_config(plan, http_host=HOST, http_port=cluster.http_port))
        port = direct_port or cluster.http_port
        wire = _Wire(path, "raw bytes in, logits as bytes out", _raw_both_ways, _logits)
        target = _target(wire, work, port)
        _wait(name, target, _alive(cluster))
        yield Running(name, target, wire.speaks, cluster.cpu_seconds, lambda: _ours_told(port, plan.model_name),
                      time.monotonic() - began)  # fmt: skip


def _raw_both_ways(work: Work, number: int) -> tuple[dict[str, str], bytes]:
    headers, body = _raw(work, number)
    return headers | {"Accept": "application/octet-stream"}, body


def _ours_told(port: int, model_name: str) -> tuple[int, int] | None:
    """Triton's statistics extension: inferences over executions. None in a version that has none."""
    try:
        (said,) = json.loads(_get(port, f"/v2/models/{model_name}/stats"))["model_stats"]
        return int(said["inference_count"]), int(said["execution_count"])
    except (ValueError, KeyError, TypeError):
        return None

