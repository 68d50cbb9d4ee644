"""What a run measured, request by request, and the figures drawn from it.

A request counts as served only when it is answered 2xx, with the expected bytes; everything else is infinitely late.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from hdrh.histogram import HdrHistogram
from numpy.typing import NDArray

from cluster.load.http1 import OUTCOME_NAMES

_HIGHEST_US = 3_600_000_000
_DIGITS = 3


def _new_histogram() -> Any:
    return HdrHistogram(1, _HIGHEST_US, _DIGITS)


@dataclass(frozen=True, eq=False)
class LoadResult:
    """Arrays of one entry per request, in order of scheduled time. All times are seconds.

    `wake_lag_s` is how late the client itself looked at a request: the client's fault, whatever the server does.
    `send_lag_s` is how late it was written (NaN: never): the wake lag plus the wait for a free connection, which is
    the server's doing. `latency_s` counts from the scheduled time to the outcome, so it includes both.
    """

    scheduled_s: NDArray[np.float64]
    wake_lag_s: NDArray[np.float64]
    send_lag_s: NDArray[np.float64]
    latency_s: NDArray[np.float64]
    outcome: NDArray[np.int16]
    """HTTP status, or a negative code of http1.py."""
    correct: NDArray[np.bool_]
    duration_s: float
    """The window over which the arrivals were spread."""
    client_cpu_s: float
    client_cpu_share: float
    """Share of its core that the busiest worker used while it ran, 0 to 1."""
    aborted: bool = False

    @property
    def count(self) -> int:
        return len(self.scheduled_s)

    @property
    def ok(self) -> NDArray[np.bool_]:
        return (self.outcome >= 200) & (self.outcome < 300) & self.correct

    @property
    def offered_rps(self) -> float:
        return self.count / self.duration_s

    @property
    def send_lag_p99_s(self) -> float:
        """The client's own lag at p99; waits for a busy connection are not in it. NaN if nothing was due."""
        lags = self.wake_lag_s[~np.isnan(self.wake_lag_s)]
        return float(np.quantile(lags, 0.99, method="higher")) if lags.size else math.nan

    @property
    def queued_share(self) -> float:
        """Share of requests that found no free connection and waited over 1 ms for one (or were never sent)."""
        waits = self.send_lag_s - self.wake_lag_s
        return float(np.mean(~(waits <= 1e-3))) if self.count else 0.0

    @property
    def effective_latency_s(self) -> NDArray[np.float64]:
        """Latency with everything that was not served counted as infinitely late."""
        return np.where(self.ok, self.latency_s, np.inf)

    def latency_quantile_s(self, q: float) -> float:
        return _quantile(self.effective_latency_s, q)

    def latency_ok_quantile_s(self, q: float) -> float:
        """Of the served requests only: what a dashboard would show, flattering under overload."""
        return _quantile(self.latency_s[self.ok], q)

    def slo_attainment(self, bound_s: float) -> float:
        """Share of all scheduled requests served within `bound_s`; NaN if there were none."""
        return float(np.mean(self.effective_latency_s <= bound_s)) if self.count else math.nan

    def goodput_rps(self, bound_s: float = math.inf) -> float:
        """Requests per second served within `bound_s`."""
        return int(np.sum(self.ok & (self.latency_s <= bound_s))) / self.duration_s

    def outcomes(self) -> dict[str, int]:
        """Counts by status ("200"), by failure ("timeout"), and "wrong answer" for a 2xx without the expected bytes."""
        wrong = (self.outcome >= 200) & (self.outcome < 300) & ~self.correct
        counts = Counter(self.outcome[~wrong].tolist())
        named = {OUTCOME_NAMES.get(code, str(code)): number for code, number in sorted(counts.items(), reverse=True)}
        return named | ({"wrong answer": int(wrong.sum())} if wrong.any() else {})

    def after(self, warmup_s: float) -> LoadResult:
        """Without the requests scheduled during the first `warmup_s` seconds."""
        if not 0 <= warmup_s < self.duration_s:
            raise ValueError(
                f"warmup_s={warmup_s} must be within [0, {self.duration_s}) s, the run's length; shorten it."
            )
        keep = self.scheduled_s >= warmup_s
        return replace(
            self,
            scheduled_s=self.scheduled_s[keep] - warmup_s,
            wake_lag_s=self.wake_lag_s[keep],
            send_lag_s=self.send_lag_s[keep],
            latency_s=self.latency_s[keep],
            outcome=self.outcome[keep],
            correct=self.correct[keep],
            duration_s=self.duration_s - warmup_s,
        )

    def histogram(self) -> str:
        """The served requests' latencies in microseconds as an encoded HdrHistogram (3 digits, up to one hour)."""
        histogram = _new_histogram()
        values, counts = np.unique(
            np.clip(np.rint(self.latency_s[self.ok] * 1e6), 1, _HIGHEST_US).astype(np.int64), return_counts=True
        )
        for value, number in zip(values.tolist(), counts.tolist(), strict=True):
            histogram.record_value(value, number)
        return str(histogram.encode().decode("ascii"))

    def to_json(self, *, bound_s: float | None = None) -> dict[str, Any]:
        """JSON-ready; an infinite quantile (more failures than it may have) is null."""
        quantiles = (0.5, 0.9, 0.95, 0.99, 0.999)
        document: dict[str, Any] = {
            "version": 1,
            "requests": self.count,
            "duration_s": self.duration_s,
            "offered_rps": self.offered_rps,
            "goodput_rps": self.goodput_rps(),
            "outcomes": self.outcomes(),
            "latency_s": {f"{q:g}": _finite(self.latency_quantile_s(q)) for q in quantiles},
            "latency_ok_s": {f"{q:g}": _finite(self.latency_ok_quantile_s(q)) for q in quantiles},
            "client": {
                "send_lag_p99_s": _finite(self.send_lag_p99_s),
                "cpu_s": self.client_cpu_s,
                "cpu_share": self.client_cpu_share,
                "queued_share": self.queued_share,
            },
            "aborted": self.aborted,
            "histogram_us": self.histogram(),
        }
        if bound_s is not None:
            document["slo"] = {
                "bound_s": bound_s,
                "attainment": _finite(self.slo_attainment(bound_s)),
                "goodput_rps": self.goodput_rps(bound_s),
            }
        return document


def merge_results(results: Sequence[LoadResult]) -> LoadResult:
    """Several workers that ran at the same time, as one run."""
    if not results:
        raise ValueError("nothing to merge: results is empty; pass at least one LoadResult.")
    order = np.argsort(np.concatenate([r.scheduled_s for r in results]), kind="stable")
    return LoadResult(
        scheduled_s=np.concatenate([r.scheduled_s for r in results])[order],
        wake_lag_s=np.concatenate([r.wake_lag_s for r in results])[order],
        send_lag_s=np.concatenate([r.send_lag_s for r in results])[order],
        latency_s=np.concatenate([r.latency_s for r in results])[order],
        outcome=np.concatenate([r.outcome for r in results])[order],
        correct=np.concatenate([r.correct for r in results])[order],
        duration_s=max(r.duration_s for r in results),
        client_cpu_s=sum(r.client_cpu_s for r in results),
        client_cpu_share=max(r.client_cpu_share for r in results),
        aborted=any(r.aborted for r in results),
    )


def merge_histograms(encoded: Sequence[str]) -> str:
    """Add up HdrHistograms as `LoadResult.histogram` writes them: exact, unlike averaging percentiles."""
    total = _new_histogram()
    for text in encoded:
        total.decode_and_add(text.encode("ascii"))
    return str(total.encode().decode("ascii"))


def histogram_quantiles_s(encoded: str, quantiles: Sequence[float]) -> Mapping[float, float]:
    histogram = HdrHistogram.decode(encoded.encode("ascii"))
    return {q: histogram.get_value_at_percentile(100.0 * q) / 1e6 for q in quantiles}


def _quantile(values: NDArray[np.float64], q: float) -> float:
    # "higher" never interpolates, so one infinite value cannot turn its finite neighbour into NaN.
    return float(np.quantile(values, q, method="higher")) if values.size else math.nan


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
