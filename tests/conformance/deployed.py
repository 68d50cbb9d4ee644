"""Subjects behind HAProxy, one after the other on one local cluster, as `sluice serve` deploys them."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from cluster.artifacts import ArtifactStore
from cluster.control.serve_config import serve_config
from cluster.errors import ClusterError
from cluster.local import MARK, LocalCluster, free_ports
from cluster.plans import Plan
from cluster.runtimes import RuntimeConfig
from tests.conformance.models import Subject
from tests.conformance.suite import MODEL_NAME, ROOT, Where

_UP_S = 60.0


@dataclass(frozen=True, kw_only=True)
class Deployed(Where):
    """Where it answers, and past HAProxy."""

    direct: str
    replica: psutil.Process
    proxies: tuple[psutil.Process, ...]


class Site:
    """One local cluster; a context manager. `serve` is what suite.run takes as its server."""

    def __init__(self, name: str, state_dir: Path) -> None:
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        (self._grpc_port,) = free_ports(1)
        self._cluster = LocalCluster(name, state_dir=state_dir, environment={"PYTHONPATH": path})

    def __enter__(self) -> Site:
        self._cluster.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._cluster.stop()

    @contextlib.contextmanager
    def serve(self, store: ArtifactStore, subject: Subject, *, repository: bool = True) -> Iterator[Deployed]:
        """Until another one is served: nothing is taken down at the end of the block. `repository`: clients may load
        and unload."""
        (direct,) = free_ports(1)
        plan = Plan(
            model_name=MODEL_NAME, variant_id=subject.variant.id, variant_name=subject.variant.name,
            runtime=RuntimeConfig(name="onnxruntime"), store=str(store.root), made_by="tests.conformance",
            max_batch_size=16, max_queued_requests=256, direct_port=direct, repository=repository,
        )  # fmt: skip
        config = serve_config(plan, http_host="127.0.0.1", http_port=self._cluster.http_port, grpc_port=self._grpc_port)
        self._cluster.deploy(config)
        addresses = [f"127.0.0.1:{port}" for port in (self._cluster.http_port, direct)]
        for address in addresses:
            _wait(address, subject)
        replica, proxies = self._processes()
        grpc = f"127.0.0.1:{self._grpc_port}"
        yield Deployed(
            http=addresses[0], grpc=grpc, repository=repository, direct=addresses[1], replica=replica, proxies=proxies
        )

    def _processes(self) -> tuple[psutil.Process, tuple[psutil.Process, ...]]:
        """(the replica, HAProxy's)"""
        replicas, proxies = [], []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) != self._cluster.cluster_id:
                    continue
                if process.name() == "haproxy":
                    proxies.append(process)
                elif "ServeReplica" in " ".join(process.cmdline()):
                    replicas.append(process)
        return max(replicas, key=lambda process: process.create_time()), tuple(proxies)


def _wait(address: str, subject: Subject) -> None:
    """Until it is this subject that answers there, time after time: the one before may be draining."""
    end, right, said = time.monotonic() + _UP_S, 0, "nothing"
    while right < 20:
        try:
            answer = httpx.get(f"http://{address}/v2/models/{MODEL_NAME}", timeout=5.0)
            said = answer.text[:200]
            right = right + 1 if answer.status_code == 200 and subject.variant.id in answer.json()["versions"] else 0
        except httpx.HTTPError as error:
            right, said = 0, str(error)
        if time.monotonic() > end:
            raise ClusterError(f"{address} does not serve {subject.name} after {_UP_S:g} s; it says {said}")
        time.sleep(0.02)
