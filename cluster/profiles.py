"""Profile: how fast one variant is on one runtime at one batch size on one machine."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.runtimes.base import RuntimeConfig


class Profile(BaseModel):
    """Times of whole batches in seconds; throughput in rows (pictures) per second at the median."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int = 1
    variant_id: str
    runtime: RuntimeConfig
    batch_size: int = Field(ge=1)
    latency_p50_s: float = Field(gt=0)
    latency_p99_s: float = Field(gt=0)
    throughput_rps: float = Field(gt=0)
    memory_bytes: int = Field(ge=0)
    """Growth of the process' resident set from before the variant was loaded."""
    hardware: dict[str, Any]
