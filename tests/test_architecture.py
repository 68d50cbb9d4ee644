"""The arrows of the packages' READMEs: imports point one way, and importing is free."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("cluster", "train_jobs", "serve_apps", "tune_spaces")
MAY_IMPORT = {
    "cluster": {"cluster"},
    "train_jobs": {"train_jobs", "cluster"},
    "serve_apps": {"serve_apps", "cluster"},
    "tune_spaces": set(PACKAGES),
}
# The vocabulary: no Ray, no torch, anywhere in the file.
PURE = (
    "errors", "variants", "artifacts", "profiles", "plans", "stats", "tensors", "manifests", "slo", "studies",
    "hardware", "machine", "native", "scheduling",
)  # fmt: skip


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found.add(node.module.split(".")[0])
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    for path in files:
        siblings = imports_of(path) & set(PACKAGES)
        assert siblings <= MAY_IMPORT[package], f"{path.relative_to(ROOT)} imports {siblings - MAY_IMPORT[package]}"


def test_the_vocabulary_knows_neither_ray_nor_torch() -> None:
    for path in (ROOT / "cluster" / f"{name}.py" for name in PURE):
        assert not imports_of(path) & {"ray", "torch", "onnxruntime"}, path


def test_serving_never_needs_torch() -> None:
    for path in (ROOT / "serve_apps").rglob("*.py"):
        assert "torch" not in imports_of(path), path


def test_cluster_imports_ray_and_torch_only_inside_functions() -> None:
    for path in (ROOT / "cluster").rglob("*.py"):
        if path.name in ("torch_archive.py", "torch_compile.py", "torch_cuda.py", "onnxruntime_cuda.py"):
            continue  # they are themselves only imported by the runtimes and by the exporter
        assert not imports_of(path, top_level_only=True) & {"ray", "torch", "onnxruntime"}, path


def test_the_cli_loads_neither_ray_nor_torch() -> None:
    code = (
        "import sys; from cluster import cli; "
        "from typer.testing import CliRunner; r = CliRunner().invoke(cli.app, ['--help']); assert r.exit_code == 0, r; "
        "heavy = {'ray', 'torch', 'numpy', 'pydantic', 'onnxruntime'} & set(sys.modules); print(sorted(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_every_package_has_a_short_readme() -> None:
    for package in (*PACKAGES, "k8s"):
        readme = ROOT / package / "README.md"
        assert readme.exists(), f"{package}/README.md is missing"
        assert len(readme.read_text().splitlines()) < 60
