"""`pkg.module:name` -> LabelledDataset: what a function or an object of the user's own gives."""

from __future__ import annotations

from collections.abc import Mapping

from cluster.errors import ConfigError
from train_jobs.datasets.labelled import PARTS, LabelledDataset, Notify, of_arrays
from train_jobs.references import resolve

_WANTED = f"a dict of {', '.join(PARTS)} (or x and y) and perhaps labels, or these in a tuple, or a LabelledDataset"


def from_object(spec: str, *, notify: Notify | None) -> LabelledDataset:
    """A LabelledDataset, a dict or tuple of arrays, or a function without arguments that returns one of these.

    Raises ConfigError as `resolve` does, and for anything else that it gives.
    """
    found = resolve(spec)
    made = found.value
    if isinstance(made, tuple) and len(made) in (4, 5):
        made = dict(zip((*PARTS, "labels"), made, strict=False))
    name = found.name
    if isinstance(made, LabelledDataset):
        name, made = made.name or name, vars(made)
    if not isinstance(made, Mapping):
        told = f"a tuple of {len(made)}" if isinstance(made, tuple) else type(made).__name__
        raise ConfigError(f"{spec} gives {told}; it must give {_WANTED}")
    return of_arrays(made, name=name, source=spec, spec=found.spec, notify=notify)
