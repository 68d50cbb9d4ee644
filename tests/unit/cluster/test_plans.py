"""Plans and profiles travel as JSON; what cannot be deployed or measured is refused where it enters."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from cluster.plans import Plan
from cluster.profiles import Profile
from cluster.runtimes import RuntimeConfig

PLAN: dict[str, Any] = {"model_name": "m", "variant_id": "0" * 16, "variant_name": "cnn/int8", "store": "/models",
                        "runtime": {"name": "onnxruntime", "threads": 2}, "made_by": "a test"}  # fmt: skip
PROFILE: dict[str, Any] = {"variant_id": "0" * 16, "runtime": {}, "batch_size": 8, "latency_p50_s": 0.001,
                           "latency_p99_s": 0.002, "throughput_rps": 8000.0, "memory_bytes": 0,
                           "hardware": {"cpu": "this one"}}  # fmt: skip


@pytest.mark.parametrize(("each", "fields"), [(Plan, PLAN), (Profile, PROFILE)])
def test_a_trip_through_json_changes_nothing(each: type[BaseModel], fields: dict[str, Any]) -> None:
    made = each.model_validate(fields)
    assert each.model_validate_json(made.model_dump_json()) == made
    assert made.model_dump()["schema_version"] == 1
    with pytest.raises(ValidationError, match="frozen"):
        made.runtime = RuntimeConfig()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("each", "fields", "wrong"),
    [
        *((Plan, PLAN, {name: 0}) for name in ("max_batch_size", "max_queued_requests", "num_replicas")),
        *((Plan, PLAN, {name: 0.0}) for name in ("num_cpus_per_replica", "default_timeout_s")),
        (Plan, PLAN, {"runtime": {"threads": 0}}),
        (Plan, PLAN, {"max_batchsize": 8}),
        *((Profile, PROFILE, {name: 0}) for name in ("batch_size", "latency_p50_s", "latency_p99_s", "throughput_rps")),
        (Profile, PROFILE, {"memory_bytes": -1}),
        (Profile, PROFILE, {"latency_p95_s": 0.1}),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) and len(value) == 1 else "",
)
def test_what_makes_no_sense_is_refused(each: type[BaseModel], fields: dict[str, Any], wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        each.model_validate(fields | wrong)
    assert str(caught.value.errors()[0]["loc"][0]) in wrong
