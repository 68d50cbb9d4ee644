from __future__ import annotations

import json
import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.load import (
    RESET,
    TIMEOUT,
    LoadResult,
    histogram_quantiles_s,
    merge_histograms,
    merge_results,
    percentile_rows,
    summary_rows,
)
from cluster.load.report import format_s


def result_of(
    latency_s: Sequence[float],
    outcome: Sequence[int] | None = None,
    *,
    correct: Sequence[bool] | None = None,
    wake_lag_s: float = 1e-4,
    cpu_share: float = 0.2,
) -> LoadResult:
    count = len(latency_s)
    return LoadResult(
        scheduled_s=np.arange(count) / max(count, 1),
        wake_lag_s=np.full(count, wake_lag_s),
        send_lag_s=np.full(count, wake_lag_s),
        latency_s=np.array(latency_s, dtype=np.float64),
        outcome=np.array(outcome if outcome is not None else [200] * count, dtype=np.int16),
        correct=np.array(correct if correct is not None else [True] * count, dtype=np.bool_),
        duration_s=1.0,
        client_cpu_s=0.2,
        client_cpu_share=cpu_share,
    )


def test_failures_count_as_infinitely_late() -> None:
    result = result_of([0.01] * 98 + [0.001, 0.5], [200] * 98 + [503, TIMEOUT])
    assert result.latency_quantile_s(0.5) == 0.01
    assert result.latency_quantile_s(0.99) == math.inf
    assert result.latency_ok_quantile_s(0.99) == 0.01
    assert result.slo_attainment(0.05) == 0.98
    assert result.goodput_rps(0.05) == 98
    assert result.goodput_rps(0.005) == 0


def test_exactly_one_percent_of_failures_is_on_the_edge() -> None:
    """99 of 100 served: the smallest bound that holds for 99% is finite only for q <= 98/99 of the gaps."""
    assert result_of([0.01] * 1000, [200] * 995 + [503] * 5).latency_quantile_s(0.99) == 0.01
    assert result_of([0.01] * 1000, [200] * 985 + [503] * 15).latency_quantile_s(0.99) == math.inf


def test_a_wrong_answer_is_named_and_late() -> None:
    result = result_of([0.01] * 4, correct=[True, True, True, False])
    assert result.outcomes() == {"200": 3, "wrong answer": 1}
    assert result.latency_quantile_s(1.0) == math.inf


def test_redirects_are_not_served() -> None:
    assert result_of([0.01], [302]).goodput_rps() == 0


@given(st.lists(st.floats(1e-5, 100.0), min_size=1, max_size=200))
def test_the_histogram_keeps_three_digits(latencies: list[float]) -> None:
    quantiles = histogram_quantiles_s(result_of(latencies).histogram(), [1.0])
    assert quantiles[1.0] == pytest.approx(max(latencies), rel=2e-3, abs=2e-6)


def test_merged_histograms_equal_the_histogram_of_all() -> None:
    rng = np.random.default_rng(3)
    left, right = rng.exponential(0.01, 500).tolist(), rng.exponential(0.05, 300).tolist()
    merged = merge_histograms([result_of(left).histogram(), result_of(right).histogram()])
    quantiles = [0.1, 0.5, 0.9, 0.99, 1.0]
    assert histogram_quantiles_s(merged, quantiles) == histogram_quantiles_s(
        result_of(left + right).histogram(), quantiles
    )


def test_merged_results_add_up() -> None:
    merged = merge_results([result_of([0.1, 0.2]), result_of([0.3], [RESET], cpu_share=0.7)])
    assert merged.count == 3
    assert np.all(np.diff(merged.scheduled_s) >= 0)
    assert merged.outcomes() == {"200": 2, "reset": 1}
    assert merged.client_cpu_s == pytest.approx(0.4)
    assert merged.client_cpu_share == 0.7
    with pytest.raises(ValueError, match="nothing to merge"):
        merge_results([])


def test_the_warm_up_is_left_out() -> None:
    result = result_of([9.0] * 50 + [0.01] * 50).after(0.5)
    assert result.count == 50
    assert result.duration_s == 0.5
    assert result.offered_rps == 100
    assert result.latency_quantile_s(1.0) == 0.01
    assert result.scheduled_s[0] == 0
    with pytest.raises(ValueError, match="warmup_s=2"):
        result.after(2.0)


def test_json_has_no_infinity() -> None:
    text = json.dumps(result_of([0.01, 0.02], [200, 503]).to_json(bound_s=0.05), allow_nan=False)
    document = json.loads(text)
    assert document["latency_s"]["0.99"] is None
    assert document["latency_ok_s"]["0.99"] == 0.01
    assert document["outcomes"] == {"503": 1, "200": 1}
    assert document["slo"] == {"bound_s": 0.05, "attainment": 0.5, "goodput_rps": 1.0}
    assert histogram_quantiles_s(document["histogram_us"], [0.5])[0.5] == pytest.approx(0.01, rel=2e-3)


def test_an_empty_result_has_no_quantiles() -> None:
    result = result_of([])
    assert math.isnan(result.latency_quantile_s(0.99))
    assert math.isnan(result.slo_attainment(1.0))
    json.dumps(result.to_json(bound_s=1.0), allow_nan=False)


def test_the_report_shows_both_percentiles_and_the_slo() -> None:
    result = result_of([0.0005, 0.02], [200, 503])
    assert percentile_rows(result)[3] == ("p99", "failed", "500 µs")
    rows = dict(summary_rows(result, bound_s=0.05))
    assert rows["within 50.00 ms"] == "50.00 %"
    assert rows["outcome 503"] == "1"
    assert "aborted" not in rows
    assert (format_s(math.nan), format_s(2.0)) == ("-", "2.00 s")
