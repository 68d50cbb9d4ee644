"""The classifiers' judge: the counts, intervals and drops that it had before there were other judges, to the bit."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster import stats
from cluster.slo import AccuracyFloor
from tests.unit.train_jobs.judges.contract import Case, JudgeContract, Tensors
from train_jobs.datasets import LabelledDataset
from train_jobs.judges import ClassifyJudge

FLOORS = [AccuracyFloor(), AccuracyFloor(max_drop=0.02), AccuracyFloor(minimum=0.9), AccuracyFloor(minimum=0.5)]


def labelled(samples: int, classes: int = 10) -> LabelledDataset:
    """Each sample is its own label, one-hot."""
    y = np.random.default_rng(0).permutation(samples) % classes
    x = np.eye(classes, dtype=np.float32)[y]
    return LabelledDataset("told", "made here", x, y, x, y, tuple(map(str, range(classes))))


def judge_of(dataset: LabelledDataset) -> ClassifyJudge:
    return ClassifyJudge(dataset, inputs="x", outputs="scores")


def mistaking(batch: Tensors) -> dict[str, NDArray[Any]]:
    """Every class 3 is taken for a 4."""
    scores = batch["x"].copy()
    scores[:, 4] += 2 * scores[:, 3]
    return {"scores": scores, "other": scores[:, ::-1]}


class TestClassifyJudge(JudgeContract):
    @pytest.fixture
    def case(self) -> Case:
        return Case(judge_of(labelled(3000)), 3000, lambda batch: {"scores": batch["x"]}, mistaking)


def test_a_sample_is_right_where_its_label_scores_highest() -> None:
    dataset = labelled(50)
    judge = judge_of(dataset)
    kept = judge.read(mistaking(batch) for batch in judge.inputs(8))
    assert kept.dtype == np.bool_
    np.testing.assert_array_equal(kept, dataset.y_test != 3)


@settings(max_examples=30, deadline=None)
@given(rights=st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), min_size=1, max_size=60))
def test_every_figure_is_that_of_the_counts(rights: list[tuple[bool, bool, bool]]) -> None:
    child, parent, root = np.array(rights).T
    labels = np.arange(len(child)) % 3
    dataset = replace(labelled(3, 3), y_test=labels)
    found = judge_of(dataset).accuracy(child, runtime="torch", parent=("p", parent), root=("r", root))
    right, total = int(child.sum()), len(child)
    assert (found.metric, found.value, found.correct, found.total) == ("accuracy", right / total, right, total)
    assert found.interval == stats.jeffreys(right, total)
    for difference, other in ((found.to_parent, parent), (found.to_root, root)):
        assert difference is not None
        delta = stats.paired_delta(other, child)
        assert (difference.value, difference.interval, difference.bounds) == (delta.value, delta.interval, delta.bounds)
        assert difference.worst_class_drop == stats.worst_class_drop(labels, other, child)
        assert not difference.relative
    before = found.model_copy(update={"bounds": None})  # as manifests were written before
    assert [floor.verdict(found) for floor in FLOORS] == [floor.verdict(before) for floor in FLOORS]
