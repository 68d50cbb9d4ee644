"""What a judge is, and what all of them do alike.

    inputs, batch by batch -> a runtime -> outputs -> evidence -> Accuracy, beside the evidence of parent and root

Evidence is one array with an entry for each test sample, so that two variants can be compared sample by sample.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from cluster.errors import InvalidRequest
from cluster.variants import Accuracy
from train_jobs.tasks.task import Metric

Array = NDArray[np.generic]
Evidence = NDArray[np.generic]
"""Flags (N,), errors (N,), scores (N,) or features (N, D)."""
Other = tuple[str, Evidence]
"""Another variant's id, and what the same judge kept of it."""


class Judge(Protocol):
    """Of one test part. It knows the graph's tensors by their names, and nothing else of the graph."""

    metric: Metric
    dataset: str

    def inputs(self, batch_size: int) -> Iterator[dict[str, Array]]:
        """The whole test part, as the graph takes it."""

    def read(self, outputs: Iterable[Mapping[str, Array]]) -> Evidence:
        """What the graph gave for these batches, in their order. Raises InvalidRequest for answers that are none."""

    def accuracy(
        self, evidence: Evidence, *, runtime: str, parent: Other | None = None, root: Other | None = None
    ) -> Accuracy:
        """The figure, its intervals, and the paired differences to `parent` and `root`. The same evidence always gives
        the same ones."""


def batches(x: Array, name: str, batch_size: int) -> Iterator[dict[str, Array]]:
    """`x` as the input `name`. A view of overlapping windows may be many times its memory: only a batch is copied."""
    for first in range(0, len(x), batch_size):
        yield {name: np.ascontiguousarray(x[first : first + batch_size])}


def whole(pieces: Sequence[Array], samples: int) -> Evidence:
    """The pieces as one. Raises InvalidRequest unless there is a finite entry for each of the `samples`."""
    evidence = np.concatenate(pieces) if pieces else np.empty(0)
    if len(evidence) != samples:
        raise InvalidRequest(
            f"the graph gives {len(evidence)} answers to {samples} test samples; export it with a free batch"
        )
    finite = np.isfinite(evidence).reshape(samples, -1).all(1)
    if not finite.all():
        raise InvalidRequest(
            f"the graph answers {int((~finite).sum())} of {samples} test samples with NaN or infinity, first sample "
            f"{int((~finite).argmax())}; leave out the pass that made it"
        )
    return evidence
