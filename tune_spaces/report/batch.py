"""Curves -> where larger batches stop paying, in words."""

from __future__ import annotations

from tune_spaces.report.report import Report
from tune_spaces.report.words import ms


def knees(report: Report) -> list[str]:
    """A sentence for each curve."""
    names = {v.id: v.name for v in report.variants}
    return [
        f"{names.get(curve.variant_id, curve.variant_id)} on {curve.runtime}: knee at batch {curve.knee.batch_size}, "
        f"{curve.knee.throughput_rps:,.0f} samples/s, p50 {ms(curve.knee.latency_p50_s)}"
        for curve in report.curves
    ]
