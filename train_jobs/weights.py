"""A model's weights as one file without pickle, whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor, nn


def separate(model: nn.Module) -> dict[str, Tensor]:
    """The state_dict, each tensor a copy: weights that a module uses in two places would be refused as sharing
    memory."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}


def save(model: nn.Module, path: Path) -> None:
    """Write the state_dict to `path`, by atomic rename."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    save_file(separate(model), unfinished)
    os.replace(unfinished, path)
