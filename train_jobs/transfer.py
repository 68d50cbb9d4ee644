"""Weights of a model that learned something else -> the beginning of this run.

Freezing and gradual unfreezing from the head downwards, and a smaller learning rate the nearer a layer is to the
input: Howard and Ruder, "Universal Language Model Fine-tuning for Text Classification", ACL 2018, sections 3.2 and 3.3.
"""

from __future__ import annotations

import json
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from cluster.errors import ConfigError
from train_jobs.models.layers import batch_norms

if TYPE_CHECKING:
    from train_jobs.runs import Run


_FILES = (".safetensors", ".pth", ".pt")


class TransferConfig(BaseModel):
    """Where the weights come from, and how carefully they are changed."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    source: str
    """A finished run by name or folder, a file of weights (.safetensors, .pth), or "torchvision" for its published
    ones (ResNet, MobileNet; a download)."""
    freeze: bool = False
    """Train the head alone; what lies before it stays as it came."""
    layer_lr_decay: float = Field(default=1.0, gt=0, le=1)
    """The learning rate of each block, times that of the block after it."""
    thaw_epochs: int | None = Field(default=None, ge=1)
    """Begin with the head alone and add one block, from the head downwards, every so many epochs."""
    new_head: bool | None = None
    """Begin with a fresh head, though the source's may have the same shape. None: if the source is a run that learned
    the classes of other data: a head that is sure of those is worse than none."""


def load_weights(
    model: nn.Module, config: TransferConfig, *, runs_dir: Path | None, classes_of: str | None = None
) -> list[str]:
    """Put the weights of `config.source` into `model`, but for what has another shape there, and for a head of other
    classes. `classes_of` names the data whose classes the model is to tell apart; None: it tells none apart.

    Returns the names of what stays as it was. Raises ConfigError if there are no such weights, or none of them fits.
    """
    own = model.state_dict()
    # How pictures are normalised belongs to the data at hand.
    given = {k: v for k, v in _weights(model, config.source, runs_dir).items() if not k.startswith("preprocess.")}
    fitting = {name: tensor for name, tensor in given.items() if name in own and own[name].shape == tensor.shape}
    if not any(name in dict(model.named_parameters()) for name in fitting):
        raise ConfigError(
            f"transfer.source={config.source!r} holds no weight of this model's shapes; take a run with the same model "
            "(model.kind, model.width)"
        )
    if _has_new_head(config, runs_dir, classes_of):
        mine = {id(parameter) for parameter in _head(model).parameters()}
        fresh = {name for name, parameter in model.named_parameters() if id(parameter) in mine}
        fitting = {name: tensor for name, tensor in fitting.items() if name not in fresh}
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting and not name.startswith("preprocess.")]


def _head(model: nn.Module) -> nn.Module:
    heads = getattr(model, "heads", None)
    return heads if isinstance(heads, nn.Module) else model.blocks()[-1]  # type: ignore[operator]


def _has_new_head(config: TransferConfig, runs_dir: Path | None, classes_of: str | None) -> bool:
    if config.new_head is not None or classes_of is None:
        return bool(config.new_head)
    if config.source == "torchvision" or config.source.endswith(_FILES):
        return False
    try:
        kept = json.loads((find_run(config.source, runs_dir) / "run.json").read_text())
        return bool(kept["config"]["dataset"] != classes_of)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _weights(model: nn.Module, source: str, runs_dir: Path | None) -> dict[str, Tensor]:
    if source == "torchvision":
        published = getattr(model, "published_weights", None)
        if published is None:
            raise ConfigError("transfer.source=torchvision has weights for resnet18, resnet50 and mobilenet_v3 only")
        return published()  # type: ignore[no-any-return]
    path = find_run(source, runs_dir) if not source.endswith(_FILES) else Path(source)
    file = path / "model.safetensors" if path.is_dir() else path
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = torch.load(file, weights_only=True, map_location="cpu")
    except (OSError, EOFError, RuntimeError, SafetensorError, UnpicklingError, ValueError) as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise ConfigError(f"transfer.source={source!r}: {file} holds no weights ({reason})") from error
    if not isinstance(loaded, dict) or not all(isinstance(value, Tensor) for value in loaded.values()):
        raise ConfigError(f"transfer.source={source!r}: {file} is no dictionary of weights; save a state_dict")
    return getattr(model, "own_names", dict)(loaded)


def find_run(name: str, runs_dir: Path | None) -> Path:
    """The folder of a finished run, by path or by name. Raises ConfigError if there is none."""
    places = [Path(name)] + ([runs_dir / name] if runs_dir else [])
    for folder in places:
        if (folder / "run.json").exists():
            return folder
    looked = ", ".join(map(str, places))
    raise ConfigError(f"there is no finished run {name!r} ({looked}); train it first: sluice train")


def finished_run(name: str, runs_dir: Path | None) -> Run:
    """The finished run itself, by path or by name. Raises ConfigError if there is none, or it is damaged."""
    from train_jobs import runs  # it reads configs, and this module is part of what a config is

    folder = find_run(name, runs_dir)
    return runs.load(folder.name, folder.parent)


class Thaw:
    """Which blocks train when, and how fast. `model.blocks()` lists them from the input to the head."""

    def __init__(self, model: nn.Module, config: TransferConfig | None) -> None:
        self._config = config
        self._blocks: list[nn.Module] = list(model.blocks()) if config else []  # type: ignore[operator]

    def scale(self, parameter: Tensor) -> float:
        """What its learning rate is multiplied by."""
        if self._config is None:
            return 1.0
        for depth, block in enumerate(reversed(self._blocks)):
            if any(parameter is own for own in block.parameters()):
                return self._config.layer_lr_decay**depth
        return self._config.layer_lr_decay ** len(self._blocks)  # what is in no block lies before all of them

    def apply(self, model: nn.Module, epoch: int) -> bool:
        """Freeze and thaw for this epoch; did anything change? Call after model.train()."""
        if self._config is None or not (self._config.freeze or self._config.thaw_epochs):
            return False
        thawed = 1 if self._config.thaw_epochs is None else 1 + epoch // self._config.thaw_epochs
        awake = self._blocks[-thawed:]
        free = {id(p) for block in awake for p in block.parameters()}
        everything = thawed >= len(self._blocks) and not self._config.freeze
        changed = False
        for parameter in model.parameters():
            wanted = everything or id(parameter) in free
            changed |= parameter.requires_grad != wanted
            parameter.requires_grad_(wanted)
        if not everything:
            woken = {id(m) for block in awake for m in block.modules()}
            for layer in batch_norms(model):
                if id(layer) not in woken:
                    layer.eval()  # its statistics stay those of the data that it learned on
        return changed
