"""What the integration tests share: a trained small classifier in a store, and clusters that end with the test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.control.serve_config import serve_config
from cluster.local import MARK, LocalCluster
from cluster.plans import Plan
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.variants import Variant


@dataclass(frozen=True)
class Trained:
    """Variants of a classifier of the embedded digits, and the pictures that it was not trained on."""

    store: ArtifactStore
    torch: Variant
    fp32: Variant
    int8: Variant
    pictures: NDArray[np.uint8]

    def expected(self, variant: Variant, pictures: NDArray[np.uint8]) -> NDArray[np.generic]:
        """The variant's logits, computed in this process."""
        runtime = load_runtime(self.store, variant, RuntimeConfig(name="onnxruntime"))
        try:
            return runtime.infer({"image": pictures})["logits"]
        finally:
            runtime.close()


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    from train_jobs import datasets, loop, recipes
    from train_jobs.compression.compress import build_variants
    from train_jobs.compression.spec import default_spec
    from train_jobs.compression.trained import of_run

    config = recipes.cnn_digits().model_copy(update={"epochs": 3})
    dataset = datasets.load("digits")
    model = loop.train(config, dataset).model
    store = ArtifactStore(tmp_path_factory.mktemp("store"))
    passes = default_spec("cnn").without(["prune"])
    made = build_variants(store, of_run(model, config, dataset), dataset, passes)
    by_name = {v.name.rsplit("/", 1)[-1]: v for v in made}
    return Trained(store, by_name["fp32-torch"], by_name["fp32"], by_name["int8"], dataset.x_test)


@pytest.fixture
def state_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A state folder of the test's own, also for the commands that it runs."""
    monkeypatch.setenv("SLUICE_STATE", str(tmp_path / "clusters"))
    return tmp_path / "clusters"


def plan_of(store: ArtifactStore, variant: Variant, **changes: object) -> Plan:
    """The simplest plan: one replica of `variant` on ONNX Runtime."""
    plan = Plan(
        model_name="classifier", variant_id=variant.id, variant_name=variant.name,
        runtime=RuntimeConfig(name="onnxruntime"), store=str(store.root), made_by="test",
    )  # fmt: skip
    return plan.model_copy(update=changes)


def deploy(cluster: LocalCluster, plan: Plan) -> None:
    cluster.deploy(serve_config(plan, http_host="127.0.0.1", http_port=cluster.http_port))


def marked(cluster_id: str | None = None, *, state_dir: Path | None = None) -> list[psutil.Process]:
    """Living processes that carry the mark of one cluster, or of any whose state lies in `state_dir`."""
    assert (cluster_id is None) != (state_dir is None), "another test's cluster may run beside this one"
    found = []
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            ours = environment.get(MARK) == cluster_id if cluster_id else (
                MARK in environment and environment.get("SLUICE_STATE") == str(state_dir)
            )
            if ours and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def listening(pids: set[int]) -> set[int]:
    """TCP ports on which these processes listen."""
    return {
        c.laddr.port for c in psutil.net_connections("tcp") if c.status == psutil.CONN_LISTEN and c.pid in pids
    }


@pytest.fixture(scope="session")
def served(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """The int8 variant behind a real HAProxy, one replica; shared by all tests, which leave it as they found it."""
    state = tmp_path_factory.mktemp("state")
    with LocalCluster("served", state_dir=state) as cluster:
        deploy(cluster, plan_of(trained.store, trained.int8, max_batch_size=16, max_queued_requests=64))
        yield cluster


def replica_pids(cluster: LocalCluster) -> set[int]:
    """Of the replicas that run now."""
    return {p.pid for p in marked(cluster.cluster_id) if "ServeReplica" in " ".join(p.cmdline())}


@contextmanager
def meanwhile(clients: Sequence[Callable[[threading.Event], None]]) -> Iterator[None]:
    """Each on a thread of its own, until the block ends: they are told by the event."""
    done = threading.Event()
    threads = [threading.Thread(target=client, args=(done,)) for client in clients]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        done.set()
        for thread in threads:
            thread.join()
