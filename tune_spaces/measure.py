"""Two endpoints + Protocol -> Comparison: before against after, in interleaved rounds of one run.

Follows benchmarks/PROTOCOL.md. Every figure of the before | after table comes out of here; nothing is remembered from
another run. Where the client cannot hold a rate the figure is None, "can't tell", and never the client's own limit.
"""

from __future__ import annotations

import contextlib
import math
import os
import socket
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.errors import ClientSaturated
from cluster.load import (
    CPU_LIMIT,
    LoadResult,
    SelfCheck,
    SloRate,
    StepResult,
    Target,
    follow_slo_rate,
    poisson,
    poisson_steps,
    run_closed_loop,
    run_open_loop,
    self_check,
)

Say = Callable[[str], None]

_SPAN = 1.25
"""The first seed's bisection starts from 1/_BELOW to _SPAN times what a closed loop got out of the endpoint."""
_BELOW = 4.0
_NEAR = 1.35
"""The later ones start from this factor around what the seeds before them found."""
_FALLBACK = 20.0
"""Each follows the rate down to 1/_FALLBACK of where it began, and up to what the client holds."""
_REQUEST_TIMEOUT_S = 2.0


@dataclass(frozen=True)
class Protocol:
    """How long and how often. `quick` tells the story in minutes; only `full` gives figures to publish."""

    name: str
    step_s: float
    """Length of one bisection step, after its warm-up."""
    warmup_s: float
    seeds: tuple[int, ...]
    steps: int
    steps_again: int
    """Bisections of the first seed, and of the later ones, which start near its result."""
    bounds_s: tuple[float, ...]
    """p99 bounds; the first is the one that decides the equal load."""
    equal_load_s: float
    rounds: int
    closed_loop_s: float
    connections: tuple[int, ...] = (4, 64)
    """Of the closed loop, the best of which counts: a stock deployment does worse at 64 than at 4, ours the reverse."""
    open_connections: int = 256
    """Of the open loop: so many that it seldom waits for one."""


QUICK = Protocol("quick", 3.0, 1.0, (1, 2, 3), 4, 3, (0.050,), 4.0, 3, 2.0)
FULL = Protocol("full", 20.0, 3.0, (1, 2, 3), 4, 3, (0.050, 0.025), 20.0, 3, 6.0)
SMOKE = Protocol("smoke", 0.5, 0.2, (1,), 1, 1, (0.050,), 0.5, 1, 0.5)
"""Proves that every part works; its figures mean nothing."""
PROTOCOLS = {p.name: p for p in (QUICK, FULL, SMOKE)}


@dataclass(frozen=True)
class Endpoint:
    """One server under measurement: where it answers, what it is sent, and what its processes have used."""

    name: str
    target: Target
    cpu_seconds: Callable[[], float]
    """CPU seconds of all its processes so far, Ray's own included."""


@dataclass
class Figures:
    """What is known of one endpoint after a comparison; rates in requests/s, times in s, None for "can't tell"."""

    slo_rate: dict[str, float | None] = field(default_factory=dict)
    """By bound ("50ms"): the median over the seeds."""
    slo_rate_per_seed: dict[str, dict[int, float]] = field(default_factory=dict)
    p99_by_rate: list[tuple[float, float | None]] = field(default_factory=list)
    """Every judged step of the searches: (req/s, p99 in s from the scheduled time, None where over 1% failed)."""
    slo_rate_is_a_floor: dict[str, bool] = field(default_factory=dict)
    """The search met its upper end, which is what the client can hold: the true rate may be higher."""
    max_rates: list[float] = field(default_factory=list)
    """Closed loop, all connections busy, one entry a round."""
    max_rate_is_a_floor: bool = False
    """The client was short of CPU in some round: the server might have given more."""
    max_rate_costs: list[float] = field(default_factory=list)
    """CPU seconds of all server processes per million correct answers, a round each, at its own closed-loop maximum."""
    utilisations: list[float] = field(default_factory=list)
    """Share of the cores given that its processes used then; the load's start-up counts, so it errs on the low side."""
    latency_p50_s: float | None = None
    latency_p99_s: float | None = None
    error_rate: float = 0.0
    """Share of requests not answered correctly at the equal load."""
    core_s_per_million_equal_load: float | None = None
    equal_load_rounds: list[dict[str, float | None]] = field(default_factory=list)
    latency_histograms: list[str] = field(default_factory=list)
    """HdrHistogram of each round at equal load."""

    @property
    def max_rate(self) -> float:
        return statistics.median(self.max_rates) if self.max_rates else 0.0

    @property
    def core_s_per_million(self) -> float | None:
        """Median of the rounds that were answered at all."""
        return statistics.median(self.max_rate_costs) if self.max_rate_costs else None

    @property
    def utilisation(self) -> float:
        return statistics.median(self.utilisations) if self.utilisations else 0.0


@dataclass
class Comparison:
    """Both endpoints' figures, the client's own proof, and the load that was equal."""

    protocol: Protocol
    server_cpus: list[int] | None
    client_cpus: list[int] | None
    """Cores that the servers and the client were pinned to; None: to none."""
    equal_load_rate: float
    equal_load_from: str
    """"slo rate": 70% of the baseline's; "closed loop": a sixth of its maximum, where that rate is not known."""
    self_check: dict[str, Any]
    before: Figures
    after: Figures
    client_cpu_share: float
    """The largest share of its core that the client used in any equal-load round."""

    def as_dict(self) -> dict[str, Any]:
        described = asdict(self)
        for name, figures in (("before", self.before), ("after", self.after)):
            described[name] |= {
                "max_rate": figures.max_rate,
                "core_s_per_million": figures.core_s_per_million,
                "utilisation": figures.utilisation,
            }
        return described


def bound_label(bound_s: float) -> str:
    """0.05 -> "50ms": the key of a bound in the figures."""
    return f"{bound_s * 1e3:g}ms"


@dataclass(frozen=True)
class Bench:
    """What every measurement of one comparison, or of one study, shares."""

    protocol: Protocol
    client_cpus: list[int] | None
    server_cpus: list[int] | None
    say: Say

    @property
    def server_cores(self) -> int:
        return len(self.server_cpus) if self.server_cpus else os.cpu_count() or 1

    def closed_loop(self, endpoint: Endpoint, figures: Figures) -> None:
        """The better of the connection counts, with its cost and utilisation, as one round."""
        tried: list[tuple[float, float, float, bool]] = []
        for connections in self.protocol.connections:
            settle(endpoint.target, self.protocol.bounds_s[0])
            used, began = endpoint.cpu_seconds(), time.monotonic()
            result = run_closed_loop(
                endpoint.target, connections=connections, duration_s=self.protocol.closed_loop_s,
                cpus=self.client_cpus, timeout_s=_REQUEST_TIMEOUT_S,
            )  # fmt: skip
            cpu_s, took_s = endpoint.cpu_seconds() - used, time.monotonic() - began
            short_of_cpu = result.client_cpu_share > CPU_LIMIT
            at_least = "at least" if short_of_cpu else "at most"
            self.say(f"{endpoint.name}: {at_least} {result.goodput_rps():,.0f} req/s over {connections} connections")
            cost = cpu_s / answered * 1e6 if (answered := int(result.ok.sum())) else math.nan
            tried.append((result.goodput_rps(), cost, cpu_s / (took_s * self.server_cores), short_of_cpu))
        rate, cost, utilisation, short_of_cpu = max(tried, key=lambda t: t[0])
        figures.max_rates.append(rate)
        figures.utilisations.append(utilisation)
        figures.max_rate_is_a_floor |= short_of_cpu
        if math.isfinite(cost):
            figures.max_rate_costs.append(cost)

    def self_check(self, rate: float) -> SelfCheck:
        """The highest of a few rates, `rate` or less, that the client holds against a null server; the last one tried
        if it held none of them (`ok` is False then)."""
        cpu = self.server_cpus[0] if self.server_cpus else None
        for share in (1.0, 1.0, 0.8, 0.6, 0.4, 0.2):
            check = self_check(
                rate * share, self.protocol.closed_loop_s, cpus=self.client_cpus, server_cpu=cpu,
                connections=self.protocol.open_connections,
            )  # fmt: skip
            self.say(
                f"client alone: {check.rate:,.0f} req/s with p99 send lag {check.send_lag_p99_s * 1e3:.2f} ms "
                f"({'held' if check.ok else 'not held'})"
            )
            if check.ok:
                break
        return check

    def slo_rate(
        self, endpoint: Endpoint, bound_s: float, seed: int, guess: tuple[float, float], ceiling: float, steps: int
    ) -> SloRate:
        """One seed's bisection from a guess, at `ceiling` at most: what the client holds.

        Raises ClientSaturated when the client's own lag hides the answer.
        """
        judge_step = poisson_steps(
            endpoint.target, bound_s=bound_s, duration_s=self.protocol.step_s, warmup_s=self.protocol.warmup_s,
            connections=self.protocol.open_connections, cpus=self.client_cpus, timeout_s=max(2.0, 4 * bound_s),
        )  # fmt: skip

        def measure(rate: float, step_seed: int) -> StepResult:
            settle(endpoint.target, bound_s)
            step = judge_step(rate, step_seed)
            verdict = "can't tell" if step.client_saturated else "holds" if step.met else "too late"
            self.say(f"{endpoint.name}: {rate:,.0f} req/s, p99 {step.p99_s * 1e3:,.1f} ms: {verdict}")
            return step

        low, high = guess
        return follow_slo_rate(
            measure, low=min(low, ceiling / 2), high=min(high, ceiling), floor=min(low, ceiling / 2) / _FALLBACK,
            ceiling=ceiling, steps=steps, seed=seed, retries=2,
        )  # fmt: skip

    def slo_rates(self, pairs: list[tuple[Endpoint, Figures]], bound_s: float, ceiling: float) -> None:
        """Fill in each endpoint's rate at one bound: the median over the seeds, None unless every seed could tell."""
        label = bound_label(bound_s)
        for seed in self.protocol.seeds if ceiling > 0 else ():
            for endpoint, figures in pairs:
                rates = figures.slo_rate_per_seed.setdefault(label, {})
                if not figures.max_rate:
                    continue  # it answered nothing: there is no rate to look for
                guess, steps = self._guess(figures, label, bound_s)
                try:
                    found = self.slo_rate(endpoint, bound_s, seed, guess, ceiling, steps)
                except ClientSaturated as error:
                    self.say(f"{endpoint.name}: {error}")
                    continue
                rates[seed] = found.median
                judged = [step for step in found.trace if not step.result.client_saturated]
                figures.p99_by_rate += [(step.rate, _finite(step.result.p99_s)) for step in judged]
                floor = figures.slo_rate_is_a_floor.get(label, False)
                figures.slo_rate_is_a_floor[label] = floor or found.at_ceiling
        for _, figures in pairs:
            rates = figures.slo_rate_per_seed.setdefault(label, {})
            told = len(rates) == len(self.protocol.seeds)
            figures.slo_rate[label] = statistics.median(rates.values()) if told else None

    def _guess(self, figures: Figures, label: str, bound_s: float) -> tuple[tuple[float, float], int]:
        """((low, high), bisections): near this bound's earlier seeds, else near what other bounds' steps showed of it,
        else wide around the closed loop's maximum."""
        if rates := [rate for rate in figures.slo_rate_per_seed[label].values() if rate]:
            known = statistics.median(rates)
        elif kept := [rate for rate, p99_s in figures.p99_by_rate if p99_s and p99_s <= bound_s]:
            known = max(kept)
        else:
            return (figures.max_rate / _BELOW, figures.max_rate * _SPAN), self.protocol.steps
        return (known / _NEAR, known * _NEAR), self.protocol.steps_again

    def equal_load(self, endpoint: Endpoint, figures: Figures, rate: float, seed: int) -> LoadResult:
        settle(endpoint.target, self.protocol.bounds_s[0])
        window_s = self.protocol.warmup_s + self.protocol.equal_load_s
        used = endpoint.cpu_seconds()
        result = run_open_loop(
            endpoint.target, poisson(rate, window_s, seed), duration_s=window_s,
            connections=self.protocol.open_connections, cpus=self.client_cpus, timeout_s=_REQUEST_TIMEOUT_S,
        )  # fmt: skip
        cpu_s = endpoint.cpu_seconds() - used
        judged = result.after(self.protocol.warmup_s)
        figures.equal_load_rounds.append(
            {
                "latency_p50_s": _finite(judged.latency_quantile_s(0.50)),
                "latency_p99_s": _finite(judged.latency_quantile_s(0.99)),
                "error_rate": 1.0 - float(judged.ok.mean()) if judged.count else None,
                "core_s_per_million": cpu_s / answered * 1e6 if (answered := int(result.ok.sum())) else None,
                "send_lag_p99_s": _finite(judged.send_lag_p99_s),
            }
        )
        figures.latency_histograms.append(judged.histogram())
        return judged


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def settle(target: Target, bound_s: float, *, patience_s: float = 15.0) -> None:
    """Wait until the server has worked off what an overload left behind: two prompt answers in a row.

    Gives up silently after `patience_s`: the step that follows then measures what its users would see.
    """
    end, prompt = time.monotonic() + patience_s, 0
    while prompt < 2 and time.monotonic() < end:
        began, answered = time.monotonic(), False
        with contextlib.suppress(OSError), socket.create_connection((target.host, target.port), timeout=2.0) as probe:
            probe.sendall(target.requests[0])
            answered = probe.recv(65536).startswith(b"HTTP/1.1 200")
        prompt = prompt + 1 if answered and time.monotonic() - began < bound_s else 0
        if not prompt:
            time.sleep(0.05)


def compare(
    before: Endpoint,
    after: Endpoint,
    protocol: Protocol,
    *,
    client_cpus: list[int] | None,
    server_cpus: list[int] | None,
    say: Say,
) -> Comparison:
    """Measure both endpoints side by side, in turn. A client that holds nothing leaves every SLO rate None."""
    bench = Bench(protocol, client_cpus, server_cpus, say)
    pairs = [(before, Figures()), (after, Figures())]
    for endpoint, _ in pairs:
        run_closed_loop(endpoint.target, connections=8, duration_s=protocol.warmup_s + 1.0, cpus=client_cpus)
    for _ in range(protocol.rounds):
        for endpoint, figures in pairs:
            bench.closed_loop(endpoint, figures)

    check = bench.self_check(_SPAN * max(figures.max_rate for _, figures in pairs))
    for bound_s in protocol.bounds_s:
        bench.slo_rates(pairs, bound_s, check.rate if check.ok else 0.0)

    # Latency is compared at a load that the baseline carries with ease, not in its overload.
    sure = pairs[0][1].slo_rate[bound_label(protocol.bounds_s[0])]
    equal = max(5.0, 0.7 * sure if sure else pairs[0][1].max_rate / 6)
    client_share = 0.0
    for number in range(protocol.rounds):
        for endpoint, figures in pairs:
            judged = bench.equal_load(endpoint, figures, equal, 100 + number)
            client_share = max(client_share, judged.client_cpu_share)
        say(f"equal load {equal:,.0f} req/s: round {number + 1} of {protocol.rounds}")
    for _, figures in pairs:
        summarise(figures)
    return Comparison(
        protocol=protocol, server_cpus=server_cpus, client_cpus=client_cpus, equal_load_rate=equal,
        equal_load_from="slo rate" if sure else "closed loop", self_check=asdict(check), before=pairs[0][1],
        after=pairs[1][1], client_cpu_share=client_share,
    )  # fmt: skip


def summarise(figures: Figures) -> None:
    """Medians over the equal-load rounds; a round whose quantile was infinite (failures) counts as the worst."""
    rounds = figures.equal_load_rounds

    def median(name: str) -> float | None:
        values = [math.inf if r[name] is None else float(r[name] or 0.0) for r in rounds]
        return _finite(statistics.median(values))

    figures.latency_p50_s, figures.latency_p99_s = median("latency_p50_s"), median("latency_p99_s")
    figures.error_rate = statistics.mean(float(r["error_rate"] or 0.0) for r in rounds)
    figures.core_s_per_million_equal_load = median("core_s_per_million")

