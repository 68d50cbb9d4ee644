"""A score of how odd a sample is -> the area under its ROC curve, against the test part's labels.

Its scatter, and that of a difference between two scores of the same samples, follows from placements: the share of
normal samples that an anomalous one outscores, and the other way round. DeLong, DeLong and Clarke-Pearson, "Comparing
the Areas under Two or More Correlated Receiver Operating Characteristic Curves: A Nonparametric Approach", Biometrics
44(3), 1988; placements from ranks as in Sun and Xu, "Fast Implementation of DeLong's Algorithm for Comparing the Areas
Under Correlated Receiver Operating Characteristic Curves", IEEE Signal Processing Letters 21(11), 2014, theorem 1.

Samples of a series are no independent draws. Ranking each of thousands of resamples anew would take minutes, so blocks
of the placements are drawn instead: what is added up is how much each sample moves the area, to the first order (the
same terms as in DeLong's variance; summed by cluster as here in Obuchowski, "Nonparametric Analysis of Clustered ROC
Curve Data", Biometrics 53(2), 1997).

Shapes: N samples.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from cluster import stats
from cluster.errors import ConfigError, InvalidRequest
from cluster.variants import Accuracy, Difference
from train_jobs.judges.blocks import Floats, Interval, fitting, pieces, resampled_means, spread
from train_jobs.judges.judge import Array, Evidence, Other, batches, whole
from train_jobs.tasks.task import Metric

ROC_AUC = Metric("roc_auc", higher_is_better=True)
_TWO_SIDED, _ONE_SIDED = NormalDist().inv_cdf(0.975), NormalDist().inv_cdf(0.95)


def midranks(scores_N: Floats) -> Floats:
    """Ranks from 1 on; equal scores share the mean of theirs."""
    _, places, counts = np.unique(scores_N, return_inverse=True, return_counts=True)
    return np.asarray((counts.cumsum() - (counts - 1) / 2)[places])


def area(scores_N: Floats, anomalous_N: NDArray[np.bool_]) -> tuple[float, Floats]:
    """(the area, how much each sample moves it (N,), which sums up to nought)."""
    ranks, normal_N = midranks(scores_N), ~anomalous_N
    odd, usual = int(anomalous_N.sum()), int(normal_N.sum())
    outscored = (ranks[anomalous_N] - midranks(scores_N[anomalous_N])) / usual
    outscoring = 1.0 - (ranks[normal_N] - midranks(scores_N[normal_N])) / odd
    value = float(outscored.mean())
    moves_N = np.empty(len(scores_N))
    moves_N[anomalous_N] = (outscored - value) / odd
    moves_N[normal_N] = (outscoring - value) / usual
    return value, moves_N


class AucJudge:
    """Evidence: float64 (N,), the scores."""

    metric = ROC_AUC

    def __init__(
        self, *, x: Array, anomalous: Array, dataset: str, inputs: str, output: str, block: int = 1
    ) -> None:
        """`x` (N, ...) is what the graph's tensor `inputs` takes, maybe a view of overlapping windows; `anomalous` (N,)
        is 0 or 1; `output` gives a score (B,). `block`: neighbouring samples that resemble each other; 1: none do.

        Raises ConfigError unless the test part has both kinds.
        """
        self._anomalous = np.asarray(anomalous).astype(np.bool_)
        odd = int(self._anomalous.sum())
        if not 0 < odd < len(self._anomalous) or len(x) != len(self._anomalous):
            raise ConfigError(
                f"{dataset} has {odd} anomalous samples among {len(self._anomalous)} labels for {len(x)} test samples; "
                "an area under the ROC curve takes both kinds, and a label for each"
            )
        self.dataset = dataset
        self._x, self._entry, self._output = x, inputs, output
        self._block = fitting(block, len(x))
        self._independent = pieces(min(odd, len(x) - odd), self._block)
        """Of the rarer kind: it is what an area scatters by."""

    def inputs(self, batch_size: int) -> Iterator[dict[str, Array]]:
        return batches(self._x, self._entry, batch_size)

    def read(self, outputs: Iterable[Mapping[str, Array]]) -> Evidence:
        scores = [each[self._output] for each in outputs]
        shapes = {each.shape[1:] for each in scores} - {()}
        if shapes:
            raise InvalidRequest(
                f"output {self._output!r} has {list(shapes.pop())} values for each sample, and a score is one; leave "
                "out the pass that changed it"
            )
        return whole([each.astype(np.float64) for each in scores], len(self._anomalous))

    def accuracy(
        self, evidence: Evidence, *, runtime: str, parent: Other | None = None, root: Other | None = None
    ) -> Accuracy:
        """Differences are absolute, in shares as the area itself. Where both scores rank alike they are nought for
        sure: it is the ranking that is compared."""
        value, moves_N = area(evidence.astype(np.float64), self._anomalous)

        def difference(other: Other | None) -> Difference | None:
            if other is None:
                return None
            its, its_moves_N = area(other[1].astype(np.float64), self._anomalous)
            interval, bounds = self._around(value - its, moves_N - its_moves_N, least=-1.0)
            return Difference(other_id=other[0], value=value - its, interval=interval, bounds=bounds)

        interval, bounds = self._around(value, moves_N, least=0.0)
        if value in (0.0, 1.0):
            interval, bounds = self._without_error(value)
        return Accuracy(
            metric=self.metric.name, value=value, total=len(evidence), interval=interval, bounds=bounds,
            dataset=self.dataset, runtime=runtime, to_parent=difference(parent), to_root=difference(root),
        )  # fmt: skip

    def _around(self, value: float, moves_N: Floats, *, least: float) -> tuple[Interval, Interval]:
        """(interval, bounds) of an area or of a difference of two, within `least` and 1."""
        if self._independent < 2:  # one anomaly alone has nothing to scatter
            return (least, 1.0), (least, 1.0)
        if self._block > 1:
            drawn_R = len(moves_N) * resampled_means(moves_N[:, None], self._block)[:, 0]
            interval, bounds = spread(value + drawn_R, self._independent)
        else:
            error = self._standard_error(moves_N)
            interval, bounds = ((value - z * error, value + z * error) for z in (_TWO_SIDED, _ONE_SIDED))
        return _within(interval, least), _within(bounds, least)

    def _standard_error(self, moves_N: Floats) -> float:
        """DeLong's: of the means of two independent samples, the placements of either kind."""
        variance = 0.0
        for kind in (self._anomalous, ~self._anomalous):
            number = int(kind.sum())
            variance += number / max(number - 1, 1) * float(np.square(moves_N[kind]).sum())
        return math.sqrt(variance)

    def _without_error(self, value: float) -> tuple[Interval, Interval]:
        """No pair is ranked wrongly, or every one: placements show no scatter then, and are no certainty. As if each
        sample of the rarer kind had been right, or wrong, by itself."""
        right = self._independent if value == 1.0 else 0
        bounds = stats.lower_bound(right, self._independent), stats.upper_bound(right, self._independent)
        return stats.jeffreys(right, self._independent), bounds


def _within(ends: Interval, least: float) -> Interval:
    return max(ends[0], least), min(ends[1], 1.0)
