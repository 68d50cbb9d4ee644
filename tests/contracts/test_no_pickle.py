"""No package unpickles: read off the source, call by call."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
PACKAGES = ("cluster", "train_jobs", "serve_apps", "tune_spaces")
MODULES = {"pickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
CALLS = {"torch.jit.load", "torch.hub.load", "torch.package.PackageImporter", "pandas.read_pickle", "pd.read_pickle",
         "yaml.load", "yaml.unsafe_load", "yaml.full_load", "torch.serialization.load"}  # fmt: skip
READER = "torch_archive.py"
"""The one file that may call torch.export.load: it hands it only archives that it has rebuilt itself."""
RESTRICTED = "train_jobs/checkpoint.py"
"""The one file with an Unpickler, for torch's table of contents: it finds torch's own classes and nothing else
(tests/unit/train_jobs/test_checkpoint.py hands it an object that would write a file)."""
ERRORS = {"PickleError", "PicklingError", "UnpicklingError"}


def unpicklers(source: str, *, file: str = "other.py") -> list[str]:
    """What in `source` could unpickle, as "line: call"."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            harmless = isinstance(node, ast.ImportFrom) and {alias.name for alias in node.names} <= ERRORS
            found += [
                f"{node.lineno}: import {name}" for name in names if name.split(".")[0] in MODULES and not harmless
            ]
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            options = {word.arg: ast.unparse(word.value) for word in node.keywords}
            bad = (
                call in CALLS
                or (call == "torch.load" and options.get("weights_only") != "True")
                or (call in ("np.load", "numpy.load") and options.get("allow_pickle", "False") != "False")
                or (call == "torch.export.load" and file != READER)
            )
            if bad:
                found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_no_package_unpickles(package: str) -> None:
    files = sorted((ROOT / package).rglob("*.py"))
    assert files
    found = {str(path.relative_to(ROOT)): unpicklers(path.read_text(), file=path.name) for path in files}
    restricted = found.pop(RESTRICTED, [])
    assert {path: lines for path, lines in found.items() if lines} == {}
    assert len(restricted) <= 1, "the import, and no other call"


def test_the_unpickler_says_itself_what_it_finds_and_only_it_is_called() -> None:
    tree = ast.parse((ROOT / RESTRICTED).read_text())
    used = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} == {"pickle.Unpickler", "pickle.UnpicklingError"}
    (ours,) = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == "_Unpickler")
    assert [ast.unparse(base) for base in ours.bases] == ["pickle.Unpickler"]
    assert [node.name for node in ours.body if isinstance(node, ast.FunctionDef)] == ["find_class"]


def test_the_reader_of_torch_archives_is_where_we_think() -> None:
    source = (ROOT / "cluster/runtimes" / READER).read_text()
    assert len(unpicklers(source)) == 1
    assert unpicklers(source, file=READER) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from pickle import UnpicklingError, loads",
        "def f():\n    from cloudpickle import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "torch.export.load(path)",
        "torch.jit.load(path)",
        "yaml.load(text)",
    ],
)
def test_the_check_finds(source: str) -> None:
    assert unpicklers(source)


@pytest.mark.parametrize(
    "source",
    [
        "torch.load(p, weights_only=True)", "np.load(p)", "np.load(p, allow_pickle=False)",
        "from pickle import UnpicklingError",
    ],
)
def test_the_check_lets_pass(source: str) -> None:
    assert unpicklers(source) == []
