"""Running server -> cells: closed loops with wrk, SLO rates and deadline attainment with our own generator.

Everything here measures one server; the rounds over all of them are in __main__.py.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.serving import h2load, wrk
from benchmarks.serving.cells import Cell, Cells, Watch
from benchmarks.serving.contestants import Running
from benchmarks.serving.works import Work
from cluster.errors import ClientSaturated, ConfigError
from cluster.load import (
    CPU_LIMIT,
    RateTrace,
    gamma,
    poisson,
    read_trace_csv,
    replay,
    run_closed_loop,
    run_open_loop,
)
from cluster.profiles import curves
from cluster.runtimes import RuntimeConfig, RuntimeName
from tune_spaces.measure import Bench, Endpoint, Protocol, settle
from tune_spaces.profiler import profile

Say = Callable[[str], None]
ARRIVALS = ("poisson", "gamma", "trace")
_CV = 2.5
"""Of the bursty arrivals' gaps; 1 would be Poisson."""
_OPEN_CONNECTIONS = 256
_KERNEL_BATCHES = (1, 2, 4, 8, 16, 32, 64)
_LONGEST_S = 0.5
_NEAR = 1.35
_BELOW, _ABOVE = 3.0, 1.25
_TRACE = "traces/azure_llm_2023_code_per_second.csv"


@dataclass(frozen=True)
class Lengths:
    """How long each part measures, in seconds."""

    closed_s: int
    slo_s: float
    deadline_s: float
    warmup_s: float = 3.0


@dataclass(frozen=True)
class Place:
    """Where servers and client run, and how long; what is told on the way."""

    server_cores: list[int]
    client_cores: list[int]
    lengths: Lengths
    say: Say

    def bench(self) -> Bench:
        """Our own generator's part of a comparison."""
        lengths = self.lengths
        protocol = Protocol(
            "serving", lengths.slo_s, lengths.warmup_s, (1,), 4, 3, (0.05, 0.025), lengths.slo_s, 1,
            min(5.0, lengths.slo_s), open_connections=_OPEN_CONNECTIONS,
        )  # fmt: skip
        return Bench(protocol, self.client_cores or None, self.server_cores or None, self.say)


def warm(running: Running, place: Place) -> None:
    """A closed loop that counts for nothing: a server is slow at first, and Ray goes on starting for a while."""
    run_closed_loop(running.target, duration_s=place.lengths.warmup_s, connections=16,
                    cpus=place.client_cores or None)  # fmt: skip


def closed(running: Running, connections: int, place: Place) -> Cell:
    """wrk's figures, what they cost, how large the batches were."""
    before, used, watch = running.batches(), running.cpu_seconds(), Watch(place.server_cores)
    found = wrk.run(running.target, connections=connections, seconds=place.lengths.closed_s, cores=place.client_cores)
    facts = watch.facts(running.cpu_seconds() - used)
    good = found.answers - found.failed
    return {
        **asdict(found), "is_a_floor": found.is_a_floor, "mean_batch": _mean(before, running.batches()),
        "core_s_per_million": facts["cpu_s"] / good * 1e6 if good > 0 else None, **facts,
    }  # fmt: skip


def _mean(before: tuple[int, int] | None, after: tuple[int, int] | None) -> float | None:
    """Requests in a batch, in between; None where the server does not tell."""
    if before is None or after is None or after[1] <= before[1]:
        return None
    return (after[0] - before[0]) / (after[1] - before[1])


def client(place: Place) -> Cell:
    """The rate that the client holds by itself: no search goes above it."""
    found = place.bench().self_check(16_000.0)
    return {"rate_rps": found.rate if found.ok else 0.0, "send_lag_p99_s": found.send_lag_p99_s}


def slo(running: Running, bound_s: float, seed: int, near_rps: float | None, max_rps: float, place: Place,
        ceiling_rps: float) -> Cell:  # fmt: skip
    """One seed's SLO rate; `near_rps` is what the seeds before found. `rate_rps` None is "can't tell"."""
    endpoint = Endpoint(running.name, running.target, running.cpu_seconds)
    guess = (near_rps / _NEAR, near_rps * _NEAR) if near_rps else (max_rps / _BELOW, max_rps * _ABOVE)
    used, watch = running.cpu_seconds(), Watch(place.server_cores)
    try:
        if ceiling_rps <= 0:
            raise ClientSaturated("the client held no rate by itself")
        found = place.bench().slo_rate(endpoint, bound_s, seed, guess, ceiling_rps, 3 if near_rps else 4)
    except ClientSaturated as error:
        return {"rate_rps": None, "because": str(error), **watch.facts(running.cpu_seconds() - used)}
    steps = [(step.rate, step.result.p99_s if math.isfinite(step.result.p99_s) else None) for step in found.trace
             if not step.result.client_saturated]  # fmt: skip
    return {"rate_rps": found.median, "is_a_floor": found.at_ceiling, "steps": steps,
            **watch.facts(running.cpu_seconds() - used)}  # fmt: skip


def paced(running: Running, bounds_s: Sequence[float], most_rps: float, place: Place) -> dict[float, Cell]:
    """The highest fixed rate that holds, by bound."""
    lengths = place.lengths
    before, used, watch = running.batches(), running.cpu_seconds(), Watch(place.server_cores)
    rates, seen = h2load.search(
        lambda rate: h2load.run(
            running.target, rate_rps=rate, seconds=lengths.slo_s, warmup_s=lengths.warmup_s, cores=place.client_cores
        ),
        most_rps, bounds_s,
    )  # fmt: skip
    steps = [(each.offered_rps, each.rate_rps, _finite(each.p99_s), each.failed) for each in seen]
    facts = {"steps": steps, "mean_batch": _mean(before, running.batches()),
             **watch.facts(running.cpu_seconds() - used)}  # fmt: skip
    return {bound_s: {"rate_rps": rate, **facts} for bound_s, rate in rates.items()}


def trace_file(given: Path | None) -> Path | None:
    """The trace to replay: the given one, else that of $SLUICE_DATA_DIR; None if there is none."""
    if given is not None:
        if not given.is_file():
            raise ConfigError(f"--trace {given}: there is no such file; pass a CSV of time_s,rate_rps")
        return given
    there = Path(os.environ.get("SLUICE_DATA_DIR", "")) / _TRACE
    return there if there.is_file() else None


def arrivals(kind: str, rate: float, duration_s: float, seed: int, trace: RateTrace | None) -> NDArray[np.float64]:
    """Of one of ARRIVALS, `rate` a second on average."""
    if kind == "poisson":
        return poisson(rate, duration_s, seed)
    if kind == "gamma":
        return gamma(rate, duration_s, _CV, seed)
    assert trace is not None
    rates = stretch(trace, duration_s, seed)
    times = replay(rates, trace.bin_s, scale=rate / float(rates.mean()), seed=seed)
    return times[times < duration_s]


def stretch(trace: RateTrace, duration_s: float, seed: int) -> NDArray[np.float64]:
    """Bins of that length out of it, by the seed: of those that are not nearly empty."""
    bins = min(len(trace.rates_rps), max(1, math.ceil(duration_s / trace.bin_s)))
    sums = np.convolve(trace.rates_rps, np.ones(bins), mode="valid")
    busy = np.flatnonzero(sums >= np.median(sums[sums > 0]))
    first = int(np.random.default_rng(seed).choice(busy))
    return trace.rates_rps[first : first + bins]


def deadline(running: Running, times: NDArray[np.float64], deadline_s: float, place: Place) -> Cell:
    """The share of requests that were answered rightly within `deadline_s` of when they should have been sent."""
    window_s = place.lengths.deadline_s + place.lengths.warmup_s
    settle(running.target, deadline_s)
    before, used, watch = running.batches(), running.cpu_seconds(), Watch(place.server_cores)
    result = run_open_loop(
        running.target, times, duration_s=window_s, connections=_OPEN_CONNECTIONS, cpus=place.client_cores or None,
        timeout_s=max(2.0, 8 * deadline_s),
    )  # fmt: skip
    judged = result.after(place.lengths.warmup_s)
    return {
        "attainment": judged.slo_attainment(deadline_s), "requests": judged.count, "outcomes": judged.outcomes(),
        "offered_rps": judged.offered_rps, "p50_s": _finite(judged.latency_quantile_s(0.5)),
        "p99_s": _finite(judged.latency_quantile_s(0.99)), "client_cpu_share": result.client_cpu_share,
        "send_lag_p99_s": judged.send_lag_p99_s, "client_saturated": result.client_cpu_share > CPU_LIMIT,
        "mean_batch": _mean(before, running.batches()), **watch.facts(running.cpu_seconds() - used),
    }  # fmt: skip


def kernel(work: Work, name: RuntimeName, place: Place) -> Cell:
    """The bare runtime, one thread: batch 1, and the batch size that does most."""
    job = (work.variant, RuntimeConfig(name=name))
    (curve,) = curves(profile(
        work.store, [job], batch_sizes=_KERNEL_BATCHES, cpus=place.server_cores[:1] or None, fresh=True,
        longest_s=_LONGEST_S, samples=work.pictures,
    ))  # fmt: skip
    best = curve.best
    return {"rate_rps": best.throughput_rps, "best_batch": best.batch_size, "latency_s": curve.points[0].latency_p50_s,
            "load": os.getloadavg()[0]}  # fmt: skip


def read_trace(path: Path | None) -> RateTrace | None:
    """The trace of a file."""
    return None if path is None else read_trace_csv(path)


def smaller_maximum(cells: Cells, work: str, servers: list[str]) -> float:
    """The least of their closed-loop maxima, each at the number of connections that suits it. Raises ConfigError where
    one has none."""
    found = {server: cells.best(f"{work}/{server}/closed", "rate_rps") for server in servers}
    if missing := [server for server, rate in found.items() if not rate > 0]:
        raise ConfigError(
            f"{work}: deadlines are measured at shares of the smaller closed-loop maximum, and {', '.join(missing)} "
            "has none; run the phase `closed` with it first"
        )
    return min(found.values())


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
