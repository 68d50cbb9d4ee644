"""numpy's .npz file -> LabelledDataset; read without pickle, so it can hold numbers and text and nothing that runs."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from cluster.errors import ConfigError, DataUnavailable
from train_jobs.datasets.labelled import LabelledDataset, Notify, of_arrays


def from_npz(path: Path, *, notify: Notify | None) -> LabelledDataset:
    """Its arrays x_train, y_train, x_test, y_test, or x and y; and labels if it has them.

    Raises DataUnavailable if it cannot be read, ConfigError if the arrays are not what they must be.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: _member(archive, name, path) for name in archive.files}
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        if isinstance(error, ConfigError):
            raise
        raise DataUnavailable(
            f"{path} cannot be read as .npz ({error}); write it with np.savez(path, x=..., y=...)"
        ) from error
    return of_arrays(arrays, name=path.stem, source=str(path), spec=str(path.resolve()), notify=notify)


def _member(archive: np.lib.npyio.NpzFile, name: str, path: Path) -> np.ndarray:
    try:
        member: np.ndarray = archive[name]
        return member
    except ValueError as error:  # numpy's own word for an array of Python objects
        raise ConfigError(
            f"{path}: {name} holds Python objects, which only a pickle can carry; make it an array of numbers, or of "
            "text with `.astype(str)`"
        ) from error
