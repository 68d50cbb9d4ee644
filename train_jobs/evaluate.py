"""Graph -> stored, measured variant. Its figures are those of the graph in each runtime that may serve it, on the full
test set, and are compared with its parent and with the trained model on the same samples (train_jobs/judges)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing

from cluster.artifacts import ANYTHING, ArtifactStore
from cluster.errors import ArtifactError, InferenceFailed, InvalidRequest, RuntimeUnavailable
from cluster.runtimes import Runtime, RuntimeConfig, RuntimeName, load_runtime, runtimes_for
from cluster.slo import AccuracyFloor
from cluster.variants import Accuracy, Variant, decimals, figure
from train_jobs.judges import Evidence, Judge

_FLOOR = AccuracyFloor()
"""What a variant is told against when it is made; the SLO's own decides later."""

_BATCH = 250


def evidence_of(
    store: ArtifactStore, variant: Variant, judge: Judge, config: RuntimeConfig, *, batch_size: int = _BATCH
) -> Evidence:
    """What the judge keeps of the variant's answers in that runtime. Raises InvalidRequest as `Judge.read` does."""
    with closing(load_runtime(store, variant, config)) as runtime:
        return _read(judge, runtime, batch_size)


def _read(judge: Judge, runtime: Runtime, batch_size: int) -> Evidence:
    return judge.read(runtime.infer(batch) for batch in judge.inputs(batch_size))


class Bench:
    """Stores variants of one model, the trained one first, and remembers the evidence of each."""

    def __init__(
        self, store: ArtifactStore, judge: Judge, notify: Callable[[str], None],
        odd_from: Callable[[Runtime], float] | None = None,
    ) -> None:  # fmt: skip
        """`odd_from` finds what the output THRESHOLD is to say in a runtime."""
        self._store = store
        self._judge = judge
        self._notify = notify
        self._odd_from = odd_from
        self._evidence: dict[str, Evidence] = {}
        self._root_id = ""

    def add(self, variant: Variant, files: dict[str, bytes], made_for: RuntimeName) -> Variant:
        """Store, and measure in `made_for` and every other installed runtime that executes it; the name points at the
        variant once its accuracy is known, never before.

        Raises InvalidRequest if `made_for` cannot execute the variant; another runtime that cannot is left out.
        """
        stored = self._store.put(variant, files)
        accuracies: list[Accuracy] = []
        thresholds: dict[str, float] = {}
        for runtime in dict.fromkeys([made_for, *runtimes_for(variant.format)]):
            try:
                accuracy, threshold = self._measure(stored, runtime)
            except (ArtifactError, InferenceFailed, InvalidRequest, RuntimeUnavailable) as error:
                if runtime == made_for:
                    raise InvalidRequest(f"{variant.name} does not run on {runtime}: {error}") from error
                why = " ".join(str(error).split())[:300]  # executors tell whole pages
                self._notify(f"{stored.name} does not run on {runtime} and is not planned there: {why}")
                continue
            accuracies.append(accuracy)
            if threshold is not None:
                thresholds[runtime] = threshold
        measured = {"accuracies": tuple(accuracies), "thresholds": thresholds}
        stored = self._store.put(stored.model_copy(update=measured), files)
        self._store.set_ref(stored.name, stored.id, expected=ANYTHING)
        self._notify(_told(stored, *accuracies))
        return stored

    def _measure(self, variant: Variant, runtime: RuntimeName) -> tuple[Accuracy, float | None]:
        """And from which score on a sample is odd there, where that is asked."""
        with closing(load_runtime(self._store, variant, RuntimeConfig(name=runtime))) as loaded:
            evidence = _read(self._judge, loaded, _BATCH)
            threshold = self._odd_from(loaded) if self._odd_from is not None else None
        return self._accuracy(variant, runtime, evidence), threshold

    def _accuracy(self, variant: Variant, runtime: RuntimeName, evidence: Evidence) -> Accuracy:
        self._evidence.setdefault(variant.id, evidence)  # the first runtime is the one that others are compared with
        if variant.parent_id is None:
            self._root_id = self._root_id or variant.id
            return self._judge.accuracy(evidence, runtime=runtime)
        parent, root = ((id_, self._evidence[id_]) for id_ in (variant.parent_id, self._root_id))
        return self._judge.accuracy(evidence, runtime=runtime, parent=parent, root=root)


def _told(stored: Variant, first: Accuracy, *others: Accuracy) -> str:
    """One line: the figure in every runtime, the verdict, the size."""
    value = figure(first.metric, first.value, higher_is_better=first.higher_is_better)
    elsewhere = "".join(
        f", {decimals(each.value, higher_is_better=each.higher_is_better)} on {each.runtime}" for each in others
    )
    verdict = f", {_FLOOR.verdict(first)}: {_FLOOR.of(first)}" if first.to_root else ""
    return (
        f"{stored.name}: {value} on {first.total} test samples ({first.runtime}{elsewhere}){verdict}, "
        f"{stored.size_bytes:,} bytes"
    )
