"""DurableFolder: a folder whose files arrive whole and stay, also in a power cut, and which several processes change.

A file arrives by write, fsync, rename, fsync of the folders above it. A kill -9 leaves half a file in tmp/, which a
later `sweep` removes. A lock is the kernel's, which drops it with its holder: a kill -9 can't leave one behind.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.errors import ArtifactError

STALE_S = 3600.0
"""What is older than this belongs to no living writer."""


class DurableFolder:
    """Creating the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, target: Path, data: bytes) -> None:
        """`data` as the file `target`, which lies below the root. Raises ArtifactError if the disk refuses."""
        temporary = self.root / "tmp" / f"{os.getpid()}-{uuid.uuid4().hex}"
        try:
            self._make_root()
            temporary.parent.mkdir(exist_ok=True)
            target.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
            self.sync(target.parent)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            raise _refused(target, self.root, error) from error

    def sync(self, folder: Path) -> None:
        """fsync `folder` and those above it up to the root: each may be new, and so lost in a power cut."""
        _fsync(folder)
        while folder != self.root:
            folder = folder.parent
            _fsync(folder)

    def sweep(self, *, older_than_s: float = STALE_S) -> int:
        """Remove half-written files that no living writer can still own; returns how many."""
        swept = 0
        for path in (self.root / "tmp").glob("*"):
            try:
                if path.is_file() and time.time() - path.stat().st_mtime > older_than_s:
                    path.unlink()
                    swept += 1
            except FileNotFoundError:
                pass  # its writer just renamed it into place
        return swept

    @contextmanager
    def lock(self, name: str, *, shared: bool = False) -> Iterator[None]:
        """Wait for the lock of that name and hold it, alone or with others that share it. It is of one call, not of a
        thread: who holds it and asks again waits for himself. Raises ArtifactError if the disk refuses."""
        try:
            self._make_root()
            file = (self.root / name).open("w")
        except OSError as error:
            raise _refused(self.root / name, self.root, error) from error
        with file:
            fcntl.flock(file, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
            yield

    def _make_root(self) -> None:
        missing = [path for path in (self.root, *self.root.parents) if not path.exists()]
        self.root.mkdir(parents=True, exist_ok=True)
        for path in missing:
            _fsync(path.parent)


def _refused(target: Path, root: Path, error: OSError) -> ArtifactError:
    return ArtifactError(f"cannot write {target} ({error.strerror or error}); see that {root} is writable and has room")


def _fsync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
