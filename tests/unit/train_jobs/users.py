"""A user's folder with modules of their own."""

from __future__ import annotations

import sys
import uuid
from pathlib import Path


class Project:
    """Modules in `folder`, each under a name that no other test imports."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._written: list[str] = []

    def write(self, code: str, *, package: str = "") -> str:
        """The name of a module with this code, in `package` if it is to lie in one."""
        name = f"users_own_{uuid.uuid4().hex[:8]}"
        place = self.folder.joinpath(*package.split(".")) if package else self.folder
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{name}.py").write_text(code)
        self._written.append(f"{package}.{name}" if package else name)
        return self._written[-1]

    def forget(self) -> None:
        """As in a new process: nothing of it imported, its folder not importable."""
        for name in self._written:
            for part in {name, *(name[:i] for i, c in enumerate(name) if c == ".")}:
                sys.modules.pop(part, None)
        sys.path[:] = [entry for entry in sys.path if entry != str(self.folder)]

