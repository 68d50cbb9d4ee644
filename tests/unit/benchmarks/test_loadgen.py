"""What is read of LoadGen's logs; LoadGen itself is the benchmark's."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from benchmarks.loadgen.runs import Ran, _accuracy, figures_of

# Recorded from mlcommons_loadgen 6.0.17, shortened.
SUMMARY = """================================================
MLPerf Results Summary
================================================
Scenario : Server
Result is : VALID
  Performance constraints satisfied : Yes

Scheduled samples per second : 3990.67
99.00 percentile latency (ns)   : 2808917
target_latency (ns): 15000000
"""


def test_a_summary_is_read_by_its_own_names() -> None:
    ran = Ran("Server", "PerformanceOnly", 4000, 5, SUMMARY, {200: 19_990, 503: 9, 0: 1}, 0.4, None, 0,
    figures_of(SUMMARY))
    assert ran.valid
    assert ran.ms("99.00 percentile latency (ns)") == 2.808917
    assert ran.ms("50.00 percentile latency (ns)") is None
    assert ran.figures["Performance constraints satisfied"] == "Yes"
    assert ran.refused == 10, "a lost connection is a refusal too"
    invalid = SUMMARY.replace(": VALID", ": INVALID")
    assert not Ran("Server", "PerformanceOnly", 1, 1, invalid, {}, 0, None, 0, figures_of(invalid)).valid


def test_accuracy_is_that_of_the_logged_answers_and_a_refusal_is_wrong(tmp_path: Path) -> None:
    log = tmp_path / "mlperf_log_accuracy.json"
    log.write_text(json.dumps([{"qsl_idx": 0, "data": "07"}, {"qsl_idx": 2, "data": "03"}, {"qsl_idx": 1,
    "data": "FF"}]))
    labels = np.array([7, 1, 4])
    assert _accuracy(log, labels, "AccuracyOnly") == (1 / 3, 3)
    assert _accuracy(log, labels, "PerformanceOnly") == (None, 0)
