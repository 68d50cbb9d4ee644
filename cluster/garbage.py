"""ArtifactStore -> what nobody can want any more, and without it: variants, the bytes that only they named, profiles.

A variant stays if a reference points at it, one of the last releases of a model was it (or the next rollbacks would go
back to it), its caller pins it, or a variant that stays was made from it, over any number of steps. What is younger
than an hour stays too: it may be about to be named. A plan, a study or a deployment elsewhere is no reference; whoever
collects pins what those need.

Safe beside writers: nobody puts or moves a name while it works. Safe to kill: children go before their parents and
manifests before the bytes that they name, so that what is left is whole, and the next collection takes the rest.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.artifacts import ArtifactStore
from cluster.errors import ArtifactError, ConfigError
from cluster.releases import Releases
from cluster.variants import Variant

YOUNG_S = 3600.0
KEEP = 5


@dataclass(frozen=True)
class Collected:
    """What went, or would go."""

    variants: tuple[Variant, ...]
    """Children before their parents."""
    blobs: tuple[Path, ...]
    profiles: tuple[Path, ...]
    """Folders of profiles whose variant goes or is not in the store."""
    size_bytes: int
    """Of all the files."""


def kept_ids(store: ArtifactStore, *, keep: int = KEEP, pinned: Iterable[str] = ()) -> set[str]:
    """Ids that something names; without their ancestors. Raises ChecksumMismatch for a damaged reference or history."""
    releases = Releases(store)
    found = set(store.refs().values()) | set(pinned)
    for model_name in {*releases.past_models(), *releases.models()}:
        found |= releases.reachable(model_name, keep)
    return found


def with_ancestors(ids: Collection[str], by_id: Mapping[str, Variant]) -> set[str]:
    """`ids` and all that they were made from, as far as the store has it."""
    found: set[str] = set()
    left = list(ids)
    while left:
        variant = by_id.get(left.pop())
        if variant is not None and variant.id not in found:
            found.add(variant.id)
            left += [variant.parent_id] if variant.parent_id else []
    return found


def collect(
    store: ArtifactStore, *, keep: int = KEEP, pinned: Collection[str] = (), young_s: float = YOUNG_S,
    dry_run: bool = False,
) -> Collected:  # fmt: skip
    """Remove what nobody needs, or with `dry_run` only say what would go; `keep` is the number of past releases of each
    model that stay.

    Raises ConfigError for a negative `keep`, ChecksumMismatch if a manifest, reference or history is damaged: who can't
    tell what is needed removes nothing. ArtifactError if the disk refuses.
    """
    if keep < 0:
        raise ConfigError(f"keep={keep} is below 0; pass how many past releases of each model shall stay")
    if dry_run or not store.root.is_dir():
        return _doomed(store, keep, pinned, young_s)
    store.sweep()
    with store.collecting():
        doomed = _doomed(store, keep, pinned, young_s)
        _remove(store, doomed)
    return doomed


def _doomed(store: ArtifactStore, keep: int, pinned: Collection[str], young_s: float) -> Collected:
    variants = store.list()
    by_id = {variant.id: variant for variant in variants}
    before = time.time() - young_s
    young = {id_ for id_ in by_id if _younger(store.manifest_path(id_), before)}
    kept = with_ancestors(kept_ids(store, keep=keep, pinned=pinned) | young, by_id)
    going = _children_first([variant for variant in variants if variant.id not in kept], by_id)
    named = {entry.sha256 for id_ in kept for entry in by_id[id_].files}
    blobs = [
        path for path in sorted(store.root.glob("objects/*/*")) if path.name not in named and not _younger(path, before)
    ]
    profiles = [
        path for path in sorted(store.root.glob("profiles/*")) if path.name not in kept and not _younger(path, before)
    ]
    files = [*blobs, *(store.manifest_path(variant.id) for variant in going)]
    size = sum(_size(path) for path in [*files, *(file for folder in profiles for file in folder.rglob("*"))])
    return Collected(tuple(going), tuple(blobs), tuple(profiles), size)


def _remove(store: ArtifactStore, doomed: Collected) -> None:
    try:
        for variant in doomed.variants:
            store.manifest_path(variant.id).unlink(missing_ok=True)
        if doomed.variants:
            # In a power cut no manifest may come back whose bytes are gone.
            store.folder.sync(store.root / "variants")
        for path in doomed.blobs:
            path.unlink(missing_ok=True)
        for folder in doomed.profiles:
            shutil.rmtree(folder)
    except OSError as error:
        raise ArtifactError(f"cannot remove {error.filename} ({error.strerror}); see that it may be written") from error


def _children_first(variants: list[Variant], by_id: Mapping[str, Variant]) -> list[Variant]:
    return sorted(variants, key=lambda variant: len(with_ancestors([variant.id], by_id)), reverse=True)


def _younger(path: Path, than: float) -> bool:
    """A folder is as young as the youngest file in it. What vanished meanwhile needs no removing."""
    try:
        return max(each.stat().st_mtime for each in (path, *path.rglob("*"))) > than
    except OSError:
        return True


def _size(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except OSError:
        return 0
