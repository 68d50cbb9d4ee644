"""TrainConfig -> Ray Train V2 job: the loop on several workers (Gloo), checkpointed, resumed by run name.

    <storage>/<run name>/checkpoint_*/state.pt   kept by Ray Train; the last one is where the run goes on
                         config.json             what the run is; under another config its name is refused
                         progress.json           the last Progress, for whoever watches
                         model.safetensors, run.json   once the run is finished: what `sluice compress` reads

A worker lost to kill -9 restarts all from the last checkpoint, `max_failures` times. If this process or the whole
cluster is lost, calling `fit` again with the same name does the same. A finished run's name returns its result.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cluster.errors import ConfigError, TrainingFailed
from train_jobs import checkpoint, datasets
from train_jobs.config import TrainConfig
from train_jobs.loop import Diverged, Progress, TrainResult, train
from train_jobs.models import CNN, build_model
from train_jobs.parallel.process import settle

_POLL_S = 0.3
_RAY_POLL = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
"""Ray knows a checkpoint only once it has polled for it: with its default of 2 s, kill -9 costs that much more."""


def _write_json(path: Path, value: Any) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(value, allow_nan=False))
    os.replace(unfinished, path)


def progress_to_dict(progress: Progress) -> dict[str, Any]:
    """For JSON, which knows no NaN: an accuracy that is not known yet is null."""
    row = asdict(progress)
    return row | {"val_accuracy": None if math.isnan(progress.val_accuracy) else progress.val_accuracy}


def progress_from_dict(row: dict[str, Any]) -> Progress:
    """The inverse of `progress_to_dict`."""
    return Progress(**row | {"val_accuracy": math.nan if row["val_accuracy"] is None else row["val_accuracy"]})


def train_worker(job: dict[str, Any]) -> None:
    """Runs in each Ray Train worker; torch's process group exists already."""
    import ray.train

    config = TrainConfig.model_validate(job["config"])
    folder = Path(job["folder"])
    settle()
    leader = ray.train.get_context().get_world_rank() == 0
    dataset = datasets.load(config.dataset)
    latest = ray.train.get_checkpoint()
    resume = None
    if latest is not None:
        with latest.as_directory() as kept:
            resume = checkpoint.load(Path(kept))

    def watch(progress: Progress) -> None:
        if leader:
            _write_json(folder / "progress.json", progress_to_dict(progress))

    def keep(progress: Progress, state: dict[str, Any]) -> None:
        metrics = {"epoch": progress.epoch, "loss": progress.loss, "val_accuracy": progress.val_accuracy}
        if not leader:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as temporary:
            checkpoint.save(state, Path(temporary))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(temporary))

    try:
        result = train(config, dataset, resume=resume, on_epoch=keep, on_progress=watch)
    except Diverged as error:
        # All workers come here together and would again after a restart: end the job in order, `fit` raises the error.
        if leader:
            _write_json(folder / "diverged.json", str(error))
        return
    if leader:
        _finish(folder, config, dataset, result)


def _finish(folder: Path, config: TrainConfig, dataset: datasets.LabelledDataset, result: TrainResult) -> None:
    unfinished = folder / ".model.safetensors"
    save_file(result.model.state_dict(), unfinished)
    os.replace(unfinished, folder / "model.safetensors")
    run = {
        "config": config.model_dump(mode="json"),
        "history": [progress_to_dict(row) for row in result.history],
        "resumed_from_epoch": result.resumed_from_epoch,
        "dataset_source": dataset.source,
    }
    _write_json(folder / "run.json", run)


def fit(
    config: TrainConfig,
    *,
    run_name: str,
    storage_path: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    notify: Callable[[str], None] = lambda line: None,
    max_failures: int = 2,
) -> TrainResult:
    """Run or resume `run_name` on the Ray that this process is connected to; all nodes share `storage_path`.

    A finished run is not trained again: `notify` is told and its result returned. Raises ConfigError if the name
    belongs to a run with another config, TrainingFailed with the worker's error once `max_failures` restarts are
    used up, Diverged at once if the loss is no longer finite.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = storage_path.resolve() / run_name
    _claim(folder, config)
    if (folder / "run.json").exists():
        result = load_result(run_name, storage_path)
        notify(
            f"run {run_name!r} is finished already ({len(result.history)} epochs) and is not trained again; "
            f"for a new run give another name (--run) or delete {folder}"
        )
        return result
    os.environ.setdefault(*_RAY_POLL)  # Ray hands it on to its controller and workers
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder / "progress.json", finished, on_progress), daemon=True)
    watcher.start()
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "folder": str(folder)},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ray.train.ScalingConfig(num_workers=config.num_workers),
        run_config=ray.train.RunConfig(
            name=run_name,
            storage_path=str(storage_path.resolve()),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=2),
        ),
    )
    try:
        _in_thread(trainer.fit)
    except ray.train.TrainingFailedError as error:
        raise TrainingFailed(
            f"run {run_name!r} failed: {error}; its checkpoints are in {folder}, the same name goes on from there"
        ) from error
    finally:
        finished.set()
        watcher.join()
    if (folder / "diverged.json").exists():
        raise Diverged(f"run {run_name!r} failed: {json.loads((folder / 'diverged.json').read_text())}")
    return load_result(run_name, storage_path)


def _claim(folder: Path, config: TrainConfig) -> None:
    """Note what the run is, or raise ConfigError if the folder belongs to a run of another config."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "diverged.json").unlink(missing_ok=True)
    path = folder / "config.json"
    if path.exists():
        config.require_same_run(_read(path), where=f"run {folder.name!r} in {folder.parent}")
    else:
        _write_json(path, config.model_dump(mode="json"))


def _in_thread(run: Callable[[], object]) -> None:
    """Run to the end, or raise what it raised. Ctrl-C interrupts the wait, as a caller expects: in the main thread Ray
    Train would take SIGINT for itself, keep it after the run, and end the process without a word."""
    raised: list[BaseException] = []

    def target() -> None:
        try:
            run()
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.2)
    if raised:
        raise raised[0]


def load_run(run_name: str, storage_path: Path) -> tuple[CNN, TrainConfig]:
    """Model (best weights, eval mode) and config of a finished run. Raises ConfigError if there is none."""
    folder = storage_path / run_name
    if not (folder / "run.json").exists():
        raise ConfigError(f"no finished run {run_name!r} in {storage_path}; train it first: sluice train RECIPE")
    try:
        config = TrainConfig.model_validate(_read(folder / "run.json")["config"])
        model = build_model(config.family, dropout=config.dropout)
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, KeyError, RuntimeError, ValidationError, SafetensorError) as error:
        raise ConfigError(f"run {run_name!r} in {storage_path} is damaged ({error}); delete it, train anew") from error
    return model.eval(), config


def load_result(run_name: str, storage_path: Path) -> TrainResult:
    """What `fit` returned for a finished run. Raises ConfigError if there is none."""
    model, _ = load_run(run_name, storage_path)
    run = _read(storage_path / run_name / "run.json")
    return TrainResult(model, [progress_from_dict(row) for row in run["history"]], run["resumed_from_epoch"])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}); delete the run's folder and train anew") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} is damaged: it holds no object; delete the run's folder and train anew")
    return content


def _watch(path: Path, finished: threading.Event, on_progress: Callable[[Progress], None]) -> None:
    """Tell `on_progress` of each new content of `path` until `finished`."""
    last = path.read_text() if path.exists() else ""
    while not finished.wait(_POLL_S):
        try:
            text = path.read_text()
        except FileNotFoundError:
            continue
        if text != last:
            last = text
            on_progress(progress_from_dict(json.loads(text)))
