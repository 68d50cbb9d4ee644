"""TrainConfig -> Ray Train V2 job: the loop on several workers, checkpointed, resumed by run name.

A worker or a node lost to kill -9 restarts all from the last checkpoint, `max_failures` times, with as many workers as
there is room for if the run is elastic. If this process or the whole cluster is lost, calling `fit` again with the same
name does the same. A finished run's name returns its result. What lies in the run's folder: train_jobs/runs.py.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster import errors
from cluster.errors import SluiceError, TrainingFailed
from train_jobs import checkpoint, runs
from train_jobs.config import TrainConfig
from train_jobs.ensembles import finish_ensemble
from train_jobs.eyes import Eyes, environment
from train_jobs.loop import Diverged, Progress, State, train
from train_jobs.parallel.process import settle
from train_jobs.runs import CHECKPOINTS, PROGRESS, RUN, Run, write_json

_POLL_S = 0.3
_RAY_POLL = ("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
"""Ray's default of 2 s is what it takes to notice a lost worker, and that a run has ended."""
_RAY_START = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "20")
"""After this an elastic run asks again how many workers there is room for; in Ray's default of 60 s it waits for a lost
node that the cluster still counts. A cluster that adds nodes slowly is asked again, without end."""
_FAILED, _STOP = "failed.json", "stop"
_STOPPING_S = 30.0
"""How long an interrupted run may take to write its checkpoint."""


def train_worker(job: dict[str, Any]) -> None:
    """Runs in each Ray Train worker; torch's process group exists already."""
    import ray.train

    config = TrainConfig.model_validate(job["config"])
    folder = Path(job["folder"])
    if (folder / _FAILED).exists():
        return  # a restart would fail in the same way
    settle()
    leader = ray.train.get_context().get_world_rank() == 0
    try:
        _run(config, folder, leader)
    except SluiceError as error:
        # Diverged: all workers come here together and would again after a restart. Otherwise this worker alone may:
        # the others wait for it, so it must fail, and the restart ends at once, above.
        if leader or not isinstance(error, Diverged):
            write_json(folder / _FAILED, {"kind": type(error).__name__, "message": str(error)})
        if not isinstance(error, Diverged):
            raise
    except RuntimeError as error:
        if (told := no_memory(error)) is not None:
            write_json(folder / _FAILED, {"kind": "TrainingFailed", "message": told})
        raise


def no_memory(error: RuntimeError) -> str | None:
    """In our words, if torch found no memory for a tensor, on a CPU or a GPU."""
    told = " ".join(str(error).split())
    if "allocate memory" not in told and "out of memory" not in told and "not enough memory" not in told:
        return None
    return f"a worker has no memory for a batch ({told[:200]}); {_LESS_MEMORY}"


_LESS_MEMORY = "lower batch_size, or raise accumulate; the last checkpoint is intact"


def _run(config: TrainConfig, folder: Path, leader: bool) -> None:
    import ray.train

    dataset = config.task.load(config.dataset)
    kept = folder / CHECKPOINTS
    writer = checkpoint.Writer(kept)
    with Eyes(folder, leader=leader) as eyes:

        def keep(progress: Progress, state: State) -> None:
            writer.write(state, step=state["epoch"] * 10**6 + state["step"])
            if progress.metrics:
                ray.train.report({"epoch": progress.epoch, "loss": progress.loss, **progress.metrics})

        result = train(
            config, dataset, resume=checkpoint.load(kept), runs_dir=folder.parent, on_state=keep,
            on_progress=eyes.progress, should_stop=(folder / _STOP).exists,
        )  # fmt: skip
        writer.wait()
        if leader and not result.stopped:
            eyes.findings(result)
            runs.finish(folder, config, dataset.source, result)


def fit(
    config: TrainConfig,
    *,
    run_name: str,
    storage_path: Path,
    on_progress: Callable[[Progress], None] = lambda progress: None,
    notify: Callable[[str], None] = lambda line: None,
    max_failures: int = 3,
) -> Run:
    """Run or resume `run_name` on the Ray that this process is connected to; all nodes share `storage_path`.

    A finished run is not trained again: `notify` is told and its result returned. Interrupted (KeyboardInterrupt) it
    lets the workers write a checkpoint first; interrupted again, it does not wait. Raises ConfigError if the name
    belongs to a run with another config, TrainingFailed with the worker's error once `max_failures` restarts are
    used up, Diverged at once if the loss is no longer finite.
    """
    folder = storage_path.resolve() / run_name
    runs.claim(folder, config)
    if (folder / RUN).exists():
        run = runs.load(run_name, storage_path)
        notify(
            f"run {run_name!r} is finished already ({len(run.history)} epochs) and is not trained again; "
            f"for a new run give another name (--run) or delete {folder}"
        )
        return run
    if config.members > 1:
        members = []
        for number in range(config.members):
            notify(f"member {number + 1} of {config.members}: seed {config.seed + number}")
            members.append(
                fit(config.member(number), run_name=f"{run_name}-member-{number}", storage_path=storage_path,
                    on_progress=on_progress, notify=notify, max_failures=max_failures)
            )  # fmt: skip
        finish_ensemble(folder, config, members)
        return runs.load(run_name, storage_path)
    for left_over in (_FAILED, _STOP):
        (folder / left_over).unlink(missing_ok=True)
    write_json(folder / "environment.json", environment(config))
    _fit(config, folder, on_progress, max_failures)
    if (folder / _FAILED).exists():
        failed = runs.read(folder / _FAILED)
        kind: type[SluiceError] = getattr(errors, failed["kind"], TrainingFailed)
        if failed["kind"] == "Diverged":
            kind = Diverged
        raise kind(f"run {run_name!r} failed: {failed['message']}")
    return runs.load(run_name, storage_path)


def _fit(config: TrainConfig, folder: Path, on_progress: Callable[[Progress], None], max_failures: int) -> None:
    import ray.train
    from ray.train.torch import TorchConfig, TorchTrainer

    os.environ.setdefault(*_RAY_POLL)  # Ray hands it on to its controller and workers
    low, high = config.workers
    if low < high:
        os.environ.setdefault(*_RAY_START)
    finished = threading.Event()
    watcher = threading.Thread(target=_watch, args=(folder / PROGRESS, finished, on_progress), daemon=True)
    watcher.start()
    use_gpu = config.device != "cpu" and ray.cluster_resources().get("GPU", 0) >= low
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"config": config.model_dump(mode="json"), "folder": str(folder)},
        torch_config=TorchConfig(backend="nccl" if use_gpu else "gloo"),
        scaling_config=ray.train.ScalingConfig(
            num_workers=low if low == high else (low, high), use_gpu=use_gpu, elastic_resize_monitor_interval_s=10.0
        ),
        run_config=ray.train.RunConfig(
            name=folder.name,
            storage_path=str(folder.parent / ".ray"),
            failure_config=ray.train.FailureConfig(max_failures=max_failures),
        ),
    )
    try:
        _in_thread(trainer.fit, stop=folder / _STOP)
    except ray.train.TrainingFailedError as error:
        if (folder / _FAILED).exists():
            return  # in our own words
        told = str(error)
        if "OutOfMemory" in told or "OOM" in told:
            told = f"a worker was ended for want of memory ({told[:200]}...); {_LESS_MEMORY}"
        raise TrainingFailed(
            f"run {folder.name!r} failed: {told}; its checkpoints are in {folder}, the same name goes on from there"
        ) from error
    finally:
        finished.set()
        watcher.join()


def _in_thread(run: Callable[[], object], *, stop: Path) -> None:
    """Run to the end, or raise what it raised. The first interrupt writes `stop` and waits for a checkpoint; then, or
    at the second, KeyboardInterrupt is raised. In the main thread Ray Train would take SIGINT for itself, keep it after
    the run, and end the process without a word."""
    raised: list[BaseException] = []
    ended = threading.Event()  # not Thread.join: interrupted, CPython 3.11 takes a living thread for a finished one

    def target() -> None:
        try:
            run()
        except BaseException as error:
            raised.append(error)
        finally:
            ended.set()

    threading.Thread(target=target, daemon=True).start()
    try:
        while not ended.wait(0.2):
            pass
    except KeyboardInterrupt:
        stop.touch()
        ended.wait(_STOPPING_S)
        raise
    if raised:
        raise raised[0]


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
