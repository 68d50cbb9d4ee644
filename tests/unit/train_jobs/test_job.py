"""The run folder: what a run's name means, what it refuses, and that a finished run is not trained again.

No Ray is started here; tests/integration/test_training_job.py runs and kills real jobs.
"""

from __future__ import annotations

import json
import math
import threading
import time
from pathlib import Path

import pytest
import torch

from cluster.errors import ConfigError
from train_jobs import job
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.loop import Progress, TrainResult, correct

WITHIN = Progress(epoch=2, epochs=4, samples_per_s=10.0, loss=0.5, val_accuracy=math.nan, time_left_s=3.0)


@pytest.fixture
def finished(tmp_path: Path, trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset) -> Path:
    """Storage with one finished run, `done`, as the last step of a job leaves it."""
    folder = tmp_path / "done"
    job._claim(folder, quick_config)
    job._finish(folder, quick_config, digits, trained)
    return tmp_path


def test_a_finished_run_is_loaded_with_its_best_weights(
    finished: Path, trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset
) -> None:
    model, config = job.load_run("done", finished)
    assert config == quick_config
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
    job._claim(tmp_path / "begun", quick_config)
    job._claim(tmp_path / "begun", quick_config)
    with pytest.raises(ConfigError, match=r"was started with lr=0\.003, now it is lr=0\.1"):
        job.fit(quick_config.model_copy(update={"lr": 0.1}), run_name="begun", storage_path=tmp_path)


def test_a_run_that_is_not_there_is_refused_with_the_way_out(tmp_path: Path, quick_config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match=r"no finished run 'never' in .*; train it first: sluice train"):
        job.load_run("never", tmp_path)
    job._claim(tmp_path / "begun", quick_config)
    with pytest.raises(ConfigError, match="no finished run 'begun'"):
        job.load_run("begun", tmp_path)


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
        job.load_run("done", finished)


@pytest.mark.parametrize("progress", [WITHIN, Progress(1, 4, 10.0, 0.5, 0.875, 3.0)])
def test_progress_travels_as_strict_json(progress: Progress) -> None:
    text = json.dumps(job.progress_to_dict(progress), allow_nan=False)
    back = job.progress_from_dict(json.loads(text))
    assert back == progress or (math.isnan(back.val_accuracy) and math.isnan(progress.val_accuracy))
    assert (back.epoch, back.loss, back.time_left_s) == (progress.epoch, progress.loss, progress.time_left_s)


def test_the_watcher_tells_new_progress_and_not_that_of_the_attempt_before(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    job._write_json(path, job.progress_to_dict(WITHIN))
    seen: list[Progress] = []
    finished = threading.Event()
    watcher = threading.Thread(target=job._watch, args=(path, finished, seen.append))
    watcher.start()
    try:
        time.sleep(3 * job._POLL_S)
        assert seen == []
        fresh = Progress(3, 4, 11.0, 0.4, 0.9, 2.0)
        job._write_json(path, job.progress_to_dict(fresh))
        end = time.monotonic() + 20.0
        while not seen and time.monotonic() < end:
            time.sleep(0.05)
        assert seen == [fresh]
    finally:
        finished.set()
        watcher.join()
