"""What each learning trick gains over the plain run on the same budget, paired by seed.

    python -m benchmarks.learning_tricks --output docs/results/2026-01-31-learning

Fashion-MNIST with few labels, the small CNN, one thread, no Ray; accuracy on the full test set. What learning.json in
the output folder has already is not trained again. --quick: the embedded digits, seconds, for a look at the form only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from benchmarks import files
from cluster.errors import ConfigError
from cluster.hardware import fingerprint
from train_jobs import datasets, runs
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.ensembles import finish_ensemble
from train_jobs.loop import train
from train_jobs.models import CNNConfig
from train_jobs.tasks import DistillConfig, MultiTaskConfig
from train_jobs.transfer import TransferConfig

_SAY = Console(stderr=True, soft_wrap=True).print
_HALVES = {"-first-half": 0, "-second-half": 5}
"""Where five of ten classes begin."""
Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """How much is spent on a run."""

    data: str = "fashion-mnist"
    other: str = "clothing-gray28"
    """Data of another kind, to transfer to."""
    photos: tuple[str, str] | None = ("clothing-large", "clothing-rest")
    """Photos of the classes of which there are most, and of the others, to transfer from and to."""
    photo_epochs: int = 30
    flip: bool = True
    labels: int = 300
    """Training pictures of each class."""
    epochs: int = 15
    cycles: int = 3
    """Snapshots; members of the ensemble; how many times as long the long runs are."""
    student_lr: float = 1e-2
    few: tuple[int, ...] = (5, 20, 50)
    """Training pictures of each class, to transfer to."""
    few_epochs: int = 20
    """Of five steps each, however few labels there are."""
    seeds: tuple[int, ...] = (0, 10, 20)
    """Ten apart: an ensemble's members take those between."""


QUICK = Budget(
    data="digits", other="digits", photos=None, flip=False, labels=15, epochs=1, few=(5,), few_epochs=5, seeds=(0, 10)
)


@dataclass(frozen=True)
class Arm:
    """One kind of run. `against` names the plain one with as many optimizer steps; None: it is a plain one itself, or
    what others begin with."""

    name: str
    config: Callable[[int], TrainConfig]
    """By seed."""
    against: str | None = None
    trick: str = ""
    budget: str = ""


def arms(budget: Budget) -> list[Arm]:
    """All runs of one seed, in the order in which they need each other."""
    base = TrainConfig(
        recipe="plain", dataset=budget.data, epochs=budget.epochs, batch_size=64, lr=3e-3, optimizer="adamw",
        weight_decay=0.01, schedule="cosine", flip=budget.flip, labels_per_class=budget.labels, num_workers=1,
        validation=0.01,
    )  # fmt: skip
    longer = budget.epochs * budget.cycles

    def arm(name: str, against: str | None = None, trick: str = "", told: str = "", **changes: Any) -> Arm:
        return Arm(name, lambda seed: _changed(base, seed, {"recipe": name, **changes}), against, trick, told)

    steps, many = f"{budget.epochs} epochs", f"{longer} epochs"
    # A narrow network is underfitted for long: at the others' rate and epochs it has nothing to learn from a teacher.
    student = {"model": CNNConfig(width=0.25), "epochs": longer, "lr": budget.student_lr}

    def distilled(name: str, teacher: str, features: float, trick: str) -> Arm:
        return Arm(
            name,
            lambda seed: _changed(base, seed, {
                "recipe": name, **student,
                "task": DistillConfig(teachers=(_folder(teacher, seed),), features=features),
            }),
            "student", trick, f"{many}; the teacher's training and forward passes not counted",
        )  # fmt: skip

    made = [
        arm("plain"),
        arm("long", epochs=longer),
        arm("ensemble", "long", f"ensemble of {budget.cycles} seeds", f"{budget.cycles} x {steps}",
            members=budget.cycles),
        arm("snapshots", "long", f"{budget.cycles} snapshots", many, epochs=longer, snapshots=budget.cycles),
        arm("swa", "long", "SWA, last quarter", many, epochs=longer, average="swa"),
    ]  # fmt: skip
    tasks: dict[str, tuple[Any, ...]] = {"rotation": ("class", "rotation")}
    if budget.data != "digits":
        tasks = {"department": ("class", "department"), **tasks}
    for other, heads in tasks.items():
        told = f"{steps}; a turned copy of each picture beside" if other == "rotation" else steps
        made.append(arm(f"multitask-{other}", "plain", f"multi-task: {other}", told, task=MultiTaskConfig(heads=heads)))
    made += [
        arm("student", **student),
        distilled("distill-logits", "plain", 0.0, "distillation: logits"),
        distilled("distill-features", "plain", 1.0, "distillation: logits and features"),
        distilled("distill-ensemble", "ensemble", 0.0, "distillation: from the ensemble"),
        arm("half", dataset=f"{budget.data}-first-half"),
    ]
    pairs = [
        ("five classes to the five others", "half", f"{budget.data}-second-half"),
        (f"{budget.data} to {budget.other}", "plain", budget.other),
    ]
    if budget.photos is not None:
        large, rest = budget.photos
        made.append(arm("photos", dataset=large, epochs=budget.photo_epochs, labels_per_class=None, validation=0.05))
        pairs.append((f"{large} to {rest}", "photos", rest))
    for told, source, target in pairs:
        for few in budget.few:
            made += _transfers(base, budget, few, source, target, told)
    return made


def _transfers(base: TrainConfig, budget: Budget, few: int, source: str, target: str, told: str) -> list[Arm]:
    classes, is_small = len(_data(target).labels), target in (budget.other, *(budget.photos or ()))
    common = {
        "dataset": target, "labels_per_class": few, "epochs": budget.few_epochs, "batch_size": few * classes // 5,
        "validation": 0.05 if is_small else 0.01,
    }  # fmt: skip
    plain, thaw_epochs = f"{target}-{few}-scratch", max(1, budget.few_epochs // 10)
    ways: dict[str, dict[str, Any]] = {
        "frozen": {"freeze": True}, "fine-tuned": {}, "thawed": {"layer_lr_decay": 0.7, "thaw_epochs": thaw_epochs},
    }  # fmt: skip

    def way(name: str, fields: dict[str, Any]) -> Callable[[int], TrainConfig]:
        return lambda seed: _changed(
            base, seed, {"recipe": name, **common, "transfer": TransferConfig(source=_folder(source, seed), **fields)}
        )

    made = [Arm(plain, lambda seed: _changed(base, seed, {"recipe": plain, **common}))]
    for label, fields in ways.items():
        name = f"{target}-{few}-{label}"
        made.append(Arm(name, way(name, fields), plain, f"transfer, {told}, {few} labels per class: {label}",
                        f"{budget.few_epochs * 5} steps; the source's training not counted"))  # fmt: skip
    return made


def _folder(arm: str, seed: int) -> str:
    return f"{arm}-{seed}"


def _changed(config: TrainConfig, seed: int, changes: dict[str, Any]) -> TrainConfig:
    return TrainConfig.model_validate(config.model_copy(update={"seed": seed, **changes}).model_dump())


@cache
def _data(name: str) -> LabelledDataset:
    """A named set, or "NAME-first-half": the classes 0 to 4 of one alone, or the others counted from 0."""
    half = next((suffix for suffix in _HALVES if name.endswith(suffix)), None)
    if half is None:
        return datasets.load(name)
    dataset, first = datasets.load(name.removesuffix(half)), _HALVES[half]

    def chosen(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = (y >= first) & (y < first + 5)
        return x[rows], y[rows] - first

    x_train, y_train = chosen(dataset.x_train, dataset.y_train)
    x_test, y_test = chosen(dataset.x_test, dataset.y_test)
    return replace(
        dataset, name=name, spec="", x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test,
        labels=dataset.labels[first : first + 5],
    )  # fmt: skip


def train_one(config: TrainConfig, name: str, runs_dir: Path) -> Row:
    """Train, or go by what was trained, and say what the test part says."""
    folder, dataset, started = runs_dir / name, _data(config.dataset), time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    runs.claim(folder, config)
    if config.members > 1:
        # The first member is the plain run of this seed.
        names = [_folder("plain", config.seed + number) for number in range(config.members)]
        for number, member in enumerate(names):
            if not (runs_dir / member / runs.RUN).exists():
                alone = config.member(number).model_copy(update={"recipe": "plain"})
                train_one(alone, member, runs_dir)
        finish_ensemble(folder, config, [runs.load(member, runs_dir) for member in names])
    else:
        runs.finish(folder, config, dataset.source, train(config, dataset, runs_dir=runs_dir))
    done = runs.load(name, runs_dir)
    return {"metrics": done.metrics, "seconds": time.monotonic() - started}


def measure(budget: Budget, output: Path, runs_dir: Path) -> dict[str, Row]:
    """Every arm with every seed; rows by "arm-seed", written after each run. Raises ConfigError if the folder has
    rows of another budget."""
    path, spent = output / "learning.json", json.loads(json.dumps(asdict(budget)))
    there = json.loads(path.read_text()) if path.exists() else {"budget": spent, "rows": {}}
    if there["budget"] != spent:
        raise ConfigError(f"{path} has rows of another budget; give another --output, or delete it")
    rows: dict[str, Row] = there["rows"]
    every = [(arm, seed) for seed in budget.seeds for arm in arms(budget)]
    # A row whose model is gone is trained again if a later one may begin with it.
    kept = {"plain", "ensemble", "half", "photos"}
    left = [
        (arm, seed) for arm, seed in every
        if _folder(arm.name, seed) not in rows
        or (arm.name in kept and not (runs_dir / _folder(arm.name, seed) / runs.RUN).exists())
    ]  # fmt: skip
    started = time.monotonic()
    for number, (arm, seed) in enumerate(left):
        name = _folder(arm.name, seed)
        rows[name] = train_one(arm.config(seed), name, runs_dir) | {"arm": arm.name, "seed": seed}
        files.write(path, json.dumps({"budget": spent, "rows": rows}, indent=1))
        rest = (time.monotonic() - started) / (number + 1) * (len(left) - number - 1)
        _SAY(f"{number + 1}/{len(left)} {name}: {rows[name]['metrics']['accuracy']:.4f}, "
             f"{rows[name]['seconds']:.1f} s; about {rest:.0f} s left")  # fmt: skip
    return rows


def gains(budget: Budget, rows: dict[str, Row]) -> list[Row]:
    """Each trick beside its plain run: accuracies by seed, and their differences in points."""

    def accuracies(arm: str) -> list[float]:
        return [rows[_folder(arm, seed)]["metrics"]["accuracy"] for seed in budget.seeds]

    table = []
    for arm in arms(budget):
        if arm.against is None:
            continue
        plain, with_it = accuracies(arm.against), accuracies(arm.name)
        points = [100 * (after - before) for before, after in zip(plain, with_it, strict=True)]
        table.append({"trick": arm.trick, "arm": arm.name, "against": arm.against, "budget": arm.budget,
                      "plain": plain, "with": with_it, "points": points})  # fmt: skip
    return table


def _tested(budget: Budget) -> list[str]:
    return list(dict.fromkeys([budget.data, budget.other, *(budget.photos or ())[1:]]))


def report(budget: Budget, rows: dict[str, Row], output: Path, command: str) -> None:
    """learning.md."""
    lines = [
        "| trick | plain, same budget | with it | gain in points, by seed: mean (least .. most) | budget |",
        "|---|---|---|---|---|",
    ]
    for row in gains(budget, rows):
        points = row["points"]
        lines.append(
            f"| {row['trick']} | {statistics.mean(row['plain']):.4f} | {statistics.mean(row['with']):.4f} | "
            f"**{statistics.mean(points):+.2f}** ({min(points):+.2f} .. {max(points):+.2f}) | {row['budget']} |"
        )
    here, seconds = fingerprint(), sum(row["seconds"] for row in rows.values())
    head = [
        "# What the learning tricks gain", "",
        f"`{command}`, {time.strftime('%F')}, {here['cpu']}, {here['cores_usable']} cores of which one is used, torch "
        f"{here['libraries']['torch']}; {seconds:.0f} s of training in all.", "",
        f"{budget.data}, {budget.labels} training pictures of each class, the small CNN (students: a quarter of its "
        f"width, {budget.epochs * budget.cycles} epochs, rate {budget.student_lr:g}), AdamW, "
        "cosine schedule, batches of 64; accuracy on the full test part "
        f"({', '.join(f'{name}: {len(_data(name).y_test):,} pictures' for name in _tested(budget))}); "
        f"seeds {', '.join(map(str, budget.seeds))}. A seed chooses the labelled pictures, the first weights and the "
        "order, for the plain run and for the trick alike, so gains are paired. Same budget: as many optimizer steps; "
        "what a trick costs beside is in the last column. The ensemble, the snapshots and SWA are held against one run "
        "of as many epochs as all their members had together.", "",
    ]  # fmt: skip
    files.write(output / "learning.md", "\n".join([*head, *lines]) + "\n")
    _SAY(f"wrote {output / 'learning.md'}")


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("docs/results/learning"))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/learning"), help="where the trained models stay")
    parser.add_argument("--quick", action="store_true", help="the embedded digits, and next to nothing learned")
    given = parser.parse_args(argv)
    torch.set_num_threads(1)
    budget = QUICK if given.quick else Budget()
    rows = measure(budget, given.output, given.runs_dir)
    command = f"python -m benchmarks.learning_tricks --output {given.output}{' --quick' if given.quick else ''}"
    report(budget, rows, given.output, command)


if __name__ == "__main__":
    main()
