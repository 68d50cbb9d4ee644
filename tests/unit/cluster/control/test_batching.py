"""How long a request waits, and which requests go together where the first has little time."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.control.batching import Rival, Split, split, wait_s
from cluster.control.latency import Curve

PER_ROW = Curve({n: 0.010 * n for n in (1, 2, 4, 8, 16, 32)})
CONSTANT = Curve(dict.fromkeys((1, 2, 4, 8, 16, 32), 0.01))
AFFINE = Curve({n: 0.008 + 0.002 * n for n in (1, 2, 4, 8, 16, 32)})


def test_alone_a_class_waits_for_what_executes_and_what_is_ahead() -> None:
    assert wait_s(0.3, 0.1, 0.5, [], executors=1, free_in_s=0.05) == pytest.approx(0.35)
    assert wait_s(0.3, 0.1, 0.5, [], executors=3, free_in_s=0.05) == pytest.approx(0.15)


def test_a_rival_takes_its_portion_but_no_more_than_it_has() -> None:
    much, little = Rival(0.8, 100.0, 0.0), Rival(0.8, 0.02, 0.0)
    assert wait_s(0.1, 0.0, 0.2, [much], executors=1, free_in_s=0) == pytest.approx(0.5), "four times as much"
    assert wait_s(0.1, 0.0, 0.2, [little], executors=1, free_in_s=0) == pytest.approx(0.12)
    assert wait_s(0.1, 0.0, 0.8, [Rival(0.2, 100.0, 0)], executors=1, free_in_s=0) == pytest.approx(0.125)


def test_what_a_rival_used_lately_it_will_go_on_to_use() -> None:
    idle, steady = Rival(0.8, 0.1, 0.0), Rival(0.8, 0.1, 0.5)
    waits = [wait_s(0.1, 0.0, 0.2, [rival], executors=1, free_in_s=0) for rival in (idle, steady)]
    assert waits[0] < waits[1] < 0.5


def test_nobody_is_given_up_for_a_batch_that_would_gain_nothing() -> None:
    assert split([1, 1, 1], [0.015, 1.0, 1.0], PER_ROW, 32) == Split(0, 1)


def test_a_request_that_cannot_be_in_time_is_given_up() -> None:
    assert split([1, 1], [0.005, 1.0], PER_ROW, 32) == Split(1, 0)


def test_the_first_is_given_up_where_it_would_make_all_others_late() -> None:
    """Alone it is just in time; then it is too late for those behind it."""
    slow = Curve({1: 0.010, 2: 0.011, 4: 0.012, 8: 0.013})
    assert split([1] * 6, [0.0135] + [0.018] * 5, slow, 32) == Split(1, 5)
    assert split([1] * 6, [0.0135] + [0.060] * 5, slow, 32) == Split(0, 1), "there is time for both"


@given(
    rows=st.lists(st.integers(1, 4), min_size=1, max_size=8),
    slacks=st.lists(st.floats(0, 0.2), min_size=8, max_size=8),
    curve=st.sampled_from([PER_ROW, CONSTANT, AFFINE]),
)
def test_something_is_done_and_what_is_taken_is_in_time(rows: list[int], slacks: list[float], curve: Curve) -> None:
    slacks = sorted(slacks[: len(rows)])
    skip, take = split(rows, slacks, curve, 32)
    assert skip + take >= 1
    assert skip + take <= len(rows)
    if take:
        assert curve.seconds(sum(rows[skip : skip + take])) <= slacks[skip]


@given(slacks=st.lists(st.floats(0.011, 0.2), min_size=1, max_size=8))
def test_where_rows_cost_nothing_all_go_together(slacks: list[float]) -> None:
    decision = split([1] * len(slacks), sorted(slacks), CONSTANT, 32)
    room = list(itertools.takewhile(lambda n: CONSTANT.upper(n) <= min(slacks), range(1, 9)))
    if room:
        assert decision == Split(0, len(slacks))
