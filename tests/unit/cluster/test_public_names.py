"""What a package says it offers is there, and is what its __init__ brings in."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from pathlib import Path

import pytest

import cluster

PACKAGES = [cluster.__name__] + [
    found.name for found in pkgutil.walk_packages(cluster.__path__, "cluster.") if found.ispkg
]
WITH_NAMES = [name for name in PACKAGES if hasattr(importlib.import_module(name), "__all__")]


def test_there_are_packages_with_public_names() -> None:
    assert {"cluster.runtimes", "cluster.load"} <= set(WITH_NAMES)


@pytest.mark.parametrize("package", WITH_NAMES)
def test_every_public_name_is_there_once(package: str) -> None:
    module = importlib.import_module(package)
    assert all(hasattr(module, name) for name in module.__all__)
    assert len(set(module.__all__)) == len(module.__all__)


@pytest.mark.parametrize("package", WITH_NAMES)
def test_what_is_imported_from_a_package_is_public(package: str) -> None:
    """No other package of ours reaches past __all__."""
    module = importlib.import_module(package)
    root = Path(cluster.__file__).parent.parent
    reached = set()
    for top in ("cluster", "train_jobs", "serve_apps", "tune_spaces", "tests"):
        for path in (root / top).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.ImportFrom) and node.module == package:
                    reached |= {alias.name for alias in node.names}
    submodules = {found.name for found in pkgutil.iter_modules(module.__path__)}
    assert reached - submodules <= set(module.__all__)
