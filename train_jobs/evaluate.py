"""Graph -> stored, measured variant. Accuracy is that of the graph in each runtime that may serve it, on the full test
set, and compared with its parent and with the trained model on the same samples."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cluster import stats
from cluster.artifacts import ANYTHING, ArtifactStore
from cluster.errors import ArtifactError, InferenceFailed, InvalidRequest, RuntimeUnavailable
from cluster.runtimes import RuntimeConfig, RuntimeName, load_runtime, runtimes_for
from cluster.slo import AccuracyFloor
from cluster.stats import Flags
from cluster.variants import Accuracy, Difference, Variant
from train_jobs.datasets import LabelledDataset

_FLOOR = AccuracyFloor()
"""What a variant is told against when it is made; the SLO's own decides later."""


def correct_flags(
    store: ArtifactStore, variant: Variant, dataset: LabelledDataset, config: RuntimeConfig, *, batch_size: int = 250
) -> Flags:
    """For each test sample: is the variant right about it? Its one output holds a score per class."""
    runtime = load_runtime(store, variant, config)
    entry, output = variant.inputs[0].name, variant.outputs[0].name
    try:
        labels = [
            np.argmax(runtime.infer({entry: dataset.x_test[i : i + batch_size]})[output], axis=1)
            for i in range(0, len(dataset.x_test), batch_size)
        ]
    finally:
        runtime.close()
    return np.asarray(np.concatenate(labels) == dataset.y_test)


def measured(
    correct: Flags, dataset: LabelledDataset, *, runtime: str, parent: tuple[str, Flags] | None = None,
    root: tuple[str, Flags] | None = None,
) -> Accuracy:  # fmt: skip
    """Counts -> Accuracy with its interval and, against a parent and a root (id, what it got right), the paired
    differences."""
    right, total = int(correct.sum()), len(correct)

    def difference(other: tuple[str, Flags] | None) -> Difference | None:
        if other is None:
            return None
        delta = stats.paired_delta(other[1], correct)
        return Difference(
            other_id=other[0], value=delta.value, interval=delta.interval, bounds=delta.bounds,
            worst_class_drop=stats.worst_class_drop(dataset.y_test, other[1], correct),
        )  # fmt: skip

    return Accuracy(
        value=right / total, correct=right, total=total, interval=stats.jeffreys(right, total), dataset=dataset.name,
        runtime=runtime, to_parent=difference(parent), to_root=difference(root),
    )  # fmt: skip


class Bench:
    """Stores variants of one model, the trained one first, and remembers what each got right."""

    def __init__(self, store: ArtifactStore, dataset: LabelledDataset, notify: Callable[[str], None]) -> None:
        self._store = store
        self._dataset = dataset
        self._notify = notify
        self._correct: dict[str, Flags] = {}
        self._root_id = ""

    def add(self, variant: Variant, files: dict[str, bytes], made_for: RuntimeName) -> Variant:
        """Store, and measure in `made_for` and every other installed runtime that executes it; the name points at the
        variant once its accuracy is known, never before.

        Raises InvalidRequest if `made_for` cannot execute the variant; another runtime that cannot is left out.
        """
        stored = self._store.put(variant, files)
        accuracies = []
        for runtime in dict.fromkeys([made_for, *runtimes_for(variant.format)]):
            try:
                accuracies.append(self._measure(stored, runtime))
            except (ArtifactError, InferenceFailed, InvalidRequest, RuntimeUnavailable) as error:
                if runtime == made_for:
                    raise InvalidRequest(f"{variant.name} does not run on {runtime}: {error}") from error
                why = " ".join(str(error).split())[:300]  # executors tell whole pages
                self._notify(f"{stored.name} does not run on {runtime} and is not planned there: {why}")
        stored = self._store.put(stored.model_copy(update={"accuracies": tuple(accuracies)}), files)
        self._store.set_ref(stored.name, stored.id, expected=ANYTHING)
        first = accuracies[0]
        others = "".join(f", {a.value:.4f} on {a.runtime}" for a in accuracies[1:])
        verdict = f", {_FLOOR.verdict(first)}: {_FLOOR}" if first.to_root else ""
        self._notify(
            f"{stored.name}: {first.value:.4f} on {first.total} test samples ({first.runtime}{others}){verdict}, "
            f"{stored.size_bytes:,} bytes"
        )
        return stored

    def _measure(self, variant: Variant, runtime: RuntimeName) -> Accuracy:
        correct = correct_flags(self._store, variant, self._dataset, RuntimeConfig(name=runtime))
        self._correct.setdefault(variant.id, correct)  # the first runtime is the one that others are compared with
        if variant.parent_id is None:
            self._root_id = self._root_id or variant.id
            return measured(correct, self._dataset, runtime=runtime)
        parent, root = ((id_, self._correct[id_]) for id_ in (variant.parent_id, self._root_id))
        return measured(correct, self._dataset, runtime=runtime, parent=parent, root=root)
