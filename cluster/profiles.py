"""Profile: how fast one variant is on one runtime at one batch size on one machine. Curve: the same over batch sizes.

ProfileStore keeps what was measured, by content and hardware: <root>/<variant id>/<hash>.json. A profile is found again
only for the very same graph, runtime config, batch size and machine (`hardware.profile_key`), so it is never stale.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import uuid
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cluster.errors import ArtifactError, ConfigError
from cluster.runtimes.base import RuntimeConfig
from cluster.variants import canonical_sha256

PROFILE_VERSION = 2
"""Goes into the key: figures that were measured in another way are not found."""


class Profile(BaseModel):
    """Times of whole batches in seconds; throughput in rows (samples) per second at the median."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    schema_version: int = PROFILE_VERSION
    variant_id: str
    runtime: RuntimeConfig
    batch_size: int = Field(ge=1)
    latency_p50_s: float = Field(gt=0)
    latency_p50_interval_s: tuple[float, float]
    """95% interval of the median, by order statistics."""
    latency_p90_s: float = Field(gt=0)
    latency_p99_s: float = Field(gt=0)
    repeats: int = Field(ge=1)
    """Batches that were timed, after warm-up."""
    throughput_rps: float = Field(gt=0)
    memory_bytes: int = Field(ge=0)
    """Growth of the process' resident set from before the runtime's library and the variant were loaded."""
    hardware_key: str
    hardware: dict[str, Any]


@dataclass(frozen=True)
class Curve:
    """Profiles of one variant on one runtime config by batch size, smallest first; at least one."""

    points: tuple[Profile, ...]

    @property
    def variant_id(self) -> str:
        return self.points[0].variant_id

    @property
    def runtime(self) -> RuntimeConfig:
        return self.points[0].runtime

    @property
    def best(self) -> Profile:
        """The highest throughput; beyond it larger batches only wait longer (their tensors leave the caches)."""
        return max(self.points, key=lambda p: (p.throughput_rps, -p.batch_size))

    @property
    def knee(self) -> Profile:
        """Where larger batches stop paying: the point of the rise furthest above its own chord, batch sizes on a log
        scale (Satopaa et al., "Finding a Kneedle in a Haystack", ICDCS Workshops 2011, section III)."""
        rise = [p for p in self.points if p.batch_size <= self.best.batch_size]
        first, last = rise[0], rise[-1]
        width = math.log2(last.batch_size / first.batch_size)
        height = last.throughput_rps - first.throughput_rps
        if width <= 0 or height <= 0:
            return first

        def above_chord(p: Profile) -> float:
            x = math.log2(p.batch_size / first.batch_size) / width
            return (p.throughput_rps - first.throughput_rps) / height - x

        # Of points that stand out alike the smallest batch; a rise that nowhere leaves its chord pays to the end.
        furthest = max(map(above_chord, rise))
        return next(p for p in rise if above_chord(p) >= furthest - 1e-6) if furthest > 1e-6 else last

    def seconds(self, batch_size: float) -> float:
        """Median time of a batch of that size: measured, between two measured sizes interpolated, beyond the largest
        at its rate."""
        points = self.points
        if batch_size <= points[0].batch_size:
            return points[0].latency_p50_s
        for low, high in itertools.pairwise(points):
            if batch_size <= high.batch_size:
                share = (batch_size - low.batch_size) / (high.batch_size - low.batch_size)
                return low.latency_p50_s + share * (high.latency_p50_s - low.latency_p50_s)
        return points[-1].latency_p50_s * batch_size / points[-1].batch_size


def curves(profiles: Iterable[Profile]) -> list[Curve]:
    """Grouped by variant and runtime config, in the order in which each first comes; of two profiles of one batch size
    the later counts. Raises ConfigError for a curve that mixes machines."""
    grouped: dict[tuple[str, RuntimeConfig], dict[int, Profile]] = {}
    for profile in profiles:
        grouped.setdefault((profile.variant_id, profile.runtime), {})[profile.batch_size] = profile
    for (variant_id, runtime), points in grouped.items():
        if len(machines := {point.hardware_key for point in points.values()}) > 1:
            raise ConfigError(
                f"profiles of variant {variant_id} on {runtime} are of several machines ({sorted(machines)}), which do "
                "not compare; pass those of one"
            )
    return [Curve(tuple(points[size] for size in sorted(points))) for points in grouped.values()]


class ProfileStore:
    """A folder of profiles; safe for concurrent writers. Creating the object touches nothing."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, variant_id: str, runtime: RuntimeConfig, batch_size: int, hardware_key: str) -> Profile | None:
        """What was measured of exactly this, or None; a damaged file counts as none."""
        with suppress(OSError, ValidationError, ValueError):
            return Profile.model_validate_json(self._path(variant_id, runtime, batch_size, hardware_key).read_text())
        return None

    def put(self, profiles: Sequence[Profile]) -> None:
        """Keep them; each file arrives whole or not at all. Raises ArtifactError if the disk refuses."""
        for profile in profiles:
            path = self._path(profile.variant_id, profile.runtime, profile.batch_size, profile.hardware_key)
            unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                unfinished.write_text(json.dumps(profile.model_dump(mode="json")))
                os.replace(unfinished, path)
            except OSError as error:
                with suppress(OSError):
                    unfinished.unlink()
                raise ArtifactError(f"cannot write {path} ({error}); see that there is room and permission") from error

    def _path(self, variant_id: str, runtime: RuntimeConfig, batch_size: int, hardware_key: str) -> Path:
        content = {
            "version": PROFILE_VERSION, "runtime": runtime.model_dump(mode="json"), "batch_size": batch_size,
            "hardware": hardware_key,
        }  # fmt: skip
        return self.root / variant_id / f"{canonical_sha256(content)[:16]}.json"
