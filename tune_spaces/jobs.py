"""`sluice jobs ...`: training on a cluster that runs already."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

from rich.console import Console

from cluster import jobs
from tune_spaces.report import summary

_console = Console(soft_wrap=True)


def submit(
    *, recipe: str, overrides: list[str], run: str | None, runs_dir: Path | None, address: str,
    working_dir: Path | None, follow: bool, dry_run: bool,
) -> None:  # fmt: skip
    """`sluice train` as a Ray job; its config is checked here, before anything travels."""
    from train_jobs import recipes

    recipes.recipe(recipe).with_overrides(overrides)
    arguments = ["train", recipe, "--address", "auto"]
    arguments += [part for override in overrides for part in ("--set", override)]
    arguments += ["--run", run] if run else []
    arguments += ["--runs-dir", str(runs_dir)] if runs_dir else []
    if dry_run:
        print(f"would submit to {address}: sluice {' '.join(arguments)}")
        return
    job_id = jobs.submit(arguments, address=address, working_dir=working_dir)
    _console.print(f"submitted {job_id}; next: sluice jobs logs {job_id} --address {address}")
    if follow:
        _follow(job_id, address)


def logs(*, job_id: str, address: str, follow: bool) -> None:
    """What a job has said, or goes on saying."""
    if follow:
        _follow(job_id, address)
    else:
        print(jobs.logs(job_id, address=address), end="")


def _follow(job_id: str, address: str) -> None:
    for piece in jobs.follow(job_id, address=address):
        print(piece, end="", flush=True)
    done = jobs.job(job_id, address=address)
    _console.print(f"{job_id}: {done.status} {done.message}".rstrip())


def stop(*, job_id: str, address: str) -> None:
    """End a job in order."""
    done = jobs.stop(job_id, address=address)
    _console.print(f"{job_id}: {done.status}; a training run's checkpoint is kept, the same --run name goes on from it")


def show(*, address: str, as_json: bool) -> None:
    """What runs and ran there."""
    found = jobs.jobs(address=address)
    if as_json:
        print(json.dumps([asdict(each) for each in found], indent=2))
        return
    rows = [
        (each.job_id, each.status, f"{datetime.fromtimestamp(each.started_s):%F %T}" if each.started_s else "",
         each.entrypoint)
        for each in found
    ]  # fmt: skip
    _console.print(summary.table(f"Jobs of {address}", ("job", "status", "started", "command"), rows))
