"""`pkg.module:name` -> the object that it names in the user's own code, called if it is a function.

The current folder can be imported from, as with `python -m`. What came from there is written with its folder,
`/home/me/project:pkg.module:name`, so that it can be had again from any other.
"""

from __future__ import annotations

import importlib
import re
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from cluster.errors import ConfigError, SluiceError

_IDENTIFIER = r"[^\W\d]\w*"
_DOTTED = rf"{_IDENTIFIER}(?:\.{_IDENTIFIER})*"
_REFERENCE = re.compile(rf"(?:(?P<folder>.+):)?(?P<module>{_DOTTED}):(?P<name>{_DOTTED})")
_Got = TypeVar("_Got")


@dataclass(frozen=True)
class Resolved:
    """What a reference names: the object itself, or what it gave when it was called."""

    value: Any
    name: str
    """The last part of the module's name, with the object's own unless that says nothing more."""
    spec: str
    """What resolves to it again, from any folder."""


def is_reference(spec: str) -> bool:
    return _REFERENCE.fullmatch(spec) is not None


def resolve(spec: str, *, as_it_is: tuple[type, ...] = ()) -> Resolved:
    """Import the module, take the object, and call it without arguments unless it is of a type in `as_it_is` or no
    function at all.

    Raises ConfigError naming the module, the user's own error and its line if any of this fails.
    """
    match = _REFERENCE.fullmatch(spec)
    if match is None:
        raise ConfigError(f"{spec!r} is no pkg.module:name")
    folder = Path(match["folder"]).expanduser().resolve() if match["folder"] else None
    module = _import(match["module"], folder)
    value: Any = module
    for part in match["name"].split("."):
        if not hasattr(value, part):
            raise ConfigError(
                f"{spec}: module {match['module']} ({module.__file__}) has no {match['name']}; it has "
                f"{', '.join(name for name in vars(module) if not name.startswith('_')) or 'nothing'}"
            )
        value = getattr(value, part)
    if callable(value) and not isinstance(value, as_it_is):
        value = _users(value, f"{spec}, called without arguments,")
    last = match["module"].rpartition(".")[2]
    name = last if match["name"] in ("model", "dataset") else f"{last}.{match['name']}"
    return Resolved(value, name, f"{_prefix(module, folder)}{match['module']}:{match['name']}")


def _import(name: str, folder: Path | None) -> ModuleType:
    here = str(folder or Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()  # the file may have been written a moment ago
    try:
        module = _users(lambda: importlib.import_module(name), f"module {name} cannot be imported:")
    except ConfigError as error:
        cause = error.__cause__
        if isinstance(cause, ModuleNotFoundError) and cause.name and f"{name}.".startswith(f"{cause.name}."):
            raise ConfigError(
                f"there is no module {name} in {here}, nor is one installed; go to the folder that holds it, or "
                "install it"
            ) from cause
        raise
    if folder is not None and _root(module) not in (None, folder):
        raise ConfigError(
            f"module {name} was to come from {folder} and is another one, {module.__file__}; rename one of them"
        )
    return module


def _users(step: Callable[[], _Got], what: str) -> _Got:
    """Run the user's code; whatever it raises becomes one ConfigError with its line."""
    try:
        return step()
    except SluiceError:
        raise  # says already what, the value and the way out
    except (Exception, SystemExit) as error:
        told = " ".join(str(error).split()) or "no message"
        raise ConfigError(f"{what} raised {type(error).__name__}: {told}{_line(error)}") from error


def _line(error: BaseException) -> str:
    """The innermost line of Python that the error went through, the machinery of imports left out."""
    if isinstance(error, SyntaxError) and error.filename:
        return ""  # its message names them
    frames = [f for f in traceback.extract_tb(error.__traceback__) if not f.filename.startswith("<frozen")]
    inside = [f for f in frames if f.filename not in (__file__, importlib.__file__)]
    return f" ({inside[-1].filename}, line {inside[-1].lineno})" if inside else ""


def _root(module: ModuleType) -> Path | None:
    """The folder that the module's first package or file lies in."""
    if module.__file__ is None:
        return None
    path = Path(module.__file__).resolve()
    depth = module.__name__.count(".") + (path.name == "__init__.py")
    return path.parents[depth]


def _prefix(module: ModuleType, folder: Path | None) -> str:
    """The folder to import it from, for what is not installed."""
    root = folder or _root(module)
    return f"{root}:" if root is not None and (folder or root == Path.cwd().resolve()) else ""
