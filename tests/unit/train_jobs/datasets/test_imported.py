"""`pkg.module:name`: a data set out of the user's own code, from the current folder or any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cluster.errors import ConfigError
from tests.unit.train_jobs.users import Project
from train_jobs import datasets

FLOWERS = """
from sklearn.datasets import load_iris
from train_jobs.datasets import LabelledDataset

raw = load_iris()
X = raw.data.astype("float32")
as_dict = {"x": X, "y": raw.target, "labels": raw.target_names}
as_tuple = (X[::2], raw.target[::2], X[1::2], raw.target[1::2])
with_names = (*as_tuple, list(raw.target_names))
whole = LabelledDataset("irises", "Fisher", *as_tuple, labels=tuple(raw.target_names))
nothing = None
number = 3
pair = (X, raw.target)

def dataset():
    return as_dict

class Maker:
    @staticmethod
    def make():
        return as_tuple

def demanding(path):
    return as_dict

def broken():
    return 1 / 0
"""


@pytest.mark.parametrize("name", ["dataset", "as_dict"])
def test_a_function_or_an_object_is_a_data_set(project: Project, name: str) -> None:
    module = project.write(FLOWERS)
    loaded = datasets.load(f"{module}:{name}")
    assert (len(loaded.y_train), len(loaded.y_test)) == (120, 30)
    assert loaded.labels == ("setosa", "versicolor", "virginica")
    assert loaded.name == (module if name == "dataset" else f"{module}.as_dict")


@pytest.mark.parametrize("name", ["as_tuple", "with_names", "whole", "Maker.make"])
def test_tuples_and_whole_data_sets_are_taken_as_well(project: Project, name: str) -> None:
    module = project.write(FLOWERS)
    loaded = datasets.load(f"{module}:{name}")
    assert (len(loaded.y_train), len(loaded.y_test)) == (75, 75)
    assert loaded.labels[0] == ("setosa" if name in ("with_names", "whole") else "0")
    assert np.bincount(loaded.y_test).tolist() == [25, 25, 25]
    assert loaded.name == ("irises" if name == "whole" else f"{module}.{name}")


def test_its_spec_has_it_again_from_any_folder(project: Project, monkeypatch: pytest.MonkeyPatch) -> None:
    module = project.write(FLOWERS, package="mine.inner")
    loaded = datasets.load(f"{module}:dataset")
    assert loaded.spec == f"{project.folder}:{module}:dataset"
    project.forget()
    monkeypatch.chdir("/")
    assert datasets.load(loaded.spec).test_sha256 == loaded.test_sha256


def test_another_kind_of_mapping_is_judged_by_its_keys() -> None:
    with pytest.raises(ConfigError, match=r"load_iris holds DESCR, .*; give x_train"):
        datasets.load("sklearn.datasets:load_iris")


REFUSED = {
    "nothing": "gives NoneType; it must give a dict of x_train",
    "number": "gives int; it must give",
    "pair": "gives a tuple of 2; it must give",
    "absent": r"has no absent; it has .*as_dict",
    "demanding": "called without arguments, raised TypeError: .*missing 1 required positional argument: 'path'",
    "broken": r"raised ZeroDivisionError: division by zero \(.*, line \d+\)",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_gives_no_data_is_refused_in_the_users_own_words(project: Project, name: str) -> None:
    module = project.write(FLOWERS)
    with pytest.raises(ConfigError, match=REFUSED[name]):
        datasets.load(f"{module}:{name}")


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import no_such_library", "cannot be imported: raised ModuleNotFoundError: No module named 'no_such_library'"),
        ("x = [1][2]", r"cannot be imported: raised IndexError: list index out of range \(.*\.py, line 1\)"),
        ("def f(:", "cannot be imported: raised SyntaxError: .*line 1"),
        ("raise SystemExit(3)", "cannot be imported: raised SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported_is_one_error_with_its_line(project: Project, code: str, message: str) -> None:
    module = project.write(code)
    with pytest.raises(ConfigError, match=f"module {module} {message}"):
        datasets.load(f"{module}:dataset")


def test_a_module_that_is_not_there_is_named_with_the_folder(project: Project) -> None:
    with pytest.raises(ConfigError, match=rf"there is no module nowhere_to_be_found in {project.folder}"):
        datasets.load("nowhere_to_be_found:dataset")


def test_another_folders_module_of_the_same_name_does_not_pass_for_it(project: Project, tmp_path: Path) -> None:
    module = project.write(FLOWERS)
    datasets.load(f"{module}:dataset")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"{module}.py").write_text(FLOWERS)
    with pytest.raises(ConfigError, match=rf"was to come from .*other and is another one, {project.folder}"):
        datasets.load(f"{tmp_path / 'other'}:{module}:dataset")
