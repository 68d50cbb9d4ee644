"""State <-> one file: tensors and plain numbers only, written by atomic rename, read without unpickling objects."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from cluster.errors import TrainingFailed

FILE = "state.pt"


def save(state: dict[str, Any], folder: Path) -> Path:
    """Write `state` to folder/state.pt; a kill at any point leaves the old file or the new one, never half of one."""
    folder.mkdir(parents=True, exist_ok=True)
    target, temporary = folder / FILE, folder / f".{FILE}.{os.getpid()}"
    try:
        with temporary.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise TrainingFailed(f"cannot write {target} ({error}); the checkpoint before it is intact") from error
    return target


def load(folder: Path) -> dict[str, Any] | None:
    """The state in `folder`, or None if there is none. Raises TrainingFailed if the file is not one of ours."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        raise TrainingFailed(f"{path} is no checkpoint ({error}); delete it to start anew") from error
    return state
