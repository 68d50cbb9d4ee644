"""What training gives: recipes x metric x samples/s, and what a second worker adds.

    python -m benchmarks.training recipes --output docs/results/2026-01-31-training
    python -m benchmarks.training scaling --output docs/results/2026-01-31-training

Each run is a process of its own, one worker to a core; no Ray. What the output folder has is not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks import files
from cluster.hardware import fingerprint

_SAY = Console(stderr=True, soft_wrap=True).print
_SCALED = ("cnn_fashion_mnist_quick", "lstm_etth1")
_HOOKS = ("none", "bf16", "powersgd")
Row = dict[str, Any]


def train_one(request: Row) -> Row:
    """In a process of its own, pinned to a core: train, and say what came of it."""
    import torch

    from train_jobs import recipes, runs
    from train_jobs.loop import train
    from train_jobs.parallel.process import settle

    os.sched_setaffinity(0, request["cores"])
    settle()
    config = recipes.recipe(request["recipe"]).with_overrides(request["set"])
    if request.get("rendezvous"):
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{request['rendezvous']}", rank=request["rank"],
            world_size=request["world_size"],
        )  # fmt: skip
    dataset = config.task.load(config.dataset)
    runs_dir = Path(request["runs_dir"])
    config = config.model_copy(update={"dataset": dataset.spec or dataset.name})
    started = time.monotonic()
    told = 0.0

    def progress(now: Any) -> None:
        nonlocal told
        if time.monotonic() - told > 20 and not request.get("rank"):
            told = time.monotonic()
            print(f"{request['recipe']}: epoch {now.epoch}/{now.epochs}, loss {now.loss:.4f}, "
                  f"{now.samples_per_s:,.0f} samples/s, {now.time_left_s:.0f} s left", file=sys.stderr)  # fmt: skip

    result = train(config, dataset, runs_dir=runs_dir, on_progress=progress)
    seconds = time.monotonic() - started
    if request.get("keep"):
        folder = runs_dir / request["recipe"]
        runs.claim(folder, config)
        runs.finish(folder, config, dataset.source, result)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # or its threads may end the process by abort
    found = result.findings
    return {
        "recipe": config.recipe, "model": config.model.kind, "task": config.task.kind, "dataset": dataset.name,
        "parameters": sum(p.numel() for p in result.model.parameters()), "epochs": len(result.history),
        "samples_per_s": result.history[-1].samples_per_s, "seconds": seconds, "loss": result.history[-1].loss,
        "metrics": found.metrics if found else {}, "notes": list(found.notes) if found else [],
        "sent_bytes": result.traffic.sent_bytes, "uncompressed_bytes": result.traffic.uncompressed_bytes,
    }  # fmt: skip


def _processes(requests: Sequence[Row]) -> list[Row]:
    """Each request in a process of its own, all at once."""
    command = [sys.executable, "-m", "benchmarks.training", "one"]
    started = [subprocess.Popen([*command, json.dumps(r)], stdout=subprocess.PIPE, text=True) for r in requests]
    answers = [process.communicate()[0] for process in started]
    for process, request in zip(started, requests, strict=True):
        if process.returncode:
            raise RuntimeError(f"{request['recipe']} ended with {process.returncode}")
    return [json.loads(answer.splitlines()[-1]) for answer in answers]


def recipes_table(folder: Path, names: Sequence[str], runs_dir: Path, overrides: Sequence[str]) -> None:
    """Every recipe once, on one core; figures of the test part."""
    from train_jobs.recipes import RECIPES, recipe

    rows: dict[str, Row] = _read(folder / "recipes.json")
    for name in names or sorted(RECIPES):
        if name in rows or recipe(name).members > 1:
            continue
        _SAY(f"training {name}")
        request = {"recipe": name, "set": list(overrides), "cores": [_cores()[0]], "runs_dir": str(runs_dir),
                   "keep": True}  # fmt: skip
        try:
            rows[name] = _processes([request])[0]
        except RuntimeError as error:
            _SAY(f"left out: {error}")
            continue
        files.write(folder / "recipes.json", json.dumps(rows, indent=1))
    lines = ["| recipe | model, task | data | parameters | epochs | test | samples/s | s |",
             "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for name, row in rows.items():
        figures = ", ".join(f"{key} {value:.4g}" for key, value in row["metrics"].items())
        lines.append(
            f"| {name} | {row['model']}, {row['task']} | {row['dataset']} | {row['parameters']:,} | {row['epochs']} | "
            f"{figures} | {row['samples_per_s']:,.0f} | {row['seconds']:.0f} |"
        )
    notes = [f"- {name}: {note}" for name, row in rows.items() for note in row["notes"]]
    _report(folder / "recipes.md", "Recipes, one core each, seed 0", [*lines, "", *notes])


def scaling(folder: Path, rounds: int, runs_dir: Path) -> None:
    """One worker against two, each on a core of its own, in turn; and what compressed gradients save."""
    rows: dict[str, Row] = _read(folder / "scaling.json")
    first, second = _cores()[:2]
    plans: list[tuple[str, str, int, int, str]] = []
    for name in _SCALED:
        plans += [(f"{name} alone", name, 1, 1, "none"), (f"{name} same batch", name, 2, 1, "none"),
                  (f"{name} batch each", name, 2, 2, "none")]  # fmt: skip
        plans += [(f"{name} {hook}", name, 2, 1, hook) for hook in _HOOKS[1:]]
    for number in range(rounds):
        for key, name, workers, times, hook in plans:
            if len(rows.get(key, {}).get("rates", [])) > number:
                continue
            _SAY(f"round {number + 1} of {rounds}: {key}")
            measured = _together(name, [first, second][:workers], times, hook, runs_dir)
            row = rows.setdefault(key, {"rates": [], "workers": workers})
            row["rates"].append(measured["samples_per_s"])
            row |= {k: measured[k] for k in ("sent_bytes", "uncompressed_bytes", "loss", "metrics")}
            files.write(folder / "scaling.json", json.dumps(rows, indent=1))
    lines = ["| run | workers | samples/s (median; rounds) | efficiency | gradient bytes sent | loss | test |",
             "|---|---|---|---|---|---|---|"]  # fmt: skip
    for key, row in rows.items():
        name = key.partition(" ")[0]
        rate, alone = statistics.median(row["rates"]), statistics.median(rows[f"{name} alone"]["rates"])
        told = ", ".join(f"{r:,.0f}" for r in row["rates"])
        share = f"{row['sent_bytes'] / row['uncompressed_bytes']:.0%}" if row["uncompressed_bytes"] else ""
        figures = ", ".join(f"{k} {v:.4g}" for k, v in row["metrics"].items())
        lines.append(f"| {key} | {row['workers']} | {rate:,.0f} ({told}) | {rate / (alone * row['workers']):.2f} | "
                     f"{share} | {row['loss']:.4f} | {figures} |")  # fmt: skip
    _report(folder / "scaling.md", "Data parallel: one worker against two, a core each, Gloo", lines)


def _together(name: str, cores: Sequence[int], times: int, hook: str, runs_dir: Path) -> Row:
    from train_jobs.recipes import recipe

    config = recipe(name)
    overrides = ["epochs=1", f"batch_size={config.batch_size * times}", "patience=", f"comm_hook.kind={hook}"]
    with tempfile.TemporaryDirectory() as folder:
        requests = [
            {"recipe": name, "set": overrides, "cores": [core], "runs_dir": str(runs_dir), "rank": rank,
             "world_size": len(cores), "rendezvous": f"{folder}/rendezvous" if len(cores) > 1 else ""}
            for rank, core in enumerate(cores)
        ]  # fmt: skip
        return _processes(requests)[0]


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _read(path: Path) -> dict[str, Row]:
    return json.loads(path.read_text()) if path.exists() else {}  # type: ignore[no-any-return]


def _report(path: Path, title: str, lines: Sequence[str]) -> None:
    command = f"python -m benchmarks.training {path.stem} --output {path.parent}"
    head = [f"# {title}", "", f"`{command}`, {time.strftime('%F')}, on {fingerprint()}.", ""]
    files.write(path, "\n".join([*head, *lines]) + "\n")
    _SAY(f"wrote {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("recipes", "scaling", "one"))
    parser.add_argument("names", nargs="*", help="recipes to train [default: all]")
    parser.add_argument("--output", type=Path, default=Path("docs/results/training"))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/training"), help="where the trained models stay")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="override a field of all recipes")
    given = parser.parse_args(argv)
    if given.what == "one":
        print(json.dumps(train_one(json.loads(given.names[0]))))
        return
    steps: dict[str, Callable[[], None]] = {
        "recipes": lambda: recipes_table(given.output, given.names, given.runs_dir, given.overrides),
        "scaling": lambda: scaling(given.output, given.rounds, given.runs_dir),
    }
    steps[given.what]()


if __name__ == "__main__":
    main()
