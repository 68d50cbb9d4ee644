"""Two endpoints + Protocol -> Comparison: before against after, in interleaved rounds of one run.

Follows benchmarks/PROTOCOL.md. Every figure of the before | after table comes out of here; nothing is remembered from
another run, and a client that cannot hold the rate ends the run instead of lending its own limit to a server.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from cluster.load import (
    LoadResult,
    SelfCheck,
    StepResult,
    Target,
    find_slo_rate,
    poisson,
    run_closed_loop,
    run_open_loop,
    self_check,
)

Say = Callable[[str], None]


@dataclass(frozen=True)
class Protocol:
    """How long and how often. `quick` tells the story in minutes; only `full` gives figures to publish."""

    name: str
    step_s: float
    """Length of one bisection step, after its warm-up."""
    warmup_s: float
    seeds: tuple[int, ...]
    steps: int
    bounds_s: tuple[float, ...]
    """p99 bounds; the first is the one that the table shows."""
    equal_load_s: float
    rounds: int
    closed_loop_s: float
    connections: int = 64


QUICK = Protocol("quick", 3.0, 0.5, (1, 2, 3), 4, (0.050,), 4.0, 3, 3.0)
FULL = Protocol("full", 20.0, 3.0, (1, 2, 3), 6, (0.050, 0.025), 20.0, 3, 10.0)
PROTOCOLS = {p.name: p for p in (QUICK, FULL)}


@dataclass(frozen=True)
class Endpoint:
    """One server under measurement: where it answers, what it is sent, and what its processes have used."""

    name: str
    target: Target
    cpu_seconds: Callable[[], float]
    """CPU seconds of all its processes so far, Ray's own included."""


@dataclass
class Figures:
    """What is known of one endpoint after a comparison; rates in requests/s, times in s."""

    slo_rate: dict[str, float] = field(default_factory=dict)
    """By bound in ms: the median over the seeds."""
    slo_rate_per_seed: dict[str, list[float]] = field(default_factory=dict)
    max_rate: float = 0.0
    """Closed loop, all connections busy."""
    latency_p50_s: float = 0.0
    latency_p99_s: float = 0.0
    error_rate: float = 0.0
    """Share of requests not answered correctly at the equal load."""
    core_s_per_million: float = 0.0
    """CPU seconds of all server processes per million correct answers, at its own closed-loop maximum."""
    core_s_per_million_equal_load: float = 0.0
    equal_load_rounds: list[dict[str, float]] = field(default_factory=list)
    latency_histogram: str = ""
    """HdrHistogram of the last round at equal load."""


@dataclass
class Comparison:
    """Both endpoints' figures, the client's own proof, and the load that was equal."""

    protocol: Protocol
    equal_load_rate: float
    self_check: dict[str, Any]
    before: Figures
    after: Figures
    client_cpu_share: float

    def ratio(self, bound: str) -> float:
        return self.after.slo_rate[bound] / self.before.slo_rate[bound]

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def bound_label(bound_s: float) -> str:
    """0.05 -> "50ms": the key of a bound in the figures."""
    return f"{bound_s * 1e3:g}ms"


def _open_loop(
    endpoint: Endpoint, rate: float, duration_s: float, seed: int, protocol: Protocol, cpus: list[int] | None
) -> LoadResult:
    return run_open_loop(
        endpoint.target,
        poisson(rate, duration_s, seed=seed),
        connections=max(protocol.connections, 256),
        cpus=cpus,
        timeout_s=2.0,
    )


def _slo_rate(
    endpoint: Endpoint, bound_s: float, seed: int, high: float, protocol: Protocol, cpus: list[int] | None, say: Say
) -> float:
    """One seed's bisection; the upper end of the search is 1.2x what a closed loop got out of the endpoint."""

    def measure(rate: float, step_seed: int) -> StepResult:
        _open_loop(endpoint, min(rate, high * 0.3), protocol.warmup_s, step_seed + 1000, protocol, cpus)
        result = _open_loop(endpoint, rate, protocol.step_s, step_seed, protocol, cpus)
        p99 = result.latency_quantile_s(0.99)
        say(f"{endpoint.name}: {rate:,.0f} req/s, p99 {p99 * 1e3:,.1f} ms {'holds' if p99 <= bound_s else 'too late'}")
        return StepResult.from_load(result, bound_s=bound_s)

    return find_slo_rate(measure, low=0.0, high=1.2 * high, steps=protocol.steps, seeds=[seed]).median


def _round(figures: Figures, endpoint: Endpoint, result: LoadResult, cpu_s: float) -> None:
    correct = max(1, result.ok_count)
    figures.equal_load_rounds.append(
        {
            "latency_p50_s": result.latency_quantile_s(0.50),
            "latency_p99_s": result.latency_quantile_s(0.99),
            "error_rate": 1.0 - result.ok_count / max(1, result.count),
            "core_s_per_million": cpu_s / correct * 1e6,
        }
    )
    figures.latency_histogram = result.histogram()


def compare(
    before: Endpoint, after: Endpoint, protocol: Protocol, *, client_cpus: list[int] | None, say: Say
) -> Comparison:
    """Measure both endpoints side by side.

    Raises ClientSaturated when the client could not hold the rate against a null server.
    """
    endpoints = (before, after)
    figures = {before.name: Figures(), after.name: Figures()}
    client_cpu_s = client_wall_s = 0.0

    for endpoint in endpoints:
        run_closed_loop(endpoint.target, connections=8, duration_s=protocol.warmup_s + 1.0, cpus=client_cpus)
    for endpoint in endpoints:
        used = endpoint.cpu_seconds()
        result = run_closed_loop(
            endpoint.target, connections=protocol.connections, duration_s=protocol.closed_loop_s, cpus=client_cpus
        )
        own = figures[endpoint.name]
        own.max_rate = result.ok_count / protocol.closed_loop_s
        own.core_s_per_million = (endpoint.cpu_seconds() - used) / max(1, result.ok_count) * 1e6
        client_cpu_s += result.client_cpu_s
        client_wall_s += protocol.closed_loop_s
        say(f"{endpoint.name}: at most {own.max_rate:,.0f} req/s with {protocol.connections} connections always busy")

    check: SelfCheck = self_check(
        1.2 * max(f.max_rate for f in figures.values()), duration_s=protocol.closed_loop_s, cpus=client_cpus
    )
    say(f"client: holds {check.rate:,.0f} req/s with p99 send lag {check.send_lag_p99_s * 1e3:.2f} ms")

    for bound_s in protocol.bounds_s:
        label = bound_label(bound_s)
        for seed in protocol.seeds:
            for endpoint in endpoints:
                own = figures[endpoint.name]
                rate = _slo_rate(endpoint, bound_s, seed, own.max_rate, protocol, client_cpus, say)
                own.slo_rate_per_seed.setdefault(label, []).append(rate)
        for own in figures.values():
            own.slo_rate[label] = statistics.median(own.slo_rate_per_seed[label])

    # Latency is compared at a load that the baseline carries with ease, not in its overload.
    equal = max(5.0, 0.7 * figures[before.name].slo_rate[bound_label(protocol.bounds_s[0])])
    for number in range(protocol.rounds):
        for endpoint in endpoints:
            used = endpoint.cpu_seconds()
            result = _open_loop(endpoint, equal, protocol.equal_load_s, 100 + number, protocol, client_cpus)
            _round(figures[endpoint.name], endpoint, result, endpoint.cpu_seconds() - used)
            client_cpu_s += result.client_cpu_s
            client_wall_s += protocol.equal_load_s
        say(f"equal load {equal:,.0f} req/s: round {number + 1} of {protocol.rounds}")
    for own in figures.values():
        rounds = own.equal_load_rounds
        own.latency_p50_s = float(np.median([r["latency_p50_s"] for r in rounds]))
        own.latency_p99_s = float(np.median([r["latency_p99_s"] for r in rounds]))
        own.error_rate = float(np.mean([r["error_rate"] for r in rounds]))
        own.core_s_per_million_equal_load = float(np.median([r["core_s_per_million"] for r in rounds]))
    return Comparison(
        protocol=protocol,
        equal_load_rate=equal,
        self_check=check.as_dict(),
        before=figures[before.name],
        after=figures[after.name],
        client_cpu_share=client_cpu_s / max(client_wall_s, 1e-9),
    )


def shortened(protocol: Protocol, factor: float) -> Protocol:
    """The same protocol with every duration scaled: for tests and smoke runs, never for figures."""
    return replace(
        protocol,
        name=f"{protocol.name}x{factor:g}",
        step_s=protocol.step_s * factor,
        warmup_s=protocol.warmup_s * factor,
        equal_load_s=protocol.equal_load_s * factor,
        closed_loop_s=protocol.closed_loop_s * factor,
    )
