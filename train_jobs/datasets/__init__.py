"""Spec -> samples in memory: a name that Sluice knows, or the user's own function, folder of pictures or .npz file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from cluster.errors import ConfigError, DataUnavailable
from train_jobs.datasets.folder import Look, from_folder
from train_jobs.datasets.imported import from_object
from train_jobs.datasets.labelled import LabelledDataset
from train_jobs.datasets.named import NAMES, from_name
from train_jobs.datasets.npz import from_npz
from train_jobs.references import is_reference

__all__ = ["NAMES", "LabelledDataset", "load", "require"]


def load(spec: str, *, notify: Callable[[str], None] | None = None) -> LabelledDataset:
    """The data set that `spec` names; what is decided on the way (a split, a stand-in) is told through `notify`.

        fashion-mnist | mnist | digits    known by name (say ./digits for a folder of that name)
        clothing | clothing-gray28 ...    the same: datasets/clothing.py
        my_pkg.data:dataset               a function without arguments, or an object, in a module of the user's
        samples.npz                       arrays: datasets/npz.py
        pictures/ or pictures?size=64x64  a folder of pictures: datasets/folder.py

    A known set that is not to be had is replaced by the embedded digits after saying so (`.name` tells); without
    `notify` there is nobody to tell, so nothing stands in and DataUnavailable names the reasons. Also raises
    DataUnavailable for files that are missing or broken, ConfigError for an unknown spec or data that cannot be used.
    """
    if spec in NAMES:
        return from_name(spec, notify=notify)
    path, query = _path_of(spec)
    if path.is_dir():
        return from_folder(path, Look.parse(query) if query is not None else Look(), notify=notify)
    if path.suffix == ".npz" and query is None:
        return from_npz(path, notify=notify)
    if is_reference(spec):
        return from_object(spec, notify=notify)
    if query is not None or "/" in spec:
        raise DataUnavailable(f"dataset={spec!r}: there is no folder {path}; name one with a folder for each class")
    raise ConfigError(
        f"dataset={spec!r} is unknown; Sluice knows {', '.join(NAMES)}; your own is pkg.module:function, a folder of "
        "pictures, or a .npz file"
    )


def _path_of(spec: str) -> tuple[Path, str | None]:
    """The path in a spec, and what follows its "?"; a path that is there as it stands has none."""
    path = Path(spec).expanduser()
    if path.exists() or "?" not in spec:
        return path, None
    before, _, query = spec.partition("?")
    return Path(before).expanduser(), query


class Named(Protocol):
    """Any data set: what it is called, what loads it again, where it came from."""

    @property
    def name(self) -> str: ...
    @property
    def spec(self) -> str: ...
    @property
    def source(self) -> str: ...


def require(dataset: Named, name: str) -> None:
    """Raise ConfigError unless `dataset` is the one that a config names: a stand-in must not pass for it."""
    if name not in (dataset.name, dataset.spec):
        raise ConfigError(
            f"the config says dataset={name!r}, these samples are {dataset.name!r} ({dataset.source}); "
            "bring the data (SLUICE_DATA_DIR) or train a recipe for what is there (cnn_digits)"
        )
