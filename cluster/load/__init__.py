"""Open-loop load: arrivals -> workers -> figures that count every failure. Blind to model and protocol."""

from __future__ import annotations

from cluster.load.arrivals import RateTrace, constant, gamma, poisson, read_trace_csv, replay
from cluster.load.http1 import BAD_RESPONSE, CONNECT_FAILED, OUTCOME_NAMES, RESET, TIMEOUT, UNSENT, build_request
from cluster.load.null_server import null_server
from cluster.load.report import percentile_rows, summary_rows
from cluster.load.result import LoadResult, histogram_quantiles_s, merge_histograms, merge_results
from cluster.load.runner import Target, run_closed_loop, run_open_loop
from cluster.load.self_check import SelfCheck, self_check
from cluster.load.slo_rate import (
    CPU_LIMIT,
    SloRate,
    Step,
    StepResult,
    find_slo_rate,
    follow_slo_rate,
    judge,
    poisson_steps,
)

__all__ = [
    "BAD_RESPONSE",
    "CONNECT_FAILED",
    "CPU_LIMIT",
    "OUTCOME_NAMES",
    "RESET",
    "TIMEOUT",
    "UNSENT",
    "LoadResult",
    "RateTrace",
    "SelfCheck",
    "SloRate",
    "Step",
    "StepResult",
    "Target",
    "build_request",
    "constant",
    "find_slo_rate",
    "follow_slo_rate",
    "gamma",
    "histogram_quantiles_s",
    "judge",
    "merge_histograms",
    "merge_results",
    "null_server",
    "percentile_rows",
    "poisson",
    "poisson_steps",
    "read_trace_csv",
    "replay",
    "run_closed_loop",
    "run_open_loop",
    "self_check",
    "summary_rows",
]
