"""`sluice train`: TrainConfig -> trained model, on a local Ray cluster that lives as long as the run does, or on a
cluster that is there."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from cluster.errors import ClusterError
from cluster.local import LocalCluster
from tune_spaces.connection import connected
from tune_spaces.report import summary

if TYPE_CHECKING:
    from train_jobs.config import TrainConfig
    from train_jobs.loop import Progress
    from train_jobs.runs import Run

Say = Callable[[str], None]


def default_runs_dir() -> Path:
    """$SLUICE_RUNS or ~/.local/share/sluice/runs."""
    return Path(os.environ.get("SLUICE_RUNS", Path.home() / ".local/share/sluice/runs"))


def show_recipes(*, as_json: bool) -> None:
    """What can be trained by name."""
    from train_jobs.recipes import RECIPES

    made = {name: (make(), (make.__doc__ or "").strip().splitlines()[0]) for name, make in sorted(RECIPES.items())}
    if as_json:
        print(json.dumps({name: config.model_dump(mode="json") for name, (config, _) in made.items()}, indent=2))
        return
    rows = [
        (name, config.model.kind, config.task.kind, config.dataset, str(config.epochs), told)
        for name, (config, told) in made.items()
    ]  # fmt: skip
    headers = ("recipe", "model", "task", "data", "epochs", "what for")
    Console(soft_wrap=True).print(summary.table("Recipes", headers, rows))


def train(
    *, recipe: str, overrides: list[str], run: str | None, runs_dir: Path | None, address: str | None, as_json: bool,
    dry_run: bool,
) -> None:  # fmt: skip
    """Train a recipe; the same run name resumes."""
    from train_jobs import recipes
    from train_jobs.tasks import CLASSIFIERS

    config = recipes.recipe(recipe).with_overrides(overrides)
    name, folder = run or recipe, runs_dir or default_runs_dir()
    if dry_run:
        low, high = config.workers
        workers = f"{low} workers" if low == high else f"{low} to {high} workers"
        print(f"would train {config.recipe} on {config.dataset} with {workers} into {folder / name}")
        return
    console = Console(stderr=as_json, soft_wrap=True)

    def notice(line: str) -> None:
        console.print(f"[yellow]notice[/yellow] {line}")

    dataset = config.task.load(config.dataset, notify=notice)
    if config.dataset not in (dataset.name, dataset.spec):
        config = recipes.on_dataset(config, dataset.name)
        notice(f"the recipe is {config.recipe} now, and so its variants will be called")
    elif dataset.spec:
        config = config.model_copy(update={"dataset": dataset.spec})  # the same from any folder
    with console.status(f"training {name}") as status:
        say = (lambda line: status.update(f"{name}: {line}")) if console.is_terminal else console.print
        fit = fit_on_local_cluster if address is None else partial(_fit_there, address)
        done = fit(config, run_name=name, storage_path=folder, say=say, notice=notice)
    if as_json:
        told = {"run": name, "runs_dir": str(folder), "epochs": len(done.history), "metrics": done.metrics,
                "samples_per_s": done.samples_per_s, "notes": list(done.notes)}  # fmt: skip
        print(json.dumps(told))
        return
    figures = ", ".join(f"{key} {value:.4g}" for key, value in done.metrics.items())
    console.print(f"trained {name}: test {figures}; {done.samples_per_s:,.0f} samples/s")
    for note in done.notes:
        console.print(f"  {note}")
    console.print(f"figures, curves and pictures: {folder / name}; tensorboard --logdir {folder}")
    if config.task.kind in CLASSIFIERS:
        console.print(f"next: sluice compress {name}")


def _fit_there(address: str, config: TrainConfig, *, run_name: str, storage_path: Path, say: Say, notice: Say) -> Run:
    """`fit_on_local_cluster` on one that runs already, which may be the one that this process is a job of."""
    import ray

    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())[:200]
        raise ClusterError(
            f"no Ray answers at address={address!r} ({told}); leave --address out to start one"
        ) from error
    try:
        return _fit(config, run_name=run_name, storage_path=storage_path, say=say, notice=notice)
    finally:
        ray.shutdown()


def _fit(config: TrainConfig, *, run_name: str, storage_path: Path, say: Say, notice: Say) -> Run:
    """`job.fit` on the Ray that this process is connected to; `kill` and `ray job stop` interrupt it as Ctrl-C does."""
    from train_jobs import job

    signal.signal(signal.SIGTERM, terminated)  # ray.init took it
    return job.fit(
        config, run_name=run_name, storage_path=storage_path, on_progress=lambda p: say(progress_line(p)),
        notify=notice,
    )  # fmt: skip


def progress_line(progress: Progress) -> str:
    """epoch 2/7, loss 0.431, 4,420 samples/s, 31 s left; at the end of an epoch its metrics as well"""
    told = "".join(f"{name} {value:.4g}, " for name, value in progress.metrics.items())
    return (
        f"epoch {progress.epoch}/{progress.epochs}, loss {progress.loss:.3f}, {told}"
        f"{progress.samples_per_s:,.0f} samples/s, {progress.time_left_s:.0f} s left"
    )


def fit_on_local_cluster(
    config: TrainConfig, *, run_name: str, storage_path: Path, say: Say, notice: Say
) -> Run:
    """`train_jobs.job.fit` on a cluster of its own; `say` hears of progress, `notice` of a run that is done already.

    Raises as `job.fit` and `LocalCluster` do.
    """
    from train_jobs import job

    if (storage_path / run_name / "run.json").exists():  # nothing to start for what is finished
        return job.fit(config, run_name=run_name, storage_path=storage_path, notify=notice)
    with (
        LocalCluster(f"{run_name}-train", ha_proxy=False, num_cpus=config.workers[1] + 1) as cluster,
        connected(cluster.address),
    ):
        return _fit(config, run_name=run_name, storage_path=storage_path, say=say, notice=notice)


def terminated(signum: int, frame: object) -> None:
    """A signal handler: `kill` ends a long command as Ctrl-C does, with its clean-up."""
    raise KeyboardInterrupt
