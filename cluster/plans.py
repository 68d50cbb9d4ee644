"""Configuration: one way to serve a model. Plan: the one that is deployed, and why.

A search varies Configurations; the planner makes a Plan of the best; whoever renders a Serve config reads the Plan.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from cluster.runtimes.base import RuntimeConfig
from cluster.scheduling import Scheduling
from cluster.variants import canonical_sha256


class Configuration(BaseModel):
    """One variant on one runtime with its bounds; the names are Ray's own words where Ray has one."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    variant_id: str
    variant_name: str
    runtime: RuntimeConfig
    max_batch_size: int = Field(default=32, ge=1)
    """Rows in one batch at most; a batch forms when the executor frees, so this is a cap and not a wait."""
    max_queued_requests: int = Field(default=512, ge=1)
    """Requests that wait at most; one more is answered 503 with Retry-After."""
    num_replicas: int = Field(default=1, ge=1)

    @property
    def key(self) -> str:
        """Equal for equal configurations, whatever their variant is called."""
        content = self.model_dump(mode="json", include=set(Configuration.model_fields) - {"variant_name"})
        return canonical_sha256(content)[:12]

    def __str__(self) -> str:
        replicas = f", {self.num_replicas} replicas" if self.num_replicas > 1 else ""
        return (
            f"{self.variant_name} on {self.runtime}, max_batch_size {self.max_batch_size}, queue "
            f"{self.max_queued_requests}{replicas}"
        )


class Plan(Configuration):
    """What will be deployed. In a notebook it shows itself as a table."""

    schema_version: Literal[2] = 2
    model_name: str
    store: str
    """Path of the artifact store as the replicas see it."""
    num_cpus_per_replica: float = Field(default=1.0, gt=0)
    default_timeout_s: float | None = Field(default=None, gt=0)
    """Deadline of a request that names none; None: it waits as long as its client does."""
    also: tuple[str, ...] = ()
    """Ids of variants that are resident beside it: what a replica may step down to under pressure."""
    executors: int = Field(default=1, ge=1, le=64)
    """Threads of a replica that execute batches side by side, each with a copy of every resident variant."""
    direct_port: int | None = Field(default=None, ge=1, le=65535)
    """Where each replica listens for clients that come without a proxy, beside Serve's port; None: nowhere."""
    repository: bool = False
    """May clients load and unload the model (POST /v2/repository/models/NAME/load)? Whoever reaches the port could."""
    scheduling: Scheduling | None = None
    """Classes of priority, quotas, when to step down; None: the defaults."""
    slo: dict[str, Any] = Field(default_factory=dict)
    """What it was chosen for; empty if it was not chosen."""
    predicted: dict[str, Any] = Field(default_factory=dict)
    """From profiles, before anything was deployed."""
    measured: dict[str, Any] = Field(default_factory=dict)
    """Live, in the search."""
    made_by: str

    @field_validator("predicted", "measured", mode="before")
    @classmethod
    def _as_json_says_it(cls, given: Any) -> Any:
        """JSON has no infinity: None, as for all that could not be told."""
        if not isinstance(given, Mapping):
            return given
        lost = {name for name, value in given.items() if _is_figure(value) and not math.isfinite(value)}
        return {name: None if name in lost else value for name, value in given.items()}

    def _repr_html_(self) -> str:
        rows = {
            "serves": str(Configuration.model_validate(self.model_dump(include=set(Configuration.model_fields)))),
            "as": f"{self.model_name}, {self.num_cpus_per_replica:g} CPUs a replica",
            **{f"{name} (measured)": f"{value:,.4g}" for name, value in self.measured.items() if _is_figure(value)},
            **{f"{name} (predicted)": f"{value:,.4g}" for name, value in self.predicted.items() if _is_figure(value)},
            "because": self.made_by,
        }
        left = "style='text-align:left'"
        cells = "".join(
            f"<tr><th {left}>{html.escape(name)}</th><td {left}>{html.escape(value)}</td></tr>"
            for name, value in rows.items()
        )
        return f"<table>{cells}</table>"


def _is_figure(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
