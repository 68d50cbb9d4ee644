"""TrainConfig -> Ray Train V2 job: the loop on several workers (Gloo), checkpointed, resumed by name.

    run folder/state.pt checkpoints   kept by Ray Train under <storage_path>/<run_name>
    <run_name>/progress.json          the last Progress, for whoever watches
    <run_name>/model.safetensors, run.json   written once the run is finished: what `sluice compress` reads
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cluster.errors import ConfigError, TrainingFailed
from train_jobs import checkpoint, datasets
from train_jobs.config import TrainConfig
from train_jobs.loop import Progress, TrainResult, train
from train_jobs.models import build_model

_POLL_S = 0.3


def _write_json(path: Path, value: Any) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(value))
    os.replace(temporary, path)


def train_worker(job: dict[str, Any]) -> None:
    """Runs in each Ray Train worker; torch's process group exists already."""
    import ray.train

    config = TrainConfig.model_validate(job["config"])
    folder = Path(job["folder"])
    torch.set_num_threads(1)  # a worker is one core; more threads would fight over it
    leader = ray.train.get_context().get_world_rank() == 0
    dataset = datasets.load(config.dataset)
    latest = ray.train.get_checkpoint()
    resume = None
    if latest is not None:
        with latest.as_directory() as kept:
            resume = checkpoint.load(Path(kept))

    def watch(progress: Progress) -> None:
        if leader:
            _write_json(folder / "progress.json", asdict(progress))

    def keep(progress: Progress, state: dict[str, Any]) -> None:
        metrics = {"epoch": progress.epoch, "loss": progress.loss, "val_accuracy": progress.val_accuracy}
        if not leader:
            ray.train.report(metrics)
            return
        with tempfile.TemporaryDirectory() as temporary:
            checkpoint.save(state, Path(temporary))
            ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(temporary))

    result = train(config, dataset, resume=resume, on_epoch=keep, on_progress=watch)
    if leader:
        save_file(result.model.state_dict(), folder / ".model.safetensors")
        os.replace(folder / ".model.safetensors", folder / "model.safetensors")
        run = {
            "config": config.model_dump(mode="json"),
            "history": [asdict(row) for row in result.history],
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
    max_failures: int = 2,
) -> TrainResult:
    """Run or resume `run_name` on the Ray that this process is connected to.

    Raises TrainingFailed with the worker's error once `max_failures` restarts are used up.
    """
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    folder = storage_path.resolve() / run_name
    folder.mkdir(parents=True, exist_ok=True)
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
        trainer.fit()
    except ray.train.TrainingFailedError as error:
        raise TrainingFailed(f"run {run_name!r} failed: {error}; its checkpoints are in {folder}") from error
    finally:
        finished.set()
        watcher.join()
    model, _ = load_run(run_name, storage_path)
    run = json.loads((folder / "run.json").read_text())
    return TrainResult(model, [Progress(**row) for row in run["history"]], run["resumed_from_epoch"])


def load_run(run_name: str, storage_path: Path) -> tuple[nn.Module, TrainConfig]:
    """Model (best weights, eval mode) and config of a finished run. Raises ConfigError if there is none."""
    folder = storage_path / run_name
    if not (folder / "run.json").exists():
        raise ConfigError(f"no finished run {run_name!r} in {storage_path}; train it first: sluice train RECIPE")
    config = TrainConfig.model_validate(json.loads((folder / "run.json").read_text())["config"])
    model = build_model(config.family, dropout=config.dropout)
    model.load_state_dict(load_file(folder / "model.safetensors"))
    return model.eval(), config


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
            on_progress(Progress(**json.loads(text)))
