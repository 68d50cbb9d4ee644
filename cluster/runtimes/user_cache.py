"""Folder of the user's own in which an executor keeps what it has compiled."""

from __future__ import annotations

import os
from pathlib import Path

from cluster.errors import RuntimeUnavailable


def user_cache(name: str) -> Path:
    """$XDG_CACHE_HOME/sluice/<name> or ~/.cache/sluice/<name>, made where it is missing.

    Executors load machine code from there, and torch unpickles, so it must be a folder into which nobody else can
    write. Raises RuntimeUnavailable if it is not, or cannot be made.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sluice" / name
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise RuntimeUnavailable(
            f"{folder} cannot be made ({error}), and compiled graphs are kept there; set XDG_CACHE_HOME to a folder "
            "that may be written"
        ) from error
    if status.st_uid != os.getuid() or status.st_mode & 0o022:
        raise RuntimeUnavailable(
            f"{folder} can be written by others, who could plant code in it; `chmod go-w` it, or set XDG_CACHE_HOME to "
            "a folder of your own"
        )
    return folder
