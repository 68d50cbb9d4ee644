"""Errors -> Accuracy: an error is compared with another's as a share of that one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cluster.variants import Accuracy, Difference
from train_jobs.judges.blocks import Floats, spread
from train_jobs.tasks.task import Metric

_WORST = -1e6
"""Nothing is worse: an error may be any number of times another, or the other nought, and JSON has no infinity."""


@dataclass(frozen=True)
class Drawn:
    """An error, and what it would have been on samples drawn anew (R,); of two variants with the same draws."""

    value: float
    again: Floats


def improvement(this: Floats | float, other: Floats | float) -> Floats:
    """(other - this) / other: by how much an error is smaller, as a share of the other's; 0 where they are equal."""
    mine, its = np.asarray(this, np.float64), np.asarray(other, np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        share = np.where(mine == its, 0.0, (its - mine) / its)
    return np.maximum(share, _WORST)


def compared(drawn: Drawn, other_id: str, other: Drawn, independent: int) -> Difference:
    """The paired difference. What moves both errors alike from one draw to the next leaves their ratio as it is."""
    interval, bounds = spread(improvement(drawn.again, other.again), independent)
    return Difference(
        other_id=other_id, value=float(improvement(drawn.value, other.value)), interval=interval, bounds=bounds,
        relative=True,
    )  # fmt: skip


def judged(
    metric: Metric, drawn: Drawn, *, parent: tuple[str, Drawn] | None, root: tuple[str, Drawn] | None,
    independent: int, samples: int, dataset: str, runtime: str,
) -> Accuracy:  # fmt: skip
    """`independent`: as how many independent ones the samples count."""
    interval, bounds = spread(drawn.again, independent)
    return Accuracy(
        metric=metric.name, higher_is_better=metric.higher_is_better, value=drawn.value, total=samples,
        interval=interval, bounds=bounds, dataset=dataset, runtime=runtime,
        to_parent=None if parent is None else compared(drawn, *parent, independent),
        to_root=None if root is None else compared(drawn, *root, independent),
    )  # fmt: skip
