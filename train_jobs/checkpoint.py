"""State <-> one file: tensors and plain numbers only, written by atomic rename, read without unpickling objects."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from cluster.errors import TrainingFailed

FILE = "state.pt"


def save(state: dict[str, Any], folder: Path) -> Path:
    """Write `state` to folder/state.pt; a kill at any point leaves the old file or the new one, never half of one.

    One writer per folder. Raises TrainingFailed if the disk is full or the folder can't be written.
    """
    target, unfinished = folder / FILE, folder / f".{FILE}.unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, target)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a full disk into a RuntimeError
        with contextlib.suppress(OSError):
            unfinished.unlink()
        raise TrainingFailed(
            f"cannot write {target} ({error}); make room or choose another folder; the checkpoint before it is intact"
        ) from error
    return target


def load(folder: Path) -> dict[str, Any] | None:
    """The state in `folder`, or None if there is none. Raises TrainingFailed if the file is not one of ours."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        # Only its type: torch's own text advises to load the file without weights_only, which would run what is in it.
        raise TrainingFailed(f"{path} is no checkpoint ({type(error).__name__}); delete it to start anew") from error
    if not isinstance(state, dict):
        raise TrainingFailed(f"{path} holds a {type(state).__name__}, not a checkpoint; delete it to start anew")
    return state
