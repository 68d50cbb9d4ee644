"""What is told of a server and its model beside inferences, as plain values: metadata, configuration, statistics.

    check_model(host, name, version) -> metadata(host), configuration(host), statistics(host, version)

Nothing here knows HTTP or gRPC: both say the same of one host. The forms are the Open Inference Protocol's and, where
that has none, those of Triton's extensions; what Triton has a field for and nobody here measures is left out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from cluster.errors import NotReady, UnknownModel
from cluster.variants import TensorSpec, Variant
from serve_apps.executor import Model
from serve_apps.oip.served import Host, Served, served_by
from serve_apps.pending import Counters
from serve_apps.spent import Batches, Spent

SERVER = {
    "name": "sluice",
    "version": "0.1.0",
    # schedule_policy: the parameters `priority` and `timeout`.
    "extensions": ["binary_tensor_data", "schedule_policy", "model_configuration", "model_repository", "statistics"],
}
PLATFORMS = {"onnx": "onnx_onnxv1", "torch_export": "pytorch_export"}


class ModelHost(Host, Protocol):
    """What is asked of a deployment."""

    model_name: str

    @property
    def variant(self) -> Variant:
        """What it was told to serve. Raises NotReady while nothing is."""

    @property
    def config(self) -> dict[str, Any]:
        """How it is served. Raises NotReady."""

    @property
    def counters(self) -> Counters:
        """Of the batcher. Raises NotReady."""

    @property
    def cache_hits(self) -> int | None:
        """Requests that an answer was known for, or on its way; None without a cache."""

    def is_ready(self) -> bool: ...

    async def load(self, parameters: Mapping[str, Any]) -> None:
        """Have the model served by every replica; see serve_apps/repository.py."""

    async def unload(self, parameters: Mapping[str, Any]) -> None:
        """Its counterpart."""


def check_model(host: ModelHost, name: str, version: str | None = None) -> None:
    """Raises UnknownModel unless that is served here; of a version NotReady while none is, for then nobody knows."""
    if name != host.model_name:
        raise UnknownModel(f"model {name[:100]!r} is unknown; this deployment serves {host.model_name!r}")
    if version is not None and version not in (known := versions(host)):
        raise UnknownModel(f"version {version[:100]!r} of {name!r} is unknown; served: {', '.join(known)}")


def model_ready(host: ModelHost, name: str, version: str | None = None) -> bool:
    """Would an inference be taken? Raises UnknownModel."""
    try:
        check_model(host, name, version)
    except NotReady:
        return False
    return host.is_ready()


def versions(host: ModelHost) -> list[str]:
    """What it was told to serve first, then what else is resident, best first. Raises NotReady while nothing is."""
    resident = served_by(host).models
    first = host.variant.id
    return [first, *(model.version for model in resident if model.version != first)]


def metadata(host: ModelHost) -> dict[str, Any]:
    """Of the model. Raises NotReady."""
    served = served_by(host)
    return {
        "name": host.model_name,
        "versions": versions(host),
        "platform": PLATFORMS[host.variant.format],
        "inputs": [spec.model_dump(mode="json") for spec in served.inputs],
        "outputs": [spec.model_dump(mode="json") for spec in served.outputs],
    }


def configuration(host: ModelHost) -> dict[str, Any]:
    """How the model is served, in the form of Triton's model configuration extension: what it has no field for stands
    under `parameters`, as strings. Raises NotReady."""
    served, variant, config = served_by(host), host.variant, host.config
    runtime = config["runtime"]
    rest = {
        "variant": variant.name,
        "precision": variant.precision,
        "max_queued_requests": config["max_queued_requests"],
        "default_timeout_s": config["default_timeout_s"],
        **{f"runtime.{field}": value for field, value in runtime.items()},
    }
    return {
        "name": host.model_name,
        "platform": PLATFORMS[variant.format],
        "backend": runtime["name"],
        "version_policy": {"specific": {"versions": versions(host)}},
        "max_batch_size": config["max_batch_size"],
        "input": _inputs(served),
        "output": [_tensor(spec) for spec in served.outputs],
        "instance_group": [{"kind": "KIND_CPU", "count": runtime["streams"]}],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
        "parameters": {key: {"string_value": str(value)} for key, value in rest.items() if value is not None},
    }


def statistics(host: ModelHost, version: str | None = None) -> dict[str, Any]:
    """In the form of Triton's statistics extension, of each resident version since it was loaded, or of that one.

    `compute_input` is the time to join a batch's tensors, `compute_output` to take its answers apart, `queue` what
    requests waited until their batch began. Requests that no version executed (refused, late, pushed out) fail, and
    hits of the cache count, with the version that the deployment was told to serve; for neither a time is taken, so
    `fail` and `cache_hit` have none. `cancel` has the clients that left. Raises NotReady."""
    told = host.variant.id
    models = {model.version: model for model in served_by(host).models}
    listed = [each for each in versions(host) if version is None or each == version]
    return {"model_stats": [_version_statistics(host, models[each], is_told=each == told) for each in listed]}


def _version_statistics(host: ModelHost, model: Model, *, is_told: bool) -> dict[str, Any]:
    total, counters = Spent.total(model.spent), host.counters
    batches = total.batches
    hits = host.cache_hits if is_told else None
    unexecuted = counters.expired + counters.evicted + counters.refused if is_told else 0
    return {
        "name": host.model_name,
        "version": model.version,
        **({} if total.last_s is None else {"last_inference": round(total.last_s * 1e3)}),
        "inference_count": total.rows,
        "execution_count": batches.executions,
        "inference_stats": {
            "success": _duration(total.answered + (hits or 0), total.answered_s),
            "fail": {"count": total.failed + unexecuted},
            "queue": _duration(total.answered, total.waited_s),
            **_compute(batches),
            **({} if hits is None else {"cache_hit": {"count": hits}}),
            **({"cancel": {"count": counters.cancelled}} if is_told else {}),
        },
        "batch_stats": [{"batch_size": rows, **_compute(each)} for rows, each in total.by_rows.items()],
    }


def _compute(batches: Batches) -> dict[str, Any]:
    return {
        "compute_input": _duration(batches.executions, batches.input_s),
        "compute_infer": _duration(batches.executions, batches.infer_s),
        "compute_output": _duration(batches.executions, batches.output_s),
    }


def _duration(count: int, seconds: float) -> dict[str, int]:
    return {"count": count, "ns": round(seconds * 1e9)}


def index(host: ModelHost, *, ready: bool = False) -> list[dict[str, str]]:
    """In the form of Triton's model repository extension: each version that is resident, or why none is. `ready`: those
    that take inferences only."""
    name = host.model_name
    try:
        known = versions(host)
    except NotReady as error:
        return [] if ready else [{"name": name, "state": "UNAVAILABLE", "reason": str(error)}]
    if host.is_ready():
        return [{"name": name, "version": version, "state": "READY", "reason": ""} for version in known]
    reason = "this replica is draining"
    rows = [{"name": name, "version": version, "state": "UNAVAILABLE", "reason": reason} for version in known]
    return [] if ready else rows


def _inputs(served: Served) -> list[dict[str, Any]]:
    """With what may be sent in their place: both are optional then, and one of them is needed."""
    if served.latents is None:
        return [_tensor(spec) for spec in served.inputs]
    return [_tensor(spec) | {"optional": True} for spec in (*served.inputs, served.latents.seed)]


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    """As Triton's config has it: without the batch dimension."""
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(spec.shape[1:])}
