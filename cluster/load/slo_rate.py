"""measure(rate, seed) -> bisection -> the SLO rate: the highest Poisson rate whose p99 stays within the bound.

The search is pure: it is handed `measure` and never touches a socket. `poisson_steps` makes the usual `measure`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cluster.errors import ClientSaturated, ConfigError
from cluster.load.arrivals import poisson
from cluster.load.http1 import TIMEOUT
from cluster.load.result import LoadResult
from cluster.load.runner import Target, run_open_loop

LAG_LIMIT_S = 1e-3
"""A client whose own lag exceeds this at p99 is no instrument."""
CPU_LIMIT = 0.9
"""A client that used more than this share of its core may have queued what it blames on the server."""


@dataclass(frozen=True)
class StepResult:
    """One rate, judged. `met` is about the server; `client_saturated` says that `met` cannot be trusted."""

    met: bool
    p99_s: float
    """From the scheduled time; infinite when more than 1% failed."""
    client_saturated: bool = False
    send_lag_p99_s: float = 0.0
    attainment: float = math.nan
    client_cpu_share: float = math.nan


@dataclass(frozen=True)
class Step:
    rate: float
    seed: int
    result: StepResult


@dataclass(frozen=True)
class SloRate:
    """The answer in requests per second; `median` over `per_seed`."""

    median: float
    per_seed: dict[int, float]
    trace: list[Step]
    at_ceiling: bool
    """Some seed still met the bound at `high`: the true rate may be higher, so raise `high`."""

    @property
    def spread(self) -> tuple[float, float]:
        return min(self.per_seed.values()), max(self.per_seed.values())


def judge(
    result: LoadResult, bound_s: float, *, lag_limit_s: float = LAG_LIMIT_S, cpu_limit: float = CPU_LIMIT
) -> StepResult:
    """Judge one open-loop run against `bound_s` seconds at p99, and decide whose fault a failure is.

    - A client short of CPU can't tell, whatever it saw: with few connections it is slow without looking late.
    - A client that woke up late (descheduled, say) can't tell either, unless the bound is missed even after its lag
      is taken off twice, once for the sending and once for the reading: then the server failed by itself.
      Waiting for a busy connection is never the client's lag: it is the server that keeps it busy.
    """
    p99_s = result.latency_quantile_s(0.99)
    lag_s = result.send_lag_p99_s
    short_of_cpu = result.client_cpu_share > cpu_limit
    woke_late = not lag_s <= lag_limit_s
    saturated = short_of_cpu or (woke_late and _without_client_lag_p99_s(result) <= bound_s)
    return StepResult(
        met=p99_s <= bound_s,
        p99_s=p99_s,
        client_saturated=saturated,
        send_lag_p99_s=lag_s,
        attainment=result.slo_attainment(bound_s),
        client_cpu_share=result.client_cpu_share,
    )


def _without_client_lag_p99_s(result: LoadResult) -> float:
    # A timeout keeps its measured age, since the client's lag may have caused it. Refusals, resets and requests left
    # unsent behind an overlong queue are the server's, and stay infinitely late.
    timed = result.ok | (result.outcome == TIMEOUT)
    lag_s = np.nan_to_num(result.wake_lag_s, nan=0.0)
    own_s = np.where(timed, result.latency_s - 2.0 * lag_s, np.inf)
    return float(np.quantile(own_s, 0.99, method="higher")) if own_s.size else math.nan


def find_slo_rate(
    measure: Callable[[float, int], StepResult],
    *,
    low: float,
    high: float,
    steps: int = 6,
    seeds: Sequence[int] = (1, 2, 3),
    retries: int = 1,
) -> SloRate:
    """Bisect [low, high] req/s (geometrically) `steps` times for each seed: to a factor of (high/low)**(1/2**steps).

    The ends are measured only if the bisection runs into them: below `low` the rate is 0.0, at `high` `at_ceiling`.
    A step whose client was saturated is repeated `retries` times, then raises ClientSaturated: no number at all.
    """
    if not 0 < low < high < math.inf:
        raise ConfigError(f"low={low}, high={high}: need 0 < low < high in requests per second.")
    if steps < 1 or not seeds:
        raise ConfigError(f"steps={steps}, seeds={list(seeds)}: need at least one step and one seed.")
    trace: list[Step] = []
    per_seed: dict[int, float] = {}
    at_ceiling = False

    def met(rate: float, seed: int) -> bool:
        for _ in range(retries + 1):
            result = measure(rate, seed)
            trace.append(Step(rate, seed, result))
            if not result.client_saturated:
                return result.met
        raise ClientSaturated(
            f"can't tell at {rate:.0f} req/s (seed {seed}): the client's own lag is "
            f"{result.send_lag_p99_s * 1e3:.2f} ms at p99 and its CPU share "
            f"{result.client_cpu_share:.0%}; use more client processes or cores of their own."
        )

    for seed in seeds:
        best, ceiling = low, high
        for _ in range(steps):
            middle = math.sqrt(best * ceiling)
            if met(middle, seed):
                best = middle
            else:
                ceiling = middle
        if best == low and not met(low, seed):
            best = 0.0
        elif ceiling == high and met(high, seed):
            best, at_ceiling = high, True
        per_seed[seed] = best
    return SloRate(statistics.median(per_seed.values()), per_seed, trace, at_ceiling)


def follow_slo_rate(
    measure: Callable[[float, int], StepResult],
    *,
    low: float,
    high: float,
    floor: float,
    ceiling: float,
    steps: int = 4,
    seed: int = 1,
    retries: int = 1,
) -> SloRate:
    """`find_slo_rate` for one seed from a guess [low, high]: the range moves down to `floor` and up to `ceiling` after
    the rate, so that a good guess needs few steps and a bad one costs no truth.

    0.0 means below `floor`; `at_ceiling` that `ceiling` itself held. Raises as `find_slo_rate` does.
    """
    if not floor <= low < high <= ceiling:
        raise ConfigError(f"floor={floor}, low={low}, high={high}, ceiling={ceiling} req/s must rise in this order.")

    def look(bottom: float, top: float) -> SloRate:
        return find_slo_rate(measure, low=bottom, high=top, steps=steps, seeds=[seed], retries=retries)

    found = look(low, high)
    trace, factor = list(found.trace), max(high / low, 2.0)
    while found.median == 0.0 and low > floor:
        low, high = max(low / factor, floor), low
        found = look(low, high)
        trace += found.trace
        found = replace(found, at_ceiling=False)  # that end has just been seen to fail
    while found.at_ceiling and high < ceiling:
        low, high = high, min(high * factor, ceiling)
        found = look(low, high)
        trace += found.trace
        if found.median == 0.0:  # noise: it held there a moment ago
            found = replace(found, median=low, per_seed={seed: low})
    return replace(found, trace=trace)


def poisson_steps(
    target: Target,
    *,
    bound_s: float,
    duration_s: float = 20.0,
    warmup_s: float = 3.0,
    processes: int = 1,
    connections: int = 64,
    cpus: Sequence[int] | None = None,
    timeout_s: float = 5.0,
    lag_limit_s: float = LAG_LIMIT_S,
) -> Callable[[float, int], StepResult]:
    """The usual `measure`: Poisson arrivals for `warmup_s`, not judged, then for `duration_s`, judged at `bound_s`.

    A step stops early once half a `timeout_s` of arrivals waits in the client: far more than 1% are late by then.
    Raises ConfigError unless `timeout_s` leaves room above `bound_s`.
    """
    if not 0 < 4 * bound_s <= timeout_s:
        raise ConfigError(f"timeout_s={timeout_s} is under four times bound_s={bound_s}; pass a longer timeout_s.")

    def measure(rate: float, seed: int) -> StepResult:
        window_s = warmup_s + duration_s
        result = run_open_loop(
            target,
            poisson(rate, window_s, seed),
            duration_s=window_s,
            processes=processes,
            connections=connections,
            cpus=cpus,
            timeout_s=timeout_s,
            abort_backlog=max(math.ceil(rate * timeout_s / 2), 64),
        )
        return judge(result.after(warmup_s), bound_s, lag_limit_s=lag_limit_s)

    return measure
