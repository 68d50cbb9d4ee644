"""Plan: what will be deployed, and why. Written by the planner, read by whoever renders a Serve config."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.runtimes.base import RuntimeConfig


class Plan(BaseModel):
    """One variant on one runtime with its bounds; the names are Ray's own words where Ray has one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    model_name: str
    variant_id: str
    variant_name: str
    runtime: RuntimeConfig
    store: str
    """Path of the artifact store as the replicas see it."""
    max_batch_size: int = Field(default=32, ge=1)
    """Rows in one batch at most; a batch forms when the executor frees, so this is a cap and not a wait."""
    max_queued_requests: int = Field(default=512, ge=1)
    """Requests that wait at most; one more is answered 503 with Retry-After."""
    num_replicas: int = Field(default=1, ge=1)
    num_cpus_per_replica: float = Field(default=1.0, gt=0)
    default_timeout_s: float | None = Field(default=None, gt=0)
    """Deadline of a request that names none; None: it waits as long as its client does."""
    predicted: dict[str, Any] = Field(default_factory=dict)
    made_by: str
