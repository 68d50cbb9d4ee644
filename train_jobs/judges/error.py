"""Numbers that should be others -> their mean squared error, with an interval that knows of neighbours in time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

import numpy as np

from cluster.errors import ConfigError, InvalidRequest
from cluster.variants import Accuracy
from train_jobs.judges.blocks import fitting, pieces, resampled_means
from train_jobs.judges.judge import Array, Evidence, Other, batches, whole
from train_jobs.judges.relative import Drawn, judged
from train_jobs.tasks.task import Metric


class ErrorJudge:
    """Evidence: float64 (N,), the mean over a sample's values of ((answer - y) / scale) squared.

    Intervals are those of the circular block bootstrap (judges/blocks.py).
    """

    def __init__(
        self, *, x: Array, y: Array, dataset: str, metric: str = "mse", inputs: str, output: str,
        scale: Array | None = None, block: int = 1, answer_scale: Callable[[Array], Array] | None = None,
    ) -> None:  # fmt: skip
        """`x` (N, ...) is what the graph's tensor `inputs` takes, `y` (N, ...) what `output` should be; both may be
        views of overlapping windows. `scale`: what differences are divided by, for each entry of the last axis.
        `block`: neighbouring samples that resemble each other. `answer_scale` brings an answer onto the scale of `y`.

        Raises ConfigError for a test part of fewer than two samples: no interval comes of it.
        """
        if len(x) < 2 or len(x) != len(y):
            raise ConfigError(
                f"{dataset} has {len(x)} test samples and {len(y)} answers to them; give as many, and two at least"
            )
        self.metric = Metric(metric, higher_is_better=False)
        self.dataset = dataset
        self._x, self._y, self._onto = x, y, answer_scale
        self._scale = None if scale is None else scale.astype(np.float64)
        self._entry, self._output = inputs, output
        self._block = fitting(block, len(x))

    def inputs(self, batch_size: int) -> Iterator[dict[str, Array]]:
        return batches(self._x, self._entry, batch_size)

    def read(self, outputs: Iterable[Mapping[str, Array]]) -> Evidence:
        errors: list[Array] = []
        first = 0
        for each in outputs:
            answer = each[self._output]
            errors.append(self._errors(answer, self._y[first : first + len(answer)]))
            first += len(answer)
        return whole(errors, len(self._y))

    def _errors(self, answer: Array, truth: Array) -> Array:
        onto = answer if self._onto is None else self._onto(answer)
        if onto.shape != truth.shape:
            raise InvalidRequest(
                f"output {self._output!r} has shape {list(onto.shape)} where {list(truth.shape)} is the truth; leave "
                "out the pass that changed it"
            )
        off = onto.astype(np.float64) - truth.astype(np.float64)
        if self._scale is not None:
            off = off / self._scale
        squared: Array = np.square(off).reshape(len(off), -1).mean(1)
        return squared

    def accuracy(
        self, evidence: Evidence, *, runtime: str, parent: Other | None = None, root: Other | None = None
    ) -> Accuracy:
        """Differences are relative: the ratio of both errors on the same draws of samples."""
        others = [other for other in (parent, root) if other is not None]
        columns_NC = np.stack([evidence, *(theirs for _, theirs in others)], axis=1).astype(np.float64)
        again_RC = resampled_means(columns_NC, self._block)
        values = columns_NC.mean(0)
        drawn = [Drawn(float(value), again_R) for value, again_R in zip(values, again_RC.T, strict=True)]
        known = {id_: each for (id_, _), each in zip(others, drawn[1:], strict=True)}

        def of(other: Other | None) -> tuple[str, Drawn] | None:
            return None if other is None else (other[0], known[other[0]])

        return judged(
            self.metric, drawn[0], parent=of(parent), root=of(root), independent=pieces(len(evidence), self._block),
            samples=len(evidence), dataset=self.dataset, runtime=runtime,
        )  # fmt: skip
