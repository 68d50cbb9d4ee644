"""LiveDeployment: one warm deployment that takes on configuration after configuration through `user_config`, and is
measured under load in each.

Nothing restarts in between: Serve hands the new user_config to the replicas, they load what they lack and switch between
two batches (about 0.3 s). A LiveDeployment is a description that can be sent to another process: Ray Tune's trials run
in an actor.
"""

from __future__ import annotations

import fcntl
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
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
from cluster.load import LoadResult, Target, poisson, replay, run_open_loop
from cluster.plans import Configuration
from cluster.slo import Slo
from cluster.studies import LiveFigures
from tune_spaces.measure import Bench, Endpoint, Figures, Protocol, bound_label, settle

Say = Callable[[str], None]
_REQUEST_TIMEOUT_S = 2.0
_NEAR = 1.35
"""A search for the SLO rate starts from this factor around its guess."""
_USUAL = 0.8
"""The guess where nothing better is known: the SLO rate as a share of the closed loop's maximum."""


@dataclass(frozen=True)
class TrialProtocol:
    """How long one trial measures. `quick` tells good from bad in about 15 s; figures to publish need `full`."""

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
    "quick": TrialProtocol("quick", step_s=2.0, warmup_s=0.5, steps=3, closed_loop_s=1.5),
    "full": TrialProtocol("full", step_s=10.0, warmup_s=2.0, steps=4, closed_loop_s=4.0),
    "smoke": TrialProtocol("smoke", step_s=0.4, warmup_s=0.1, steps=1, closed_loop_s=0.4),
}


@dataclass(frozen=True)
class LiveDeployment:
    """Where it answers, what it is sent, and whose processes it is made of."""

    dashboard_address: str
    ray_address: str
    host: str
    port: int
    slo: Slo
    store: Path
    target: Target
    server_cpus: list[int] | None
    client_cpus: list[int] | None
    supervisor_pid: int | None
    """Of the local cluster that it runs on; None: another cluster, whose CPU time and memory are not known here."""

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
        application["args"] |= self.first
        deployment["max_ongoing_requests"] = 1 << 16
        deployment["ray_actor_options"] = {"num_cpus": 0.1}
        return config

    @property
    def first(self) -> dict[str, Any]:
        return {}

    def apply(self, configuration: Configuration, *, timeout_s: float = 120.0) -> None:
        """Take it on, and return when it answers so. Raises ClusterError, with Serve's reason, if it cannot."""
        local.deploy_config(self.dashboard_address, self.config(configuration), timeout_s=timeout_s)
        end = time.monotonic() + timeout_s
        with httpx.Client(timeout=5.0) as client:
            agreed = 0
            while agreed < 3 * configuration.num_replicas:
                with suppress(httpx.HTTPError):
                    answer = client.get(f"http://{self.host}:{self.port}/v2/models/{self.slo.model_name}/config")
                    agreed = agreed + 1 if _is(answer, configuration) else 0
                if not agreed:
                    if time.monotonic() > end:
                        raise ClusterError(f"after {timeout_s:g} s it does not answer as {configuration}")
                    time.sleep(0.02)
