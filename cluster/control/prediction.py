"""Curve of the graph alone + what a request costs around it -> what a deployment will do. Pure.

Good for ranking, not for promising: it decides which configurations are worth measuring live, and refuses what is far
out of reach. One replica is taken as a server that forms a batch whenever it is free: a batch of b rows keeps it for
T(b); at a rate r the mean batch is the b with b = r T(b), and a request waits for the batch before its own.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from cluster.plans import Configuration
from cluster.profiles import Curve

_TAIL = math.log(100.0)
"""-log of the 1% beyond p99, for exponential tails."""
_NORMAL_P99 = 2.33


@dataclass(frozen=True)
class FrontCost:
    """Seconds of one core that a request, and a batch, cost outside the graph: HTTP, JSON, queue, thread switch,
    joining and splitting. The defaults were measured on one core of a full deployment behind HAProxy; `calibrated`
    replaces the first by what this machine's live trials say."""

    per_request_s: float = 0.000_24
    per_batch_s: float = 0.001_0


@dataclass(frozen=True)
class Prediction:
    """Rates in requests/s of all replicas, times in s."""

    capacity_rps: float
    slo_rate_rps: float
    """Highest rate whose p99 stays within the bound."""
    latency_p99_s: float | None
    """At the rate asked for; infinite where the queue grows without end, None if no rate was asked for."""
    core_s_per_million: float
    """CPU seconds per million answers when batches are full."""
    memory_bytes: int
    """Of all replicas: what runtime and variant add to an empty process."""


@dataclass(frozen=True)
class _Replica:
    """One replica of a configuration, with its share of the cores."""

    curve: Curve
    cap: int
    overlapped: bool
    """The event loop has a core of its own, beside those of the executor."""
    front: FrontCost

    def cycle_s(self, rows: float) -> float:
        """From one batch of that many rows to the next."""
        executor = self.curve.seconds(rows) + self.front.per_batch_s
        loop = rows * self.front.per_request_s
        return max(executor, loop) if self.overlapped else executor + loop

    @property
    def capacity_rps(self) -> float:
        return self.cap / self.cycle_s(self.cap)

    def latency_p99_s(self, rate: float) -> float:
        """At that many requests per second."""
        utilisation = rate / self.capacity_rps
        if utilisation >= 1.0:
            return math.inf
        rows = 1.0
        for _ in range(50):  # b = r T(b), which rises more slowly than b below capacity
            rows = min(float(self.cap), max(1.0, 0.5 * (rows + rate * self.cycle_s(rows))))
        tail = rows + _NORMAL_P99 * math.sqrt(rows)
        busy = min(1.0, rate * self.cycle_s(rows) / rows)
        cycle = self.cycle_s(min(tail, self.cap))
        # Kingman's bound for what still waits when the arrivals bunch up: Poisson arrivals, constant service.
        queue = _TAIL * utilisation / (2.0 * (1.0 - utilisation) * self.capacity_rps)
        return cycle * (1.0 + busy) + queue


def predict(
    configuration: Configuration, curve: Curve, *, cores: int, bound_s: float, rate: float | None = None,
    front: FrontCost = FrontCost(),
) -> Prediction:  # fmt: skip
    """What `configuration` does on `cores` cores. `curve` is of its variant and runtime; `front` counts HAProxy too."""
    replicas, runtime = configuration.num_replicas, configuration.runtime
    one = _Replica(curve, configuration.max_batch_size, _overlapped(configuration, cores), front)
    cap = configuration.max_batch_size
    kernel_core_s = (curve.seconds(cap) * runtime.cores + front.per_batch_s) / cap
    core_s = kernel_core_s + front.per_request_s
    capacity = min(replicas * one.capacity_rps, cores / core_s)  # no more work than there are cores
    share = capacity / (replicas * one.capacity_rps)

    def latency(total: float) -> float:
        return one.latency_p99_s(total / (replicas * share))

    return Prediction(
        capacity_rps=capacity,
        slo_rate_rps=_highest(capacity, lambda total: latency(total) <= bound_s),
        latency_p99_s=None if rate is None else latency(rate),
        core_s_per_million=1e6 * core_s,
        memory_bytes=replicas * max(point.memory_bytes for point in curve.points),
    )


def calibrated(
    measured: Iterable[tuple[Configuration, Curve, float]], *, cores: int, front: FrontCost = FrontCost(),
    connections: int = 64,
) -> FrontCost:  # fmt: skip
    """`front` with the cost of a request that explains the closed-loop maxima (req/s) which live trials measured: the
    median over them, so that one disturbed trial decides nothing. All `connections` together were waiting for one
    answer each, so no batch was larger than a replica's share of them."""
    found = [
        _cost_that_explains(max_rate, configuration, curve, cores, front, connections)
        for configuration, curve, max_rate in measured
        if max_rate > 0
    ]
    usable = [cost for cost in found if cost > 0]
    return replace(front, per_request_s=statistics.median_high(usable)) if usable else front


def _cost_that_explains(
    max_rate: float, configuration: Configuration, curve: Curve, cores: int, front: FrontCost, connections: int
) -> float:
    """The inverse of `predict`'s capacity, which is the lesser of two that both fall with the cost of a request: so the
    lesser of the two costs that give `max_rate`. Not above 0 where no cost does."""
    replicas, runtime = configuration.num_replicas, configuration.runtime
    cap = min(configuration.max_batch_size, max(1, connections // replicas))
    executor = curve.seconds(cap) + front.per_batch_s
    by_work = cores / max_rate - (curve.seconds(cap) * runtime.cores + front.per_batch_s) / cap
    cycle = replicas * cap / max_rate
    if not _overlapped(configuration, cores):
        return min(by_work, (cycle - executor) / cap)
    # Side by side, a loop that is done before its executor leaves no trace of what it cost.
    return min(by_work, cycle / cap) if cycle > executor else 0.0


def _overlapped(configuration: Configuration, cores: int) -> bool:
    return cores >= configuration.num_replicas * (configuration.runtime.cores + 1)


def _highest(most: float, holds: Callable[[float], bool]) -> float:
    """The highest rate below `most` at which `holds`, by bisection; 0.0 if none does."""
    low, high = 0.0, most
    for _ in range(40):
        middle = 0.5 * (low + high)
        if holds(middle):
            low = middle
        else:
            high = middle
    return low
