"""Data that is not to be had: somebody is told what stands in for it, or there is no stand-in."""

from __future__ import annotations

from cluster.errors import DataUnavailable
from train_jobs.datasets.labelled import Notify


def announce(name: str, reason: str, *, files: str, stand_in: str, notify: Notify | None) -> None:
    """Tell that `stand_in` is used for `name`, and which `files` below SLUICE_DATA_DIR would be the real thing.

    Raises DataUnavailable, with the same way out, where there is nobody to tell: nothing passes for what it is not.
    """
    problem = f"{name} is not to be had here: {reason}."
    way_out = f"set SLUICE_DATA_DIR to a folder with {files} for the real thing."
    if notify is None:
        raise DataUnavailable(f"{problem} To go on, {way_out}")
    notify(f"{problem} Using {stand_in} instead; {way_out}")
