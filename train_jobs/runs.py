"""A run's folder: what it is, how it goes, and what came out of it.

    <runs>/<name>/config.json            what the run is; under another config its name is refused
                  environment.json       git revision, versions and machine: with config.json, enough to repeat it
                  progress.json          the last Progress, for whoever watches
                  curves.jsonl           one Progress per line
                  checkpoints/           where it goes on (train_jobs/checkpoint.py)
                  tensorboard/           the curves and pictures again, for TensorBoard
                  pictures/*.png         what the model drew
                  model.safetensors, run.json   once it is finished
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs import weights
from train_jobs.averaging import ensemble_of
from train_jobs.config import TrainConfig
from train_jobs.loop import Progress, TrainResult

MODEL, RUN, CONFIG, PROGRESS, CURVES, CHECKPOINTS = (
    "model.safetensors", "run.json", "config.json", "progress.json", "curves.jsonl", "checkpoints",
)  # fmt: skip


@dataclass
class Run:
    """A finished run: the final model in eval mode, and every figure that was noted."""

    name: str
    config: TrainConfig
    model: nn.Module
    shapes: dict[str, Any]
    history: list[Progress] = field(default_factory=list)
    resumed_from_epoch: int = 0
    metrics: dict[str, float] = field(default_factory=dict)
    """On the test part."""
    notes: tuple[str, ...] = ()
    traffic: dict[str, int] = field(default_factory=dict)

    @property
    def samples_per_s(self) -> float:
        return self.history[-1].samples_per_s if self.history else 0.0


def write_json(path: Path, value: Any) -> None:
    """By atomic rename."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(value, allow_nan=False))
    os.replace(unfinished, path)


def claim(folder: Path, config: TrainConfig) -> None:
    """Note what the run is, or raise ConfigError if the folder belongs to a run of another config."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG
    if path.exists():
        config.require_same_run(read(path), where=f"run {folder.name!r} in {folder.parent}")
    else:
        write_json(path, config.model_dump(mode="json"))


def finish(folder: Path, config: TrainConfig, source: str, result: TrainResult) -> None:
    """Write the model and, last, run.json: from then on the run is finished."""
    weights.save(result.model, folder / MODEL)
    found = result.findings
    for name, pictures in (found.pictures if found else {}).items():
        draw(pictures, folder / "pictures" / f"{name}.png")
    write_json(
        folder / RUN,
        {
            "config": config.model_dump(mode="json"),
            "shapes": result.task.shapes,
            "history": [asdict(row) for row in result.history],
            "resumed_from_epoch": result.resumed_from_epoch,
            "dataset_source": source,
            "metrics": found.metrics if found else {},
            "notes": found.notes if found else (),
            "traffic": asdict(result.traffic),
        },
    )


def draw(pictures_NCHW: Tensor, path: Path, *, columns: int = 10) -> None:
    """uint8 pictures (N, C, H, W) as one PNG, in rows."""
    from PIL import Image
    from torchvision.utils import make_grid

    grid_CHW = make_grid(pictures_NCHW.cpu(), nrow=columns, padding=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(grid_CHW.permute(1, 2, 0).numpy()).save(path)


def load(name: str, runs_dir: Path) -> Run:
    """A finished run. Raises ConfigError if there is none of that name, or it is damaged."""
    folder = runs_dir / name
    if not (folder / RUN).exists():
        raise ConfigError(f"no finished run {name!r} in {runs_dir}; train it first: sluice train RECIPE")
    kept = read(folder / RUN)
    try:
        config = TrainConfig.model_validate(kept["config"])
        model = ensemble_of(config.task.skeleton(config, kept["shapes"]), config.ensemble_size)
        model.load_state_dict(load_file(folder / MODEL))
        return Run(
            name=name, config=config, model=model.eval(), shapes=kept["shapes"],
            history=[Progress(**row) for row in kept["history"]], resumed_from_epoch=kept["resumed_from_epoch"],
            metrics=kept["metrics"], notes=tuple(kept["notes"]), traffic=kept["traffic"],
        )  # fmt: skip
    except (OSError, KeyError, TypeError, RuntimeError, ValidationError, SafetensorError) as error:
        raise ConfigError(f"run {name!r} in {runs_dir} is damaged ({error}); delete it, train anew") from error


def read(path: Path) -> dict[str, Any]:
    """A JSON object. Raises ConfigError if it is none."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} is damaged ({error}); delete the run's folder and train anew") from error
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} is damaged: it holds no object; delete the run's folder and train anew")
    return dict(content)
