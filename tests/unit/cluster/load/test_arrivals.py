from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster.errors import ConfigError
from cluster.load import constant, gamma, poisson, read_trace_csv, replay

rates = st.floats(1.0, 500.0)
durations = st.floats(0.1, 10.0)
seeds = st.integers(0, 2**32 - 1)


def assert_offsets(times: NDArray[np.float64], duration_s: float) -> None:
    assert times.dtype == np.float64
    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times < duration_s))


@given(rates, durations)
def test_constant_is_evenly_spaced(rate: float, duration_s: float) -> None:
    times = constant(rate, duration_s)
    assert_offsets(times, duration_s)
    assert abs(len(times) - rate * duration_s) <= 1
    assert np.allclose(np.diff(times), 1 / rate)


@given(rates, durations, seeds)
def test_poisson_is_sorted_in_range_and_at_the_rate(rate: float, duration_s: float, seed: int) -> None:
    times = poisson(rate, duration_s, seed)
    assert_offsets(times, duration_s)
    mean = rate * duration_s
    assert abs(len(times) - mean) < 8 * math.sqrt(mean) + 8
    assert np.array_equal(times, poisson(rate, duration_s, seed))


@given(rates, durations, st.floats(0.1, 4.0), seeds)
def test_gamma_is_sorted_in_range_and_at_the_rate(rate: float, duration_s: float, cv: float, seed: int) -> None:
    times = gamma(rate, duration_s, cv, seed)
    assert_offsets(times, duration_s)
    mean = rate * duration_s
    assert abs(len(times) - mean) < 10 * (1 + cv) * math.sqrt(mean) + 10 * (1 + cv) ** 2


@pytest.mark.parametrize("cv", [0.25, 1.0, 3.0])
def test_gamma_gaps_have_the_asked_variation(cv: float) -> None:
    gaps = np.diff(gamma(1000.0, 100.0, cv, seed=4))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.05)


def test_poisson_gaps_are_exponential() -> None:
    gaps = np.diff(poisson(1000.0, 100.0, seed=4))
    assert gaps.std() / gaps.mean() == pytest.approx(1.0, rel=0.03)
    assert np.mean(gaps > 0.001) == pytest.approx(math.exp(-1), abs=0.01)


@given(st.lists(st.floats(0.0, 200.0), min_size=1, max_size=20), st.floats(0.1, 3.0), st.floats(0.1, 3.0), seeds)
def test_replay_follows_each_bin(trace: list[float], bin_s: float, scale: float, seed: int) -> None:
    times = replay(trace, bin_s, scale, seed)
    assert_offsets(times, len(trace) * bin_s)
    counts = np.histogram(times, bins=np.arange(len(trace) + 1) * bin_s)[0]
    for rate, count in zip(trace, counts.tolist(), strict=True):
        mean = rate * scale * bin_s
        assert abs(count - mean) < 8 * math.sqrt(mean) + 8


def test_replay_sends_nothing_in_a_silent_bin() -> None:
    times = replay([0.0, 100.0, 0.0], 1.0, 1.0, seed=1)
    assert len(times) > 50
    assert times.min() >= 1.0
    assert times.max() < 2.0


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_a_bad_rate_is_named(bad: float) -> None:
    with pytest.raises(ConfigError, match="rate="):
        poisson(bad, 1.0, 0)


def test_trace_csv_with_times_gives_the_bin_width(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time_s,rate_rps\n0,10\n5,20\n10,0\n")
    trace = read_trace_csv(path)
    assert trace.bin_s == 5.0
    assert trace.rates_rps.tolist() == [10.0, 20.0, 0.0]
    assert trace.duration_s == 15.0


def test_trace_csv_of_rates_alone_has_bins_of_a_second(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("1\n2\n3\n")
    assert read_trace_csv(path).bin_s == 1.0


def test_a_header_names_units_and_further_columns_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("# where it came from, and when\nminute,requests,tokens\n0,60,1\n1,120,2\n")
    trace = read_trace_csv(path)
    assert trace.bin_s == 60.0
    assert trace.rates_rps.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("fortnight,requests\n0,1\n1,2\n", "fortnight"),
        ("", "no rates"),
        ("rate\n1\nx\n", ":3:"),
        ("0,1\n1,2\n5,3\n", "evenly"),
        ("1\n-2\n", "negative"),
        ("1,2\n3\n", ":2:"),
    ],
)
def test_a_bad_trace_is_refused_with_its_place(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        read_trace_csv(path)
