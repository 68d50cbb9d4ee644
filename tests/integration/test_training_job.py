"""A training job on a real local Ray: kill -9 of a worker, or of everything, costs an epoch and never the run."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import torch

from cluster.errors import TrainingFailed
from cluster.local import LocalCluster, list_clusters
from tests.conftest import marked
from train_jobs import checkpoint, datasets, job, recipes, runs
from train_jobs.config import TrainConfig
from train_jobs.loop import Diverged, Progress, train
from train_jobs.models import Ensemble
from train_jobs.tasks.classify import correct

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]

# 303 steps an epoch: a second or so, in which a kill lands in the middle of the work.
CONFIG = recipes.cnn_digits().model_copy(update={"epochs": 6, "batch_size": 4, "lr": 5e-4, "schedule": "constant"})

DRIVER = """
import json, sys
from pathlib import Path
import ray
from cluster.errors import TrainingFailed
from cluster.local import LocalCluster
from train_jobs import job
from train_jobs.config import TrainConfig

with LocalCluster("driver", ha_proxy=False, num_cpus=3) as cluster:
    ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
    job.fit(TrainConfig.model_validate_json(sys.argv[1]), run_name="lost", storage_path=Path(sys.argv[2]))
"""


ELASTIC = CONFIG.model_copy(update={"num_workers": (1, 2), "epochs": 8})

TWO_NODES = """
import json, sys, threading, time
from pathlib import Path
import psutil, ray
from ray.cluster_utils import Cluster
from train_jobs import job
from train_jobs.config import TrainConfig

config, storage = TrainConfig.model_validate_json(sys.argv[1]), Path(sys.argv[2])
noticed_sooner = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500}
cluster = Cluster(
    initialize_head=True,
    head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": noticed_sooner},
)
node = cluster.add_node(num_cpus=1)
ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
def workers():
    ours = [psutil.Process(cluster.head_node.all_processes["raylet"][0].process.pid)]
    ours += [psutil.Process(n.all_processes["raylet"][0].process.pid) for n in cluster.worker_nodes]
    children = [child for raylet in ours for child in raylet.children(recursive=True)]
    return sum(any("RayTrainWorker" in part for part in child.cmdline()) for child in children)
told = {}
def watch(progress):
    if "workers_before" not in told and progress.epoch >= 3:
        told["workers_before"] = workers()
        threading.Thread(target=lambda: cluster.remove_node(node, allow_graceful=False)).start()
    elif progress.epoch == config.epochs and len(cluster.worker_nodes) == 0:
        told.setdefault("workers_after", workers())
run = job.fit(config, run_name="elastic", storage_path=storage, on_progress=watch)
told["resumed_from_epoch"] = run.resumed_from_epoch
ray.shutdown()
cluster.shutdown()
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster that this process is connected to."""
    state = tmp_path_factory.mktemp("state")
    with LocalCluster("training", ha_proxy=False, num_cpus=3, state_dir=state) as started:
        ray.init(address=started.address, log_to_driver=False, logging_level="ERROR")
        try:
            yield started
        finally:
            ray.shutdown()


def workers_of(cluster: LocalCluster) -> list[psutil.Process]:
    """The processes in which the loop runs."""
    return [p for p in marked(cluster.cluster_id) if any("RayTrainWorker" in part for part in p.cmdline())]


def assert_whole(history: list[Progress], config: TrainConfig) -> None:
    assert [row.epoch for row in history] == list(range(1, config.epochs + 1)), "every epoch once, in order"
    assert history[-1].loss < 0.5 * history[0].loss
    assert history[-1].metrics["accuracy"] > 0.9


def under_way(folder: Path) -> bool:
    """Is the run in its third epoch or beyond, and is there a whole checkpoint of it?"""
    path = folder / "progress.json"
    if not path.exists() or not list((folder / "checkpoints").glob("step-*/.metadata")):
        return False
    return bool(json.loads(path.read_text())["epoch"] >= 3)


def test_a_worker_killed_with_9_is_replaced_and_the_run_goes_on(cluster: LocalCluster, tmp_path: Path) -> None:
    killed: list[int] = []
    before: list[Progress] = []

    def kill_one(progress: Progress) -> None:
        if not killed:
            before.append(progress)
            if under_way(tmp_path / "wounded"):
                victims = workers_of(cluster)
                assert len(victims) == 2, "one process for each worker"
                os.kill(victims[-1].pid, signal.SIGKILL)
                killed.append(victims[-1].pid)

    result = job.fit(CONFIG, run_name="wounded", storage_path=tmp_path, on_progress=kill_one)
    assert killed
    assert not psutil.pid_exists(killed[0])
    assert 1 <= result.resumed_from_epoch < CONFIG.epochs, "from the last checkpoint, not from the start"
    assert before[-1].epoch - result.resumed_from_epoch <= 3, "and from no old one"
    assert_whole(result.history, CONFIG)
    ends = {row.epoch: row.loss for row in before if row.metrics}
    for row in result.history[: result.resumed_from_epoch]:
        assert row.loss == ends.get(row.epoch, row.loss), "the epochs before the kill are those of the first attempt"
    digits = datasets.load("digits")
    run = runs.load("wounded", tmp_path)
    assert run.config == CONFIG
    right = correct(run.model, torch.from_numpy(digits.x_test), torch.from_numpy(digits.y_test))
    assert right / len(digits.y_test) > 0.9
    assert result.metrics["accuracy"] == right / len(digits.y_test)
    environment = json.loads((tmp_path / "wounded" / "environment.json").read_text())
    assert environment["torch"] == torch.__version__
    curves = [json.loads(line) for line in (tmp_path / "wounded" / "curves.jsonl").read_text().splitlines()]
    assert {row["epoch"] for row in curves} == set(range(1, CONFIG.epochs + 1))
    assert list((tmp_path / "wounded" / "tensorboard").glob("events.*"))


def test_an_interrupted_run_writes_a_checkpoint_within_the_epoch_and_goes_on_from_it(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    long = CONFIG.model_copy(update={"epochs": 2, "batch_size": 2, "precision": "fp64"})
    told: list[Progress] = []

    def interrupt(progress: Progress) -> None:
        told.append(progress)
        if len(told) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        job.fit(long, run_name="stopped", storage_path=tmp_path, on_progress=interrupt)
    assert not workers_of(cluster), "the workers ended by themselves"
    assert not (tmp_path / "stopped" / "run.json").exists()
    state = checkpoint.load(tmp_path / "stopped" / "checkpoints")
    assert state is not None
    assert state["step"] > 0, "in the middle of an epoch"
    result = job.fit(long, run_name="stopped", storage_path=tmp_path)
    straight = train(long.model_copy(update={"num_workers": 1}), datasets.load("digits"))
    assert [row.loss for row in result.history] == pytest.approx([row.loss for row in straight.history], rel=1e-6)


def test_an_elastic_run_outlives_the_node_of_one_of_its_workers(tmp_path: Path) -> None:
    """On a cluster of two nodes in processes of their own; the second is killed for good."""
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, ELASTIC.model_dump_json(), str(tmp_path)], capture_output=True, text=True,
        timeout=200, env={**os.environ, "SLUICE_STATE": str(tmp_path / "state")}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["workers_before"] == 2
    assert told["workers_after"] == 1, "there was room for one"
    assert told["resumed_from_epoch"] >= 1
    assert_whole(runs.load("elastic", tmp_path).history, ELASTIC)


def test_members_become_one_run_that_is_compressed_like_any_other(cluster: LocalCluster, tmp_path: Path) -> None:
    config = recipes.cnn_digits().model_copy(update={"epochs": 2, "members": 2, "num_workers": 1})
    run = job.fit(config, run_name="pair", storage_path=tmp_path)
    assert isinstance(run.model, Ensemble)
    first, second = (runs.load(f"pair-member-{number}", tmp_path) for number in range(2))
    assert (first.config.seed, second.config.seed) == (0, 1)
    x = torch.from_numpy(datasets.load("digits").x_test[:50])
    expected = torch.stack([member.model(x).softmax(1) for member in (first, second)]).mean(0)
    torch.testing.assert_close(run.model(x).exp(), expected)


def test_driver_and_cluster_killed_with_9_and_the_same_name_goes_on_with_as_many_workers_as_there_are(
    cluster: LocalCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_STATE", str(tmp_path / "state"))
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, CONFIG.model_dump_json(), str(tmp_path)])
    everything: list[psutil.Process] = []
    try:
        end = time.monotonic() + 90.0
        while not under_way(tmp_path / "lost"):
            assert driver.poll() is None, "the driver ended by itself"
            assert time.monotonic() < end, "the third epoch was not reached"
            time.sleep(0.05)
        (lost,) = list_clusters(tmp_path / "state")
    finally:
        # Stop all before killing any: nobody is left that could clean up or save in between.
        with contextlib.suppress(psutil.NoSuchProcess):
            root = psutil.Process(driver.pid)
            everything = [root, *root.children(recursive=True)]
        for sign in (signal.SIGSTOP, signal.SIGKILL):
            for process in everything:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(sign)
        driver.wait()
    assert len(everything) > 5, "driver, supervisor, Ray's own processes and the workers"
    shutil.rmtree(lost.temp_dir, ignore_errors=True)
    assert not (tmp_path / "lost" / "run.json").exists(), "killed before the end"

    fewer = CONFIG.model_copy(update={"num_workers": 1})
    result = job.fit(fewer, run_name="lost", storage_path=tmp_path)
    assert 1 <= result.resumed_from_epoch < CONFIG.epochs, "it does not start over"
    assert_whole(result.history, CONFIG)

    told: list[str] = []
    again = job.fit(fewer, run_name="lost", storage_path=tmp_path, notify=told.append)
    assert again.history == result.history
    assert "is finished already (6 epochs)" in told[0]


def test_a_diverging_run_fails_at_once_with_the_way_out(cluster: LocalCluster, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"lr": 1e30, "optimizer": "sgd", "batch_size": 64})
    with pytest.raises(Diverged, match=r"run 'wild' failed: loss is (nan|inf) in epoch 1; lower lr=1e\+30"):
        job.fit(config, run_name="wild", storage_path=tmp_path)
    assert not (tmp_path / "wild" / "run.json").exists()
    assert not list((tmp_path / "wild" / "checkpoints").glob("*")), "nothing full of NaN was kept"


def test_a_full_disk_is_one_clear_error_and_no_restart(cluster: LocalCluster, tmp_path: Path) -> None:
    folder = tmp_path / "full" / "checkpoints"
    folder.parent.mkdir()
    folder.write_text("a file stands where the folder should be: nothing can be written there, root or not")
    with pytest.raises(TrainingFailed, match=r"run 'full' failed: cannot write .*make room or choose another folder"):
        job.fit(CONFIG, run_name="full", storage_path=tmp_path)
    assert not (tmp_path / "full" / "run.json").exists()
