"""LiveDeployment: one warm deployment that takes on configuration after configuration through `user_config`, and is
measured under load in each.

Nothing restarts in between: Serve hands the new user_config to the replicas, they load what they lack and switch
between two batches (about 0.3 s). A LiveDeployment is a description that can be sent to another process: Ray Tune's
trials run in an actor.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from cluster import local
from cluster.control.planner import plan_of
from cluster.control.serve_config import serve_config
from cluster.errors import ClientSaturated, ClusterError
from cluster.load import LoadResult, Target, poisson, replay, run_closed_loop, run_open_loop
from cluster.plans import Configuration
from cluster.slo import Slo
from cluster.studies import LiveFigures
from tune_spaces.measure import Bench, Endpoint, Figures, Protocol, settle

Say = Callable[[str], None]
_NEAR = 1.35
"""A search for the SLO rate starts from this factor around its guess."""
_USUAL = 0.9
"""The guess where nothing better is known: the SLO rate as a share of the closed loop's maximum."""
_HOPELESS = 1.2
"""An SLO rate is never so much above the closed loop's maximum."""
_REFERENCE = 0.5
"""The reference load where the SLO names none, as a share of the first trial's closed-loop maximum."""
_ASK_AGAIN_S = 10.0
_WARM_S = 0.5
_LEAST = 50.0
"""Requests that a p99 is taken of, on average, however low the load."""


@dataclass(frozen=True)
class TrialProtocol:
    """How long one trial measures. `quick` tells good from bad in about 20 s; figures to publish need `full`."""

    name: str
    step_s: float
    warmup_s: float
    steps: int
    closed_loop_s: float

    def as_protocol(self, slo: Slo) -> Protocol:
        return Protocol(
            self.name, self.step_s, self.warmup_s, (1,), self.steps, self.steps, (slo.latency_p99_s,), self.step_s, 1,
            self.closed_loop_s, connections=(64,),
        )  # fmt: skip


TRIAL_PROTOCOLS = {
    "quick": TrialProtocol("quick", step_s=2.0, warmup_s=0.5, steps=4, closed_loop_s=1.5),
    "full": TrialProtocol("full", step_s=10.0, warmup_s=2.0, steps=5, closed_loop_s=4.0),
    "smoke": TrialProtocol("smoke", step_s=0.4, warmup_s=0.1, steps=1, closed_loop_s=0.4),
}


@dataclass(frozen=True)
class LiveDeployment:
    """Where it answers, what it is sent, and whose processes it is made of."""

    dashboard_address: str
    host: str
    port: int
    slo: Slo
    store: Path
    target: Target
    first: Configuration
    """What it was started with: the application's args, which cannot change without a restart, name this one."""
    server_cpus: list[int] | None
    client_cpus: list[int] | None
    client_holds_rps: float
    """The rate that the client held against a null server; no search goes above it."""
    supervisor_pid: int

    def config(self, configuration: Configuration) -> dict[str, Any]:
        """The Serve config of this deployment with that configuration, all of it in `user_config` but the replicas."""
        plan = plan_of(configuration, model_name=self.slo.model_name, store=self.store, made_by="a trial")
        config = serve_config(plan, http_host=self.host, http_port=self.port)
        application = config["applications"][0]
        deployment = application["deployments"][0]
        deployment["user_config"] |= {
            "variant": configuration.variant_id, "runtime": configuration.runtime.model_dump(mode="json"),
        }  # fmt: skip
        # These restart replicas when they change, so every configuration has the same: the application's args name the
        # variant of the first one, and a replica asks for no more than it needs to be placed.
        application["args"] |= {
            "variant": self.first.variant_id, "runtime": self.first.runtime.model_dump(mode="json"),
        }  # fmt: skip
        deployment["max_ongoing_requests"] = 1 << 16
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
        return config

    def apply(self, configuration: Configuration, *, timeout_s: float = 120.0) -> None:
        """Take it on, and return when it answers so. Raises ClusterError, with Serve's reason, if it cannot."""
        end = time.monotonic() + timeout_s
        url = f"http://{self.host}:{self.port}/v2/models/{self.slo.model_name}/config"
        while time.monotonic() < end:
            # Asked again it says why it could not: it may have called itself running before it tried.
            local.deploy_config(self.dashboard_address, self.config(configuration), timeout_s=timeout_s)
            if _answers_as(url, configuration, patience_s=_ASK_AGAIN_S):
                return
        raise ClusterError(f"after {timeout_s:g} s it does not answer as {configuration}")

    def processes(self) -> list[psutil.Process]:
        """Those of the cluster, Ray's own included, but neither this one nor the load generator below it."""
        with suppress(psutil.NoSuchProcess):
            supervisor, own = psutil.Process(self.supervisor_pid), psutil.Process()
            found = {p.pid: p for p in [supervisor, *supervisor.children(recursive=True)]}
            if own.pid in found:  # an actor of the cluster: the load generator hangs below it
                for process in [own, *own.children(recursive=True)]:
                    found.pop(process.pid, None)
            return list(found.values())
        return []

    def cpu_seconds(self) -> float:
        """CPU seconds used so far by those that live."""
        total = 0.0
        for process in self.processes():
            with suppress(psutil.Error):
                times = process.cpu_times()
                total += times.user + times.system
        return total

    def memory_bytes(self) -> int:
        """Resident memory of the replicas."""
        total = 0
        for process in self.processes():
            with suppress(psutil.Error):
                if "ServeReplica" in " ".join(process.cmdline()):
                    total += process.memory_info().rss
        return total

    def reference_rate_rps(self, first_max_rate_rps: float) -> float:
        """The load at which all configurations are compared: the SLO's own, else half of what the first one did."""
        return self.slo.peak_rps() or max(5.0, _REFERENCE * first_max_rate_rps)

    def measure(
        self, configuration: Configuration, protocol: TrialProtocol, *, seed: int, reference_rate_rps: float | None,
        memory_bytes: int, best_rps: float = 0.0, say: Say = lambda line: None,
    ) -> LiveFigures:  # fmt: skip
        """Take it on and load it. `memory_bytes` is what it is known to need, `best_rps` the best SLO rate so far:
        where that is out of reach, no SLO rate is searched.

        Raises ClusterError if it cannot be taken on.
        """
        self.apply(configuration)
        # Just after a switch some closed loops came out at a quarter of the SLO rate that the same trial then held.
        warm_s = max(_WARM_S, protocol.warmup_s)
        run_closed_loop(self.target, connections=64, duration_s=warm_s, cpus=self.client_cpus, timeout_s=2.0)
        bench = Bench(protocol.as_protocol(self.slo), self.client_cpus, self.server_cpus, say)
        endpoint = Endpoint(str(configuration), self.target, self.cpu_seconds)
        figures = Figures()
        bench.closed_loop(endpoint, figures)
        rate = reference_rate_rps or self.reference_rate_rps(figures.max_rate)
        reference, cost = self._at_reference(rate, protocol, seed)
        self._find_slo_rate(bench, endpoint, figures, protocol, seed, best_rps)
        label = next(iter(figures.slo_rate), None)
        return LiveFigures(
            max_rate_rps=figures.max_rate,
            slo_rate_rps=figures.slo_rate[label] if label else None,
            slo_rate_is_a_floor=bool(label and figures.slo_rate_is_a_floor.get(label)),
            reference_rate_rps=rate,
            latency_p50_s=_finite(reference.latency_quantile_s(0.50)),
            latency_p99_s=_finite(reference.latency_quantile_s(0.99)),
            attainment=reference.slo_attainment(self.slo.latency_p99_s) if reference.count else 0.0,
            error_rate=1.0 - float(reference.ok.mean()) if reference.count else 0.0,
            core_s_per_million=cost,
            memory_bytes=memory_bytes,
            client_cpu_share=reference.client_cpu_share,
            p99_by_rate=tuple(figures.p99_by_rate),
            latency_histogram=reference.histogram(),
        )

    def _at_reference(self, rate: float, protocol: TrialProtocol, seed: int) -> tuple[LoadResult, float | None]:
        """(what users saw, CPU seconds of all server processes per million right answers)"""
        settle(self.target, self.slo.latency_p99_s)
        window_s = protocol.warmup_s + max(protocol.step_s, _LEAST / rate)
        used = self.cpu_seconds()
        result = run_open_loop(
            self.target, self._arrivals(rate, window_s, seed), duration_s=window_s, connections=256,
            cpus=self.client_cpus, timeout_s=max(2.0, 4 * self.slo.latency_p99_s),
        )  # fmt: skip
        cpu_s, answered = self.cpu_seconds() - used, int(result.ok.sum())
        return result.after(protocol.warmup_s), cpu_s / answered * 1e6 if answered else None

    def _arrivals(self, rate: float, window_s: float, seed: int) -> NDArray[np.float64]:
        """Poisson at that rate; of a trace its busiest stretch as it was, so its own bursts are in it."""
        if self.slo.trace is None:
            return poisson(rate, window_s, seed)
        trace = self.slo.trace.read()
        bins = min(len(trace.rates_rps), max(1, math.ceil(window_s / trace.bin_s)))
        sums = np.convolve(trace.rates_rps, np.ones(bins), mode="valid")
        first = int(np.argmax(sums))
        times = replay(trace.rates_rps[first : first + bins], trace.bin_s, scale=1.0, seed=seed)
        return times[times < window_s]

    def _find_slo_rate(
        self, bench: Bench, endpoint: Endpoint, figures: Figures, protocol: TrialProtocol, seed: int, best_rps: float
    ) -> None:
        named_load = self.slo.rate_rps is not None or self.slo.trace is not None
        if named_load and self.slo.objective != "max_rate":
            return  # it is judged at that load alone
        if not figures.max_rate or _HOPELESS * figures.max_rate < best_rps or self.client_holds_rps <= 0:
            return
        guess = min(_USUAL * figures.max_rate, self.client_holds_rps / _NEAR)
        try:
            found = bench.slo_rate(
                endpoint, self.slo.latency_p99_s, seed, (guess / _NEAR, guess * _NEAR), self.client_holds_rps,
                protocol.steps,
            )  # fmt: skip
        except ClientSaturated as error:
            bench.say(f"{endpoint.name}: {error}")
            return
        figures.slo_rate["bound"] = found.median
        figures.slo_rate_is_a_floor["bound"] = found.at_ceiling
        figures.p99_by_rate += [
            (step.rate, _finite(step.result.p99_s)) for step in found.trace if not step.result.client_saturated
        ]


def _answers_as(url: str, configuration: Configuration, *, patience_s: float) -> bool:
    """Does it, several times in a row for each replica, within that time?"""
    end, agreed = time.monotonic() + patience_s, 0
    with httpx.Client(timeout=5.0) as client:
        while time.monotonic() < end:
            with suppress(httpx.HTTPError):
                agreed = agreed + 1 if _is(client.get(url), configuration) else 0
            if agreed >= 3 * configuration.num_replicas:
                return True
            if not agreed:
                time.sleep(0.02)
    return False


def _is(answer: httpx.Response, configuration: Configuration) -> bool:
    """`/config` as serve_apps/oip/routes.py writes it."""
    if answer.status_code != 200:
        return False
    said = answer.json()
    told = {name: value["string_value"] for name, value in said["parameters"].items()}
    wanted = {f"runtime.{name}": str(value) for name, value in configuration.runtime.model_dump(mode="json").items()}
    wanted["max_queued_requests"] = str(configuration.max_queued_requests)
    return (
        said["version_policy"]["specific"]["versions"] == [configuration.variant_id]
        and said["max_batch_size"] == configuration.max_batch_size
        and all(told.get(name) == value for name, value in wanted.items())
    )


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
