"""Promote and roll back on a running deployment: two replicas behind HAProxy, under load the whole while."""

from __future__ import annotations

import json
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from cluster.artifacts import ArtifactStore
from cluster.control import actuator
from cluster.control.serve_config import serve_config
from cluster.errors import ClusterError, ConfigError
from cluster.local import LocalCluster
from cluster.releases import Releases
from cluster.variants import TensorSpec, Variant
from serve_apps.oip.codec import encode_request
from tests.conftest import Trained, meanwhile, plan_of, replica_pids
from tests.poison import poisonous_variant
from tune_spaces import lineage, promotion

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]

INFER = "/v2/models/classifier/infer"


@pytest.fixture(scope="module")
def unnamed(trained: Trained) -> Variant:
    """fp32 with another id, under no name."""
    same = trained.fp32.model_copy(update={"preprocessing": "the same, told otherwise"})
    return trained.store.put(same, {f.path: trained.store.read(trained.fp32, f.path) for f in trained.fp32.files})


@pytest.fixture(scope="module")
def two(
    trained: Trained, unnamed: Variant, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalCluster]:
    """Two replicas of fp32 as `classifier`, and beside them an application that nothing here may touch."""
    plan = plan_of(trained.store, trained.fp32, num_replicas=2, num_cpus_per_replica=0.5, max_batch_size=16)
    with LocalCluster("two", state_dir=tmp_path_factory.mktemp("state")) as cluster:
        config = serve_config(plan, http_host="127.0.0.1", http_port=cluster.http_port)
        other = plan.model_copy(update={"model_name": "beside", "variant_id": unnamed.id, "num_replicas": 1})
        beside = serve_config(other)["applications"][0]
        config["applications"].append(beside | {"route_prefix": "/beside"})
        cluster.deploy(config)
        yield cluster


@dataclass
class Load:
    """What was asked and answered, in the order of the answers: (when, status, version)."""

    answers: list[tuple[float, int, str]] = field(default_factory=list)

    @property
    def failed(self) -> Counter[str]:
        return Counter(f"{status} {version}" for _, status, version in self.answers if status != 200)

    def versions(self, *, since: float = 0.0) -> set[str]:
        return {version for when, status, version in self.answers if status == 200 and when > since}


def ask(client: httpx.Client, trained: Trained, index: int = 0) -> tuple[float, int, str]:
    body, headers = encode_request({"image": trained.pictures[index % 100, None]}, binary=False)
    answer = client.post(INFER, content=body, headers=headers)
    said: dict[str, Any] = answer.json()
    return time.monotonic(), answer.status_code, said.get("model_version") or str(said)


@contextmanager
def load(cluster: LocalCluster, trained: Trained) -> Iterator[Load]:
    """Four clients that ask without a pause, two of them on a new connection each time."""
    seen = Load()

    def keep_asking(number: int, done: threading.Event) -> None:
        base = f"http://127.0.0.1:{cluster.http_port}"
        limits = httpx.Limits(max_keepalive_connections=number % 2)
        with httpx.Client(base_url=base, timeout=60.0, limits=limits) as own:
            index = 0
            while not done.is_set():
                try:
                    seen.answers.append(ask(own, trained, index))
                except httpx.HTTPError as error:
                    seen.answers.append((time.monotonic(), 0, repr(error)))
                index += 1

    with meanwhile([partial(keep_asking, number) for number in range(4)]):
        yield seen
    assert len(seen.answers) > 50, "there was no load, so nothing was proved"


def promote(cluster: LocalCluster, store: ArtifactStore, ref: str, *, dry_run: bool = False) -> None:
    lineage.promote(
        ref=ref, model="classifier", expected=None, address=cluster.dashboard_address, store=store.root,
        dry_run=dry_run,
    )  # fmt: skip


def rollback(cluster: LocalCluster, store: ArtifactStore) -> None:
    lineage.rollback(model="classifier", address=cluster.dashboard_address, store=store.root, dry_run=False)


def two_hundred(cluster: LocalCluster, trained: Trained) -> Counter[tuple[int, str]]:
    with httpx.Client(base_url=f"http://127.0.0.1:{cluster.http_port}", timeout=60.0) as client:
        return Counter(ask(client, trained, index)[1:] for index in range(200))


def test_promote_and_roll_back_under_load(
    two: LocalCluster, trained: Trained, unnamed: Variant, capsys: pytest.CaptureFixture[str]
) -> None:
    store, releases = trained.store, Releases(trained.store)
    before = replica_pids(two)
    assert len(before) == 3
    promote(two, store, trained.int8.name, dry_run=True)
    assert "would make" in capsys.readouterr().out
    assert releases.active("classifier") is None
    for move, version in (
        (lambda: promote(two, store, trained.int8.name), trained.int8.id),
        (lambda: rollback(two, store), trained.fp32.id),  # which was served before anything was promoted
        (lambda: promote(two, store, trained.int8.id), trained.int8.id),
    ):
        with load(two, trained) as seen:
            time.sleep(0.3)
            move()
            returned = time.monotonic()
            assert two_hundred(two, trained) == {(200, version): 200}
        assert seen.failed == {}
        assert seen.versions(since=returned) == {version}, "also of requests that were sent before"
        assert seen.versions() == {trained.fp32.id, trained.int8.id}
        assert releases.active("classifier") == version
        assert "answers from it (asked 40 times)" in capsys.readouterr().out
    assert replica_pids(two) == before, "nothing was restarted, beside included"
    beside = actuator.read(two.dashboard_address, "beside")
    assert beside.variant == unnamed.id
    described = httpx.get(f"http://127.0.0.1:{two.http_port}/beside/v2/models/beside").json()
    assert described["versions"] == [unnamed.id]


def test_a_replica_that_starts_after_the_promotion_serves_what_was_promoted(
    two: LocalCluster, trained: Trained
) -> None:
    """kill -9 of one of the two: its successor, made from args that name fp32, never answers from it."""
    promote(two, trained.store, trained.int8.id)
    before = actuator.read(two.dashboard_address, "classifier")
    victim = psutil.Process(pids_of(two, "classifier")[0])
    with load(two, trained) as seen:
        victim.kill()
        end = time.monotonic() + 120
        while victim.pid in (now := pids_of(two, "classifier")) or len(now) < 2:
            assert time.monotonic() < end, f"no successor came: {now}"
            time.sleep(0.2)
        assert actuator.switch(before, trained.int8.id) > 0
        assert two_hundred(two, trained) == {(200, trained.int8.id): 200}
    assert seen.versions() == {trained.int8.id}


def pids_of(cluster: LocalCluster, application: str) -> list[int]:
    """Of the replicas that Serve calls running."""
    answer = httpx.get(f"{cluster.dashboard_address}/api/serve/applications/").json()
    listed = answer["applications"][application]["deployments"]["ModelDeployment"]["replicas"]
    return [replica["pid"] for replica in listed if replica["state"] == "RUNNING"]


def with_other_inputs(trained: Trained) -> Variant:
    """The poisonous graph, which runs, under a manifest that names its input otherwise."""
    graph = trained.store.read(poisonous_variant(trained.store), "model.onnx")
    spec = TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28))
    output = TensorSpec(name="logits", datatype="FP32", shape=(-1, 10))
    other = Variant(name="other", family="other", format="onnx", inputs=(spec, spec), outputs=(output,))
    return trained.store.put(other, {"model.onnx": graph})


def test_what_cannot_take_the_place_is_refused_before_anything_moves(
    two: LocalCluster, trained: Trained, tmp_path: Path
) -> None:
    promote(two, trained.store, trained.int8.id)
    unmeasured = poisonous_variant(trained.store)
    for ref, says in (
        (with_other_inputs(trained).id, "other inputs"), (unmeasured.id, "not known on onnxruntime"),
        (trained.torch.id, "cannot execute format 'torch_export'"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=says):
            promote(two, trained.store, ref)
    elsewhere = ArtifactStore(tmp_path)
    elsewhere.put(trained.fp32, {f.path: trained.store.read(trained.fp32, f.path) for f in trained.fp32.files})
    with pytest.raises(ConfigError, match=f"--store {trained.store.root}"):
        promote(two, elsewhere, trained.fp32.id)
    with pytest.raises(ConfigError, match=r"it has classifier, beside|it has beside, classifier"):
        lineage.promote(ref=trained.fp32.id, model="nobody", expected=None, address=two.dashboard_address,
                        store=trained.store.root, dry_run=False)  # fmt: skip
    assert Releases(trained.store).active("classifier") == trained.int8.id
    assert actuator.read(two.dashboard_address, "classifier").variant == trained.int8.id
    assert two_hundred(two, trained) == {(200, trained.int8.id): 200}


def test_what_the_deployment_refuses_is_put_back(two: LocalCluster, trained: Trained) -> None:
    """The checks beforehand left out: what they might not see must do no harm either."""
    promote(two, trained.store, trained.int8.id)
    releases, other = Releases(trained.store), with_other_inputs(trained)
    history = releases.history("classifier")
    deployed = actuator.read(two.dashboard_address, "classifier")
    with pytest.raises(ClusterError, match=r"does not take .*other inputs.* as before"):
        promotion.make_active(
            releases, "classifier", other, deployed, lambda: releases.promote("classifier", other.id)
        )
    assert releases.history("classifier") == history
    assert actuator.read(two.dashboard_address, "classifier").variant == trained.int8.id
    assert two_hundred(two, trained) == {(200, trained.int8.id): 200}


def test_collecting_spares_what_a_local_cluster_serves(
    two: LocalCluster, trained: Trained, unnamed: Variant, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """`beside` serves a variant that nothing names."""
    then = time.time() - 2 * 3600
    os.utime(trained.store.manifest_path(unnamed.id), (then, then))

    def would_go(state: Path) -> set[str]:
        monkeypatch.setenv("SLUICE_STATE", str(state))
        lineage.gc(store=trained.store.root, keep=0, dry_run=True, as_json=True)
        return {each["id"] for each in json.loads(capsys.readouterr().out)["variants"]}

    assert unnamed.id in would_go(two.state_dir / "nowhere")
    assert unnamed.id not in would_go(two.state_dir)
