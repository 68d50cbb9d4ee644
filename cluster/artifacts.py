"""Variants on disk: bytes under their sha256, manifests by id, names that move by compare-and-swap.

    root/objects/ab/<sha256>      bytes, written once
    root/variants/<id>.json       manifest; names the bytes by sha256 and bears a checksum of its own
    root/refs/<name>              a variant id; the only thing that ever changes its meaning
    root/history/<model>.json     where refs/active/<model> pointed before: see releases.py
    root/tmp/                     half-written files

Every file arrives whole (durable.py), and only garbage.py deletes one. Blobs come before the manifest that names them,
so whoever sees a manifest can read all of it. A kill -9 leaves half a file in tmp/, which a later put sweeps, or a
whole blob that no manifest names yet, which the same put made again finds and uses. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.durable import STALE_S, DurableFolder
from cluster.errors import ChecksumMismatch, ConfigError, RefConflict, VariantNotFound
from cluster.variants import NAME, SCHEMA_VERSION, ArtifactFile, Variant, canonical_sha256

_NAME = re.compile(NAME)
_ID = re.compile(r"[0-9a-f]{16}")
_ID_PREFIX = re.compile(r"[0-9a-f]{6,16}")


class Anything:
    """Marks "whatever the reference is now": None already means "it must not exist"."""


ANYTHING = Anything()


def default_store() -> ArtifactStore:
    """$SLUICE_STORE or ~/.local/share/sluice/store."""
    return ArtifactStore(Path(os.environ.get("SLUICE_STORE") or Path.home() / ".local/share/sluice/store"))


class ArtifactStore:
    """A folder of variants; safe for concurrent writers on one file system. Creating the object touches nothing."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root).absolute()  # a plan carries it to replicas, which run in another folder
        self.folder = DurableFolder(self.root)

    def put(self, variant: Variant, files: Mapping[str, bytes]) -> Variant:
        """Store `files` and the manifest that names them; returns the manifest with its files filled in.

        The same content gets the same id; putting it again replaces the manifest's name, accuracy and provenance.
        Raises ConfigError for a file name that is not allowed, ArtifactError if the disk refuses.
        """
        for path in files:
            if not _NAME.fullmatch(path):
                raise ConfigError(f"file name {path!r} is not allowed in a variant; use letters, digits, . _ - and /")
        self.sweep()
        with self.folder.lock(".put-lock", shared=True):  # a blob that is there already must stay until it is named
            entries = []
            for path, data in sorted(files.items()):
                digest = hashlib.sha256(data).hexdigest()
                self._write_blob(digest, data)
                entries.append(ArtifactFile(path=path, sha256=digest, size_bytes=len(data)))
            stored = variant.model_copy(update={"files": tuple(entries)})
            manifest = stored.model_dump(mode="json")
            manifest["checksum"] = canonical_sha256(manifest)
            self.folder.write(self.manifest_path(stored.id), json.dumps(manifest, indent=1).encode())
        return stored

    def get(self, ref: str) -> Variant:
        """By name, id or unique prefix of at least 6 digits. Raises VariantNotFound, ChecksumMismatch."""
        variant_id = self._by_prefix(ref) if _ID_PREFIX.fullmatch(ref) else None
        if variant_id is None and _NAME.fullmatch(ref):
            variant_id = self.ref(ref)
        if variant_id is not None:
            try:
                return self._load(self.manifest_path(variant_id))
            except FileNotFoundError:
                raise VariantNotFound(
                    f"{ref!r} points at variant {variant_id}, which is not in {self.root}; make it again"
                ) from None
        known = ", ".join(self._names()) or "none yet"
        raise VariantNotFound(f"no variant {ref!r} in {self.root}; named ones: {known}")

    def read(self, variant: Variant, path: str) -> bytes:
        """The verified bytes of one of the variant's files. Raises ChecksumMismatch if they changed on disk."""
        entry = next((f for f in variant.files if f.path == path), None)
        if entry is None:
            known = [f.path for f in variant.files]
            raise VariantNotFound(f"variant {variant.id} has no file {path!r}; it has {known}")
        blob = self.blob_path(entry.sha256)
        try:
            data = blob.read_bytes()
        except FileNotFoundError:
            raise ChecksumMismatch(f"{path} of variant {variant.id} is missing: no {blob}; make it again") from None
        actual = hashlib.sha256(data).hexdigest()
        if actual != entry.sha256:
            raise ChecksumMismatch(
                f"{path} of variant {variant.id} has sha256 {actual[:12]}..., its manifest says "
                f"{entry.sha256[:12]}...: {blob} was damaged; make the variant again, which replaces the bytes"
            )
        return data

    def ref(self, name: str) -> str | None:
        """The id that `name` points to, or None. Raises ChecksumMismatch if its file holds no id."""
        path = self._ref(name)
        try:
            text = path.read_text().strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except UnicodeDecodeError as error:
            text = str(error)
        if not _ID.fullmatch(text):
            raise ChecksumMismatch(f"{path} holds {text[:40]!r}, which is no variant id; delete it and name it anew")
        return text

    def refs(self) -> dict[str, str]:
        """All names and the ids that they point to. Raises ChecksumMismatch if one holds no id."""
        found = {name: self.ref(name) for name in self._names()}
        return {name: variant_id for name, variant_id in found.items() if variant_id is not None}

    def set_ref(self, name: str, variant_id: str, *, expected: str | Anything | None = ANYTHING) -> None:
        """Point `name` at a variant if it now points at `expected` (None: does not exist yet).

        Raises RefConflict when somebody else moved it first, VariantNotFound when there is no such variant,
        ConfigError when the name looks like an id or another name is a folder of it.
        """
        self.check_ref(name, variant_id)  # before the lock is there: what is refused leaves no trace
        with self.changing():
            if not isinstance(expected, Anything) and (now := self.ref(name)) != expected:
                raise RefConflict(f"{name!r} points at {now}, not at {expected}; read it again and decide anew")
            self.write_ref(name, variant_id)

    def check_ref(self, name: str, variant_id: str) -> None:
        """Raises as `set_ref` does, but for RefConflict, where `name` could not point at that variant."""
        target = self._ref(name)
        if _ID_PREFIX.fullmatch(name):
            raise ConfigError(f"name {name!r} would be taken for a variant's id; add a letter beyond f, or a /")
        if not _ID.fullmatch(variant_id) or not self.manifest_path(variant_id).exists():
            raise VariantNotFound(f"cannot point {name!r} at {variant_id!r}: no such variant in {self.root}")
        self._refuse_clash(name, target)

    def write_ref(self, name: str, variant_id: str | None) -> None:
        """Point `name` at a variant, at nothing if it is None; for who is `changing`. Raises as `check_ref` does."""
        if variant_id is None:
            if (path := self._ref(name)).exists():
                path.unlink()
                self.folder.sync(path.parent)
            return
        self.check_ref(name, variant_id)
        self.folder.write(self._ref(name), variant_id.encode())

    def verify(self) -> list[str]:
        """Problems in words; empty when every manifest's bytes are there and right and every name leads somewhere."""
        problems = []
        for path in self._manifests():
            try:
                variant = self._load(path)
                for entry in variant.files:
                    self.read(variant, entry.path)
            except FileNotFoundError:
                continue  # deleted while we looked
            except (ChecksumMismatch, ConfigError) as error:
                problems.append(str(error))
        for name in self._names():
            try:
                variant_id = self.ref(name)
            except ChecksumMismatch as error:
                problems.append(str(error))
                continue
            if variant_id is not None and not self.manifest_path(variant_id).exists():
                problems.append(f"{name!r} points at {variant_id}, which does not exist")
        return problems

    def list(self) -> list[Variant]:  # below every method that says `list` and means the type
        """Every variant, oldest first. Raises ChecksumMismatch naming a manifest that cannot be trusted."""
        found = []
        for path in self._manifests():
            try:
                found.append(self._load(path))
            except FileNotFoundError:
                continue  # deleted while we looked
        return sorted(found, key=lambda v: (v.created_at, v.name))

    def sweep(self, *, older_than_s: float = STALE_S) -> int:
        """Remove half-written files that no living writer can still own; returns how many."""
        return self.folder.sweep(older_than_s=older_than_s)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Nobody else moves a name meanwhile."""
        with self.folder.lock(".lock"):
            yield

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Nobody else moves a name or puts a variant meanwhile."""
        with self.changing(), self.folder.lock(".put-lock"):
            yield

    def _by_prefix(self, prefix: str) -> str | None:
        found = sorted(path.stem for path in self.root.glob(f"variants/{prefix}*.json"))
        if len(found) > 1:
            raise VariantNotFound(f"variant {prefix!r} is ambiguous: {', '.join(found)}; give more digits")
        return found[0] if found else None

    def _load(self, path: Path) -> Variant:
        """The manifest in `path`. Raises ChecksumMismatch unless it is whole and unedited, FileNotFoundError."""
        raw = path.read_bytes()
        try:
            data: dict[str, Any] = json.loads(raw)
            checksum = data.pop("checksum")
            version = data["schema_version"]
            genuine = checksum == canonical_sha256(data)
            claimed = data.pop("id")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ChecksumMismatch(f"{path} is no manifest ({error!r}); delete it and make it again") from error
        if not genuine:
            raise ChecksumMismatch(f"{path} is not as it was written: it was edited; delete it and make it again")
        if version != SCHEMA_VERSION:
            raise ConfigError(f"{path} has schema_version {version}; this Sluice reads {SCHEMA_VERSION}: use its own")
        try:
            variant = Variant.model_validate(data)
        except ValueError as error:
            raise ChecksumMismatch(f"{path} is no manifest ({error}); delete it and make it again") from error
        if not claimed == variant.id == path.stem:
            raise ChecksumMismatch(
                f"{path} claims id {claimed}, its content hashes to {variant.id}: it was edited; "
                "delete it and make it again"
            )
        return variant

    def blob_path(self, digest: str) -> Path:
        return self.root / "objects" / digest[:2] / digest

    def manifest_path(self, variant_id: str) -> Path:
        return self.root / "variants" / f"{variant_id}.json"

    def _manifests(self) -> Iterator[Path]:
        return iter(sorted(self.root.glob("variants/*.json")))

    def _ref(self, name: str) -> Path:
        if not _NAME.fullmatch(name):
            raise ConfigError(f"name {name!r} is not allowed; use letters, digits, . _ - and up to four /")
        return self.root / "refs" / name

    def _names(self) -> Iterator[str]:
        folder = self.root / "refs"
        names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
        return (name for name in names if _NAME.fullmatch(name))

    def _refuse_clash(self, name: str, target: Path) -> None:
        """Names are paths, so "a" and "a/b" cannot both exist."""
        if target.is_dir():
            raise ConfigError(f"name {name!r} is the first part of other names (see {target}); choose another")
        for parent in target.relative_to(self.root / "refs").parents:
            if (self.root / "refs" / parent).is_file():
                raise ConfigError(f"name {name!r} lies below the name {str(parent)!r}; choose another")

    def _write_blob(self, digest: str, data: bytes) -> None:
        target = self.blob_path(digest)
        try:
            intact = hashlib.sha256(target.read_bytes()).hexdigest() == digest
        except OSError:
            intact = False
        if intact:
            # Perhaps its writer was killed between rename and fsync: our manifest must not outlive it in a power cut.
            self.folder.sync(target.parent)
        else:
            self.folder.write(target, data)
