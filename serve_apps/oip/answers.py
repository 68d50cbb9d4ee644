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
from serve_apps.oip.served import Host, served_by
from serve_apps.pending import Counters

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
        "input": [_tensor(spec) for spec in served.inputs],
        "output": [_tensor(spec) for spec in served.outputs],
        "instance_group": [{"kind": "KIND_CPU", "count": runtime["streams"]}],
        "dynamic_batching": {"max_queue_delay_microseconds": 0},
        "parameters": {key: {"string_value": str(value)} for key, value in rest.items() if value is not None},
    }


def statistics(host: ModelHost, version: str | None = None) -> dict[str, Any]:
    """In the form of Triton's statistics extension, since the replica's start, of all that is resident together."""
    counters = host.counters
    batches = [{"batch_size": size, "compute_infer": {"count": n}} for size, n in sorted(counters.batch_sizes.items())]
    return {
        "model_stats": [
            {
                "name": host.model_name,
                "version": host.variant.id,
                "inference_count": sum(size * n for size, n in counters.batch_sizes.items()),
                "execution_count": counters.batches,
                "inference_stats": {
                    "success": {"count": counters.answered},
                    "fail": {"count": counters.failed + counters.expired + counters.evicted + counters.refused},
                    "cancel": {"count": counters.cancelled},
                },
                "batch_stats": batches,
            }
        ]
    }


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


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    """As Triton's config has it: without the batch dimension."""
    datatype = "STRING" if spec.datatype == "BYTES" else spec.datatype
    return {"name": spec.name, "data_type": f"TYPE_{datatype}", "dims": list(spec.shape[1:])}
