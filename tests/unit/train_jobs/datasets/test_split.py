"""The split of data that came in one part: the same every time, nothing in both parts, every class in each."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ConfigError
from train_jobs.datasets.split import stratified

several_of_each = st.lists(st.integers(2, 40), min_size=1, max_size=6).flatmap(
    lambda counts: st.permutations([label for label, count in enumerate(counts) for _ in range(count)])
)


@given(several_of_each, st.floats(0.05, 0.95))
def test_every_sample_is_in_one_part_and_every_class_in_both(labels: list[int], share: float) -> None:
    y = np.asarray(labels)
    train, test = stratified(y, test_share=share)
    assert sorted([*train.tolist(), *test.tolist()]) == list(range(len(y)))
    assert set(y[train].tolist()) == set(y[test].tolist()) == set(labels)
    for label in set(labels):
        count, tested = labels.count(label), int((y[test] == label).sum())
        assert abs(tested - share * count) <= 1, "each class gives its share, rounded"


@given(several_of_each)
def test_the_same_labels_give_the_same_split(labels: list[int]) -> None:
    first, again = stratified(np.asarray(labels)), stratified(np.asarray(labels))
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))


def test_it_is_no_cut_through_sorted_data_and_the_seed_moves_it() -> None:
    y = np.repeat(np.arange(3), 100)
    _, test = stratified(y)
    assert len(test) == 60
    assert test.tolist() != [*range(20), *range(100, 120), *range(200, 220)]
    assert not np.array_equal(test, stratified(y, seed=1)[1])


def test_a_class_of_one_sample_cannot_be_split() -> None:
    with pytest.raises(ConfigError, match="class 7 has 1 sample"):
        stratified(np.array([0, 0, 7, 0]))
