"""What every Judge must do. A judge's test class inherits `JudgeContract` and says what a good graph answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.errors import InvalidRequest
from cluster.slo import AccuracyFloor
from cluster.variants import Accuracy
from train_jobs.judges import Evidence, Judge

Tensors = Mapping[str, NDArray[Any]]
Graph = Callable[[Tensors], dict[str, NDArray[Any]]]


@dataclass(frozen=True)
class Case:
    """A judge, and two graphs: one that is right often enough, one that is clearly worse."""

    judge: Judge
    samples: int
    graph: Graph
    worse: Graph

    def seen(self, graph: Graph, batch_size: int = 250) -> Evidence:
        return self.judge.read(graph(batch) for batch in self.judge.inputs(batch_size))


class JudgeContract:
    """`case` is a fixture of the class that inherits this one."""

    def test_the_whole_test_part_comes_once_whatever_the_batches(self, case: Case) -> None:
        whole = [list(case.judge.inputs(size)) for size in (10**6, 7, 1000)]
        assert len(whole[0]) == 1
        (name,) = whole[0][0]
        assert len(whole[0][0][name]) == case.samples
        for batches in whole:
            assert all(batch[name].flags.c_contiguous for batch in batches), "executors take plain memory"
            np.testing.assert_array_equal(np.concatenate([batch[name] for batch in batches]), whole[0][0][name])

    def test_what_is_kept_does_not_depend_on_the_batches(self, case: Case) -> None:
        kept, odd = case.seen(case.graph), case.seen(case.graph, batch_size=7)
        assert len(kept) == case.samples
        np.testing.assert_allclose(kept.astype(np.float64), odd.astype(np.float64), rtol=1e-4, atol=1e-5)

    def test_the_figure_lies_in_its_interval_and_is_the_same_again(self, case: Case) -> None:
        kept = case.seen(case.graph)
        found = case.judge.accuracy(kept, runtime="openvino")
        assert found == case.judge.accuracy(kept.copy(), runtime="openvino")
        assert (found.metric, found.higher_is_better) == (
            case.judge.metric.name, case.judge.metric.higher_is_better
        )  # fmt: skip
        assert (found.runtime, found.dataset, found.total) == ("openvino", case.judge.dataset, case.samples)
        assert (found.to_parent, found.to_root) == (None, None)
        assert found.bounds is not None
        assert found.interval[0] <= found.bounds[0] <= found.value <= found.bounds[1] <= found.interval[1]
        assert Accuracy.model_validate_json(found.model_dump_json()) == found

    def test_a_graph_that_answers_as_its_parent_does_is_as_good(self, case: Case) -> None:
        kept = case.seen(case.graph)
        found = case.judge.accuracy(kept, runtime="torch", parent=("p" * 16, kept.copy()), root=("r" * 16, kept))
        for difference, other in ((found.to_parent, "p" * 16), (found.to_root, "r" * 16)):
            assert difference is not None
            assert (difference.other_id, difference.value) == (other, 0.0)
            assert -0.005 < difference.interval[0] <= 0.0 <= difference.interval[1] < 0.005
            assert difference.relative is not case.judge.metric.higher_is_better
        assert AccuracyFloor().verdict(found) == "holds"

    def test_a_worse_graph_is_worse_than_its_parent_and_fails(self, case: Case) -> None:
        good, bad = case.seen(case.graph), case.seen(case.worse)
        found = case.judge.accuracy(bad, runtime="torch", parent=("p" * 16, bad), root=("r" * 16, good))
        assert found.to_parent is not None
        assert found.to_root is not None
        assert found.to_parent.value == 0.0
        assert found.to_root.value < found.to_root.bounds[1] < 0, "negative is worse, whatever is measured"
        assert AccuracyFloor().verdict(found) == "fails"
        better = case.judge.accuracy(good, runtime="torch", root=("r" * 16, bad))
        assert better.to_root is not None
        assert better.to_root.value > better.to_root.bounds[0] > 0
        assert case.judge.metric.better(better.value, than=found.value)
        assert AccuracyFloor().verdict(better) == "holds"

    def test_answers_that_are_missing_are_no_evidence(self, case: Case) -> None:
        most = list(case.judge.inputs(100))[:-1]
        with pytest.raises(InvalidRequest, match=f"answers to {case.samples} test samples; export it with a free"):
            case.judge.read(case.graph(batch) for batch in most)
