"""A score per class -> is it right? Counts of right answers, with the intervals of cluster/stats.py."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import numpy as np

from cluster import stats
from cluster.variants import Accuracy, Difference
from train_jobs.datasets import LabelledDataset
from train_jobs.judges.judge import Array, Evidence, Other, batches, whole
from train_jobs.tasks.classify import ACCURACY


class ClassifyJudge:
    """Evidence: bool (N,), True where the highest score is the label's."""

    metric = ACCURACY

    def __init__(self, dataset: LabelledDataset, *, inputs: str, outputs: str) -> None:
        """`inputs` and `outputs`: the names of the graph's samples and of its scores (B, K)."""
        self.dataset = dataset.name
        self._x, self._labels = dataset.x_test, dataset.y_test
        self._entry, self._output = inputs, outputs

    def inputs(self, batch_size: int) -> Iterator[dict[str, Array]]:
        return batches(self._x, self._entry, batch_size)

    def read(self, outputs: Iterable[Mapping[str, Array]]) -> Evidence:
        found = whole([np.argmax(each[self._output], axis=1) for each in outputs], len(self._labels))
        return np.asarray(found == self._labels)

    def accuracy(
        self, evidence: Evidence, *, runtime: str, parent: Other | None = None, root: Other | None = None
    ) -> Accuracy:
        """Jeffreys intervals; differences by the paired bootstrap of `stats.paired_delta`."""
        flags = evidence.astype(np.bool_)
        right, total = int(flags.sum()), len(flags)

        def difference(other: Other | None) -> Difference | None:
            if other is None:
                return None
            id_, theirs = other[0], other[1].astype(np.bool_)
            delta = stats.paired_delta(theirs, flags)
            return Difference(
                other_id=id_, value=delta.value, interval=delta.interval, bounds=delta.bounds,
                worst_class_drop=stats.worst_class_drop(self._labels, theirs, flags),
            )  # fmt: skip

        return Accuracy(
            value=right / total, correct=right, total=total, interval=stats.jeffreys(right, total),
            bounds=(stats.lower_bound(right, total), stats.upper_bound(right, total)), dataset=self.dataset,
            runtime=runtime, to_parent=difference(parent), to_root=difference(root),
        )  # fmt: skip
