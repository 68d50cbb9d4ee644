"""A run's name: what it refuses, that a finished run is not trained again, and what is kept of it.

No Ray is started here; tests/integration/test_training_job.py runs and kills real jobs.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from cluster.errors import ConfigError
from train_jobs import job, runs
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.loop import Progress, TrainResult
from train_jobs.tasks.classify import correct

WITHIN = Progress(epoch=2, epochs=4, samples_per_s=10.0, loss=0.5, metrics={}, time_left_s=3.0)


@pytest.fixture
def finished(tmp_path: Path, trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset) -> Path:
    """Storage with one finished run, `done`, as the last step of a job leaves it."""
    folder = tmp_path / "done"
    runs.claim(folder, quick_config)
    runs.finish(folder, quick_config, digits.source, trained)
    return tmp_path


def test_a_finished_run_is_loaded_with_its_best_weights(
    finished: Path, trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset
) -> None:
    run = runs.load("done", finished)
    model, config = run.model, run.config
    assert config == quick_config
    assert trained.findings is not None
    assert run.metrics == trained.findings.metrics
    assert not model.training
    for name, tensor in trained.model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), "the constants of preprocessing included"
    x, y = torch.from_numpy(digits.x_test), torch.from_numpy(digits.y_test)
    assert correct(model, x, y) == correct(trained.model, x, y)


def test_a_finished_run_is_not_trained_again(finished: Path, trained: TrainResult, quick_config: TrainConfig) -> None:
    import ray

    told: list[str] = []
    result = job.fit(quick_config, run_name="done", storage_path=finished, notify=told.append)
    assert not ray.is_initialized(), "no cluster was needed"
    assert result.history == trained.history
    assert torch.equal(result.model.state_dict()["head.1.weight"], trained.model.state_dict()["head.1.weight"])
    assert len(told) == 1
    assert "run 'done' is finished already (4 epochs)" in told[0]
    assert "another name (--run) or delete" in told[0]


def test_more_workers_do_not_make_it_another_run(finished: Path, quick_config: TrainConfig) -> None:
    other = quick_config.model_copy(update={"num_workers": 4})
    assert len(job.fit(other, run_name="done", storage_path=finished).history) == 4


def test_a_run_s_name_is_refused_under_another_config(finished: Path, quick_config: TrainConfig) -> None:
    other = quick_config.model_copy(update={"epochs": 9})
    with pytest.raises(ConfigError, match=r"run 'done' in .* was started with epochs=4, now it is epochs=9"):
        job.fit(other, run_name="done", storage_path=finished)


def test_an_unfinished_run_s_name_is_refused_as_well(tmp_path: Path, quick_config: TrainConfig) -> None:
    runs.claim(tmp_path / "begun", quick_config)
    runs.claim(tmp_path / "begun", quick_config)
    with pytest.raises(ConfigError, match=r"was started with lr=0\.003, now it is lr=0\.1"):
        job.fit(quick_config.model_copy(update={"lr": 0.1}), run_name="begun", storage_path=tmp_path)


def test_a_run_that_is_not_there_is_refused_with_the_way_out(tmp_path: Path, quick_config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"no finished run 'never' in .*; train it first: sluice train"):
        runs.load("never", tmp_path)
    runs.claim(tmp_path / "begun", quick_config)
    with pytest.raises(ConfigError, match="no finished run 'begun'"):
        runs.load("begun", tmp_path)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("run.json", b""),
        ("run.json", b"[]"),
        ("run.json", b"{}"),
        ("run.json", b'{"config": {"recipe": "x", "epochs": -1}}'),
        ("model.safetensors", b""),
        ("model.safetensors", b"garbage" * 10),
        ("model.safetensors", None),
    ],
)
def test_a_damaged_run_is_named_with_the_way_out(finished: Path, file: str, content: bytes | None) -> None:
    path = finished / "done" / file
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"(?s)is damaged.*train anew"):
        runs.load("done", finished)


def test_the_watcher_tells_new_progress_and_not_that_of_the_attempt_before(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    runs.write_json(path, asdict(WITHIN))
    seen: list[Progress] = []
    finished = threading.Event()
    watcher = threading.Thread(target=job._watch, args=(path, finished, seen.append))
    watcher.start()
    try:
        time.sleep(3 * job._POLL_S)
        assert seen == []
        fresh = Progress(3, 4, 11.0, 0.4, {"accuracy": 0.9}, 2.0)
        runs.write_json(path, asdict(fresh))
        end = time.monotonic() + 20.0
        while not seen and time.monotonic() < end:
            time.sleep(0.05)
        assert seen == [fresh]
    finally:
        finished.set()
        watcher.join()


def test_no_memory_for_a_tensor_is_told_with_the_way_out() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**16)
    told = job.no_memory(caught.value)
    assert told is not None
    assert "lower batch_size, or raise accumulate; the last checkpoint is intact" in told
    assert job.no_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
