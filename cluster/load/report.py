"""LoadResult -> rows for a table that people read; for machines there is `LoadResult.to_json`."""

from __future__ import annotations

import math

from cluster.load.result import LoadResult

QUANTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
Row = tuple[str, str]


def format_s(seconds: float) -> str:
    """Seconds as people read latencies: "3.21 ms", "failed" for an infinite one, "-" for none at all."""
    if math.isnan(seconds):
        return "-"
    if math.isinf(seconds):
        return "failed"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.0f} µs"
    return f"{seconds * 1e3:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"


def percentile_rows(result: LoadResult) -> list[tuple[str, str, str]]:
    """(percentile, over all requests, over the served ones): failures count as infinitely late in the first."""
    return [
        (f"p{100 * q:g}", format_s(result.latency_quantile_s(q)), format_s(result.latency_ok_quantile_s(q)))
        for q in QUANTILES
    ]


def summary_rows(result: LoadResult, *, bound_s: float | None = None) -> list[Row]:
    """(what, value) rows; `bound_s` seconds adds the SLO's."""
    rows = [
        ("requests", f"{result.count}"),
        ("offered", f"{result.offered_rps:.1f} req/s"),
        ("served", f"{result.goodput_rps():.1f} req/s"),
        *((f"outcome {name}", str(number)) for name, number in result.outcomes().items()),
    ]
    if bound_s is not None:
        rows += [
            (f"within {format_s(bound_s)}", f"{100 * result.slo_attainment(bound_s):.2f} %"),
            (f"goodput at {format_s(bound_s)}", f"{result.goodput_rps(bound_s):.1f} req/s"),
        ]
    rows += [
        ("client lag p99", format_s(result.send_lag_p99_s)),
        ("client CPU", f"{result.client_cpu_s:.2f} s, busiest core {100 * result.client_cpu_share:.0f} %"),
    ]
    if result.aborted:
        rows.append(("aborted", "yes: the backlog passed its limit"))
    return rows
