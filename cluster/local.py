"""Start and stop a local Ray cluster with the right environment, and clean up exactly what was started.

    with LocalCluster("demo-after", cpus=[0]) as cluster:
        cluster.deploy(serve_config)
        ...  # http://127.0.0.1:{cluster.http_port}

Any number run side by side: every port and folder is the cluster's own.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx
import psutil

from cluster.control.serve_env import RAY_ENVIRONMENT, throughput_environment
from cluster.errors import ClusterError, ConfigError
from cluster.housekeeping import stand_behind
from cluster.local_supervisor import end_processes

MARK = "SLUICE_CLUSTER_ID"
_TEMP_PREFIX = "/tmp/sluice-"
_START_S = 60.0
_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,80}")
_ATTEMPTS = 5
_DIED = "ActorDiedError"
_ANSI = re.compile(r"\x1b\[[0-9;]*m")


def default_state_dir() -> Path:
    """$SLUICE_STATE or ~/.local/share/sluice/clusters: one small file for each cluster that runs."""
    return Path(os.environ.get("SLUICE_STATE", Path.home() / ".local/share/sluice/clusters"))


@dataclass(frozen=True)
class ClusterRecord:
    """What the state file of a running cluster says."""

    name: str
    cluster_id: str
    supervisor_pid: int
    created: float
    http_port: int
    dashboard_address: str
    address: str
    temp_dir: str

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def supervisor(self) -> psutil.Process | None:
        """The supervisor if it still runs; a reused pid is not mistaken for it."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(self.supervisor_pid)
            if abs(process.create_time() - self.created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        return None

    def leavings(self) -> list[psutil.Process]:
        """Processes that carry this cluster's mark, wherever they hang: for when the supervisor itself was killed."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.pid != os.getpid() and process.environ().get(MARK) == self.cluster_id:
                    found.append(process)
        return found


def free_ports(count: int) -> list[int]:
    """Distinct TCP ports that are free now on 127.0.0.1."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _free_block(size: int) -> int:
    """The first of `size` ports on which nobody listens. A replica's port must not be another cluster's as well: its
    HAProxy goes on sending to the ports that it knows."""
    taken = {c.laddr.port for c in psutil.net_connections("tcp") if c.laddr and c.status == psutil.CONN_LISTEN}
    firsts = [first for first in range(20_000, 32_000, size) if taken.isdisjoint(range(first, first + size))]
    if not firsts:
        raise ClusterError(f"no block of {size} free ports from 20000 to 32000; stop what listens there")
    return secrets.choice(firsts)


def serve_environment(*, ha_proxy: bool, temp_dir: str, ports: list[int]) -> dict[str, str]:
    """Environment of Ray and Serve: the throughput-optimised path with a HAProxy of our own, or Ray's defaults."""
    if not ha_proxy:
        return dict(RAY_ENVIRONMENT)
    proxy = f"{temp_dir}/ha"  # short: HAProxy appends a node id, and takes socket paths of 97 bytes at most
    first = _free_block(200)
    return throughput_environment() | {
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{proxy}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{proxy}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": proxy,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{proxy}/server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{proxy}/metrics.sock",
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(ports[0]),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(ports[1]),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(ports[2]),
        "RAY_SERVE_FALLBACK_PROXY_GRPC_PORT": str(ports[3]),
        "RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": str(first),
        "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": str(first + 99),
        "RAY_SERVE_DIRECT_INGRESS_MIN_GRPC_PORT": str(first + 100),
        "RAY_SERVE_DIRECT_INGRESS_MAX_GRPC_PORT": str(first + 199),
    }


class LocalCluster:
    """A single-node Ray head under a supervisor; a context manager. Raises ClusterError if it does not come up."""

    def __init__(
        self, name: str, *, http_port: int = 0, ha_proxy: bool = True, cpus: list[int] | None = None, num_cpus: int = 4,
        state_dir: Path | None = None, environment: Mapping[str, str] | None = None,
    ) -> None:  # fmt: skip
        """`environment` is of Ray and Serve, over what Sluice sets."""
        if not _NAME.fullmatch(name):
            raise ConfigError(f"name={name!r} is no name of a cluster or run; use letters, digits, . _ and -")
        self.name = name
        self.state_dir = state_dir or default_state_dir()
        self._ha_proxy = ha_proxy
        self._cpus = cpus or []
        self._num_cpus = num_cpus
        self._wanted_port = http_port
        self._environment = dict(environment or {})
        self._supervisor: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> LocalCluster:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start, and return once Ray's dashboard answers; whatever goes wrong, nothing stays behind."""
        state_file = self.state_dir / f"{self.name}.json"
        if any(record.name == self.name for record in list_clusters(self.state_dir)):
            raise ConfigError(f"a local cluster {self.name!r} runs already; stop it first: sluice stop {self.name}")
        if self._wanted_port and _listening(self._wanted_port):
            raise ConfigError(f"port {self._wanted_port} is taken by another program; pass --port another one")
        self.cluster_id = cluster_id = uuid.uuid4().hex[:8]
        temp_dir = f"{_TEMP_PREFIX}{cluster_id}"  # short: Ray's socket names below it have a limit of 107 bytes
        ports = free_ports(11)
        gcs, dashboard, agent, agent_grpc, metrics, client = ports[:6]
        self.http_port = self._wanted_port or ports[10]
        self.address = f"127.0.0.1:{gcs}"
        self.dashboard_address = f"http://127.0.0.1:{dashboard}"
        self.temp_dir = temp_dir
        command = [
            sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--disable-usage-stats",
            "--node-ip-address=127.0.0.1", f"--port={gcs}", f"--temp-dir={temp_dir}", f"--num-cpus={self._num_cpus}",
            "--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}",
            f"--dashboard-agent-listen-port={agent}", f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--metrics-export-port={metrics}", f"--ray-client-server-port={client}",
            f"--object-store-memory={256 << 20}",
        ]  # fmt: skip
        record = {
            "name": self.name, "cluster_id": cluster_id, "http_port": self.http_port, "address": self.address,
            "dashboard_address": self.dashboard_address, "temp_dir": temp_dir,
        }  # fmt: skip
        spec = {
            "command": command, "cpus": self._cpus, "temp_dir": temp_dir, "state_file": str(state_file),
            "record": record,
        }  # fmt: skip
        serve = serve_environment(ha_proxy=self._ha_proxy, temp_dir=temp_dir, ports=ports[6:10])
        self.env = serve | self._environment
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self._supervisor = subprocess.Popen(
            [sys.executable, "-m", "cluster.local_supervisor", json.dumps(spec)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=inherited | self.env | {MARK: cluster_id},
            start_new_session=True,  # Ctrl-C is for us; the supervisor hears of our end through the pipe
        )
        try:
            self._wait_until_up()
        except BaseException:
            self.stop()
            raise

    def _wait_until_up(self) -> None:
        assert self._supervisor is not None
        assert self._supervisor.stdout is not None
        end = time.monotonic() + _START_S
        while time.monotonic() < end:
            if self._supervisor.poll() is not None:
                words = self._supervisor.stdout.read().decode(errors="replace").strip()
                raise ClusterError(words or "the cluster's supervisor died; start it again")
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(f"{self.dashboard_address}/api/version", timeout=2.0).status_code == 200:
                    return
            time.sleep(0.1)
        log = Path(self.temp_dir) / "ray-start.log"
        tail = log.read_text()[-600:] if log.exists() else "no log"
        raise ClusterError(f"Ray did not come up within {_START_S:g} s on {self.address}; its last words: {tail}")

    def deploy(self, config: dict[str, Any], *, timeout_s: float = 120.0) -> None:
        """Deploy a Serve config and wait until every application runs. Raises ClusterError with Ray's own message."""
        deploy_config(self.dashboard_address, config, timeout_s=timeout_s)
        if self._ha_proxy:  # Ray's defaults are left as they are: they are what others are compared with
            stand_behind(self.pids())

    def pids(self) -> list[int]:
        """All processes of this cluster, the supervisor first."""
        return [process.pid for process in self._processes()]

    def is_running(self) -> bool:
        """False once it was stopped, from here or by `sluice stop`, or Ray ended by itself."""
        return self._supervisor is not None and self._supervisor.poll() is None

    def _processes(self) -> list[psutil.Process]:
        return [] if self._supervisor is None else _with_all_below(self._supervisor.pid)

    def cpu_seconds(self) -> float:
        """CPU seconds used so far by all of them that live, Ray's own and HAProxy included."""
        return 0.0 if self._supervisor is None else cpu_seconds_below(self._supervisor.pid)

    def stop(self) -> None:
        """End it and everything below it; a second call does nothing."""
        if self._supervisor is None:
            return
        supervisor, self._supervisor = self._supervisor, None
        end_supervisor(supervisor)
        # If it could not do its work (killed, say), what is left is found by our own mark, never by the name alone:
        # that may be another cluster's by now.
        for record in list_clusters(self.state_dir):
            if record.cluster_id == self.cluster_id:
                _end(record, self.state_dir)


def end_supervisor(supervisor: subprocess.Popen[bytes]) -> None:
    """Have it end what it started, and wait for it."""
    if supervisor.stdin is not None:
        supervisor.stdin.close()
    with contextlib.suppress(ProcessLookupError):
        supervisor.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        supervisor.wait(timeout=30.0)
    if supervisor.stdout is not None:
        supervisor.stdout.close()


def _with_all_below(pid: int) -> list[psutil.Process]:
    with contextlib.suppress(psutil.NoSuchProcess):
        top = psutil.Process(pid)
        return [top, *top.children(recursive=True)]
    return []


def cpu_seconds_below(pid: int) -> float:
    """CPU seconds used so far by a process and all below it that live."""
    total = 0.0
    for process in _with_all_below(pid):
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def deploy_config(
    dashboard_address: str, config: dict[str, Any], *, timeout_s: float, only: str | None = None, retries: bool = True
) -> None:
    """PUT a Serve config to a Ray dashboard and wait until all its applications run, or `only` that one. Serve starts a
    replica that fails a few times more; without `retries` the first failure counts.

    Raises ClusterError if the dashboard does not answer, refuses the config, or an application fails.
    """
    url = f"{dashboard_address.rstrip('/')}/api/serve/applications/"
    names = {only} if only else {application.get("name", "default") for application in config["applications"]}
    states: dict[str, str] = {}
    end = time.monotonic() + timeout_s
    try:
        with httpx.Client(timeout=60.0) as client:
            answer = _answer(client, "PUT", url, json=config)
            while answer.status_code >= 500 and _DIED in answer.text and time.monotonic() < end:
                time.sleep(1.0)  # Serve gave up on a proxy that was slow to start, and starts another
                answer = _answer(client, "PUT", url, json=config)
            if answer.status_code != 200:
                raise ClusterError(f"{url} refused the config ({answer.status_code}): {answer.text[-600:]}")
            while time.monotonic() < end:
                applications = _answer(client, "GET", url).json().get("applications", {})
                states = {name: applications.get(name, {}).get("status", "NOT_STARTED") for name in names}
                for name, state in states.items():
                    failed = state in ("DEPLOY_FAILED", "UNHEALTHY")
                    if failed or (not retries and _retried(applications.get(name, {}))):
                        raise ClusterError(f"application {name!r} is {state}: {_reason(applications[name])}")
                if set(states.values()) == {"RUNNING"}:
                    return
                time.sleep(0.2)
    except httpx.HTTPError as error:
        raise ClusterError(f"{url} does not answer ({error}); is Ray running there, with its dashboard?") from error
    raise ClusterError(f"after {timeout_s:g} s the applications are {states}; see {dashboard_address}")


def _answer(client: httpx.Client, method: str, url: str, **content: Any) -> httpx.Response:
    """Ray's dashboard drops a connection now and then while its parts start, after minutes of answers or before any;
    what is asked of it here may be asked twice."""
    for _ in range(_ATTEMPTS - 1):
        with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            return client.request(method, url, **content)
        time.sleep(0.5)
    return client.request(method, url, **content)


def _retried(application: dict[str, Any]) -> bool:
    deployments = application.get("deployments", {}).values()
    return any(deployment.get("message", "").startswith("A replica failed to start") for deployment in deployments)


def _reason(application: dict[str, Any]) -> str:
    """Ray's message, and out of the tracebacks in it only the lines that say what went wrong."""
    parts = [application.get("message", "")]
    parts += [deployment.get("message", "") for deployment in application.get("deployments", {}).values()]
    lines = [line for line in _ANSI.sub("", "\n".join(parts)).splitlines() if line and not line.startswith(" ")]
    telling = [line for line in lines if "Traceback" not in line and not line.startswith("ray::")]
    return "; ".join(dict.fromkeys(telling))[:2000] or "Ray gives no reason"


def list_clusters(state_dir: Path | None = None) -> list[ClusterRecord]:
    """Clusters with a state file that have a supervisor or leavings; files of vanished ones are removed."""
    records = []
    for path in sorted((state_dir or default_state_dir()).glob("*.json")):
        try:
            record = ClusterRecord(**json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            continue  # being written or removed just now
        if record.supervisor() or record.leavings():
            records.append(record)
        else:
            _forget(record, path.parent)
    return records


def stop_cluster(name: str, state_dir: Path | None = None) -> None:
    """Stop a cluster from any process, also when its supervisor is dead. Raises ClusterError if there is none."""
    folder = state_dir or default_state_dir()
    record = next((r for r in list_clusters(folder) if r.name == name), None)
    if record is None:
        raise ClusterError(f"no local cluster {name!r} runs here; see sluice status")
    _end(record, folder)


def _end(record: ClusterRecord, folder: Path) -> None:
    supervisor = record.supervisor()
    if supervisor is not None:
        with contextlib.suppress(psutil.NoSuchProcess):
            supervisor.terminate()
        end = time.monotonic() + 30.0
        # Not psutil's wait: a supervisor whose owner has not collected it yet stays in the table as a zombie.
        while record.supervisor() is not None and time.monotonic() < end:
            time.sleep(0.05)
    end_processes(record.leavings)
    _forget(record, folder)


def _forget(record: ClusterRecord, folder: Path) -> None:
    if record.temp_dir.startswith(_TEMP_PREFIX):
        shutil.rmtree(record.temp_dir, ignore_errors=True)
    (folder / f"{record.name}.json").unlink(missing_ok=True)
