"""Variants on disk: bytes under their sha256, manifests by id, names that move by compare-and-swap.

    root/objects/ab/<sha256>      bytes, written once
    root/variants/<id>.json       manifest; names the bytes by sha256
    root/refs/<name>              a variant id; the only thing that ever changes its meaning
    root/tmp/                     half-written files; a kill -9 leaves its leavings here and nowhere else

Every file arrives by write, fsync, rename, fsync of the folder. Blobs come before the manifest that names them, so
whoever sees a manifest can read all of it. Nothing here is ever unpickled.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from cluster.errors import ChecksumMismatch, ConfigError, RefConflict, VariantNotFound
from cluster.variants import ArtifactFile, Variant

_REF_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[A-Za-z0-9][A-Za-z0-9._-]*){0,4}")
_ID = re.compile(r"[0-9a-f]{6,16}")
_STALE_S = 3600.0


class _Anything:
    """Marks "whatever the reference is now": None already means "it must not exist"."""


ANYTHING = _Anything()


def default_store() -> ArtifactStore:
    """$SLUICE_STORE or ~/.local/share/sluice/store."""
    return ArtifactStore(Path(os.environ.get("SLUICE_STORE", Path.home() / ".local/share/sluice/store")))


class ArtifactStore:
    """A folder of variants; safe for concurrent writers on one file system. Creating the object touches nothing."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(root)

    def put(self, variant: Variant, files: Mapping[str, bytes]) -> Variant:
        """Store `files` and the manifest that names them; returns the manifest with its files filled in.

        The same content gets the same id; putting it again replaces the manifest's accuracy and provenance.
        """
        entries = []
        for path, data in sorted(files.items()):
            if not _REF_NAME.fullmatch(path):
                raise ConfigError(f"file name {path!r} is not allowed in a variant; use letters, digits, . _ - and /")
            digest = hashlib.sha256(data).hexdigest()
            target = self._blob(digest)
            if not target.exists():
                self._write(target, data)
            entries.append(ArtifactFile(path=path, sha256=digest, size_bytes=len(data)))
        stored = variant.model_copy(update={"files": tuple(entries)})
        self._write(self._manifest(stored.id), json.dumps(stored.model_dump(mode="json"), indent=1).encode())
        return stored

    def get(self, ref: str) -> Variant:
        """By id, unique prefix of at least 6 digits, or name. Raises VariantNotFound, ChecksumMismatch."""
        variant_id = self.ref(ref) if _REF_NAME.fullmatch(ref) else None
        if variant_id is None and _ID.fullmatch(ref):
            found = [path.stem for path in self.root.glob(f"variants/{ref}*.json")]
            if len(found) > 1:
                raise VariantNotFound(f"variant {ref!r} is ambiguous: {', '.join(sorted(found))}; give more digits")
            variant_id = found[0] if found else None
        if variant_id is None or not self._manifest(variant_id).exists():
            known = ", ".join(sorted(self.refs())) or "none yet"
            raise VariantNotFound(f"no variant {ref!r} in {self.root}; named ones: {known}")
        return self._load(self._manifest(variant_id))

    def read(self, variant: Variant, path: str) -> bytes:
        """The verified bytes of one of the variant's files. Raises ChecksumMismatch if they changed on disk."""
        entry = next((f for f in variant.files if f.path == path), None)
        if entry is None:
            raise VariantNotFound(f"variant {variant.id} has no file {path!r}; it has {[f.path for f in variant.files]}")
        blob = self._blob(entry.sha256)
        try:
            data = blob.read_bytes()
        except FileNotFoundError:
            raise ChecksumMismatch(f"{path} of variant {variant.id} is missing: no {blob}; make it again") from None
        actual = hashlib.sha256(data).hexdigest()
        if actual != entry.sha256:
            raise ChecksumMismatch(
                f"{path} of variant {variant.id} has sha256 {actual[:12]}..., its manifest says "
                f"{entry.sha256[:12]}...; delete {blob} and make the variant again"
            )
        return data

    def list(self) -> list[Variant]:
        """Every variant, oldest first."""
        found = [self._load(path) for path in sorted(self.root.glob("variants/*.json"))]
        return sorted(found, key=lambda v: (v.created_at, v.name))

    def ref(self, name: str) -> str | None:
        """The id that `name` points to, or None."""
        try:
            return self._ref(name).read_text().strip()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None

    def refs(self) -> dict[str, str]:
        """All names and the ids that they point to."""
        folder = self.root / "refs"
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        return {str(p.relative_to(folder)): p.read_text().strip() for p in paths}

    def set_ref(self, name: str, variant_id: str, *, expected: str | None | _Anything = ANYTHING) -> None:
        """Point `name` at a variant if it now points at `expected` (None: does not exist yet).

        Raises RefConflict when somebody else moved it first, VariantNotFound when there is no such variant.
        """
        target = self._ref(name)
        if not self._manifest(variant_id).exists():
            raise VariantNotFound(f"cannot point {name!r} at {variant_id!r}: no such variant in {self.root}")
        with self._lock():
            now = self.ref(name)
            if not isinstance(expected, _Anything) and now != expected:
                raise RefConflict(f"{name!r} points at {now}, not at {expected}; read it again and decide anew")
            self._write(target, variant_id.encode())

    def verify(self) -> list[str]:
        """Problems in words; empty when every manifest's bytes are there and right and every name leads somewhere."""
        problems = []
        for path in sorted(self.root.glob("variants/*.json")):
            try:
                variant = self._load(path)
                for entry in variant.files:
                    self.read(variant, entry.path)
            except ChecksumMismatch as error:
                problems.append(str(error))
        for name, variant_id in self.refs().items():
            if not self._manifest(variant_id).exists():
                problems.append(f"{name!r} points at {variant_id}, which does not exist")
        return problems

    def sweep(self, *, older_than_s: float = _STALE_S) -> int:
        """Remove half-written files that no living writer can still own; returns how many."""
        swept = 0
        for path in self.root.glob("tmp/*"):
            try:
                if time.time() - path.stat().st_mtime > older_than_s:
                    path.unlink()
                    swept += 1
            except FileNotFoundError:
                pass  # its writer just renamed it into place
        return swept

    def _load(self, path: Path) -> Variant:
        try:
            data = json.loads(path.read_bytes())
            claimed = data.pop("id")
            variant = Variant.model_validate(data)
        except (ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            raise ChecksumMismatch(f"{path} is no readable manifest ({error}); delete it and make it again") from error
        if not claimed == variant.id == path.stem:
            raise ChecksumMismatch(f"{path} claims id {claimed}, its content hashes to {variant.id}; it was edited")
        return variant

    def _blob(self, digest: str) -> Path:
        return self.root / "objects" / digest[:2] / digest

    def _manifest(self, variant_id: str) -> Path:
        return self.root / "variants" / f"{variant_id}.json"

    def _ref(self, name: str) -> Path:
        if not _REF_NAME.fullmatch(name):
            raise ConfigError(f"name {name!r} is not allowed; use letters, digits, . _ - and up to four /")
        return self.root / "refs" / name

    def _write(self, target: Path, data: bytes) -> None:
        temporary = self.root / "tmp" / f"{os.getpid()}-{uuid.uuid4().hex}"
        temporary.parent.mkdir(parents=True, exist_ok=True)
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
        folder = os.open(target.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        # The kernel drops the lock with its holder, so a kill -9 can't leave it behind.
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
