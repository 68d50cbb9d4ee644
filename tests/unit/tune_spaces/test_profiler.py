"""Timing of batches: repeats until narrow, never fewer than ten."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tune_spaces.profiler import _median_interval, time_batches


def test_repeats_at_least_ten_times_even_without_budget() -> None:
    calls = 0

    def run() -> None:
        nonlocal calls
        calls += 1

    took = time_batches(run, budget_s=0.0)
    assert len(took) == 10
    assert calls == 13, "three warm-up calls are not counted"


def test_a_failing_batch_is_not_swallowed() -> None:
    def run() -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        time_batches(run, budget_s=0.0)


@given(st.lists(st.floats(0.001, 1.0), min_size=10, max_size=200))
def test_the_interval_holds_the_median(sample: list[float]) -> None:
    values = np.asarray(sample)
    low, high = _median_interval(values)
    assert low <= np.median(values) <= high
