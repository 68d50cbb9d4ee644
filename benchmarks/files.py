"""Figures on disk: whole or not there."""

from __future__ import annotations

from pathlib import Path


def write(path: Path, text: str) -> None:
    """`text` as the file `path`, by atomic rename; its folder is made if need be."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")
    unfinished.write_text(text)
    unfinished.replace(path)
