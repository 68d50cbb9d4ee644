"""Plan + KubernetesSettings -> KubeRay RayService, as a dict. Pure: the same plan always gives the same manifest.

    manifest = render_ray_service(plan)
    Path("ray-service.yaml").write_text(to_yaml(manifest))

or from a shell: `python -m cluster.manifests plan.json > ray-service.yaml`.

The head decides and runs no replica; workers answer, each behind its own HAProxy. The Serve config inside is the one of
control/serve_config.py, with one change: `store` becomes the path where the volume is mounted.
"""

from __future__ import annotations

import math
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from cluster.control.serve_config import serve_config
from cluster.control.serve_config import to_yaml as serve_yaml
from cluster.control.serve_env import throughput_environment
from cluster.errors import ConfigError
from cluster.plans import Plan

RAY_VERSION = "2.60.0"
"""Must equal the Ray in the image; tests hold it, constraints.txt and k8s/Dockerfile together."""
IMAGE = "ghcr.io/your-org/sluice:0.1.0"
"""A placeholder: k8s/README.md says how to build the image and where to name it."""

_NAME = re.compile(r"[a-z]([-a-z0-9]{0,45}[a-z0-9])?")  # KubeRay appends to it: a DNS label of at most 47 characters
_MEMORY = re.compile(r"[1-9][0-9]*(Mi|Gi)")
_HEAD_PORTS = {"gcs-server": 6379, "dashboard": 8265, "client": 10001}
_AGENT_PORT = 52365
_GPU = "nvidia.com/gpu"
_DIRECT_LABEL = "sluice/direct"
_NODE_PORTS = {"metrics": 8080, "dashboard-agent": _AGENT_PORT, "haproxy-metrics": 9101}
_RAYLET = f"wget --tries 1 -T 2 -q -O- http://localhost:{_AGENT_PORT}/api/local_raylet_healthz | grep success"
_GCS = "wget --tries 1 -T 2 -q -O- http://localhost:8265/api/gcs_healthz | grep success"
_PROXY = "wget --tries 1 -T 2 -q -O- http://localhost:{port}/-/healthz | grep success"


def _purposes(ports: Mapping[str, int]) -> dict[int, str]:
    return {port: purpose for purpose, port in ports.items()}


@dataclass(frozen=True, kw_only=True)
class KubernetesSettings:
    """What the cluster adds to a plan: names, sizes, and where the artifact store is mounted."""

    name: str = "sluice"
    image: str = IMAGE
    store_path: str = "/mnt/sluice/store"
    store_claim: str = "sluice-store"
    """PersistentVolumeClaim that holds the artifact store; workers mount it read-only."""
    http_port: int = 8000
    grpc_port: int | None = None
    """Of HAProxy in each worker pod, and of a Service of its own; None: no gRPC."""
    haproxy_threads: int = 1
    min_workers: int | None = None
    """Fewest worker pods; None: as many as the plan's replicas need. A pod without a replica stays unready."""
    max_workers: int | None = None
    """Most worker pods. Above min_workers, Ray's autoscaler moves between the two."""
    head_cpus: int = 2
    head_memory: str = "4Gi"
    worker_memory: str = "4Gi"

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"name={self.name!r} is no RayService name; up to 47 lower-case letters, digits and -, first a letter"
            )
        if not self.store_path.startswith("/"):
            raise ConfigError(f"store_path={self.store_path!r} is not absolute; a volume is mounted at /some/path")
        taken = _purposes(_HEAD_PORTS | _NODE_PORTS)
        if not 0 < self.http_port < 65536 or self.http_port in taken:
            why = f"taken by {taken[self.http_port]}" if self.http_port in taken else "no TCP port"
            raise ConfigError(f"http_port={self.http_port} is {why}; 8000 is Serve's own")
        taken |= {self.http_port: "serve"}
        if self.grpc_port is not None and (not 0 < self.grpc_port < 65536 or self.grpc_port in taken):
            raise ConfigError(f"grpc_port={self.grpc_port} is no TCP port, or taken in these pods; 9000 is Serve's own")
        for field in ("head_memory", "worker_memory"):
            if not _MEMORY.fullmatch(getattr(self, field)):
                raise ConfigError(f"{field}={getattr(self, field)!r} is no memory size; write it as 4Gi or 512Mi")
        for field in ("head_cpus", "haproxy_threads", "min_workers", "max_workers"):
            value = getattr(self, field)
            if value is not None and value < 1:
                raise ConfigError(f"{field}={value} is below 1")


@dataclass(frozen=True)
class WorkerGroup:
    """How many worker pods, and how large: `cpus` for replicas, one more for HAProxy, the raylet and its agent; `gpus`
    for a plan that computes on one."""

    replicas: int
    min_replicas: int
    max_replicas: int
    cpus: int
    gpus: int = 0

    @property
    def is_elastic(self) -> bool:
        return self.max_replicas > self.min_replicas


def worker_group(plan: Plan, settings: KubernetesSettings) -> WorkerGroup:
    """As many pods as the replicas fill: KubeRay keeps a pod without a replica unready. A replica on a GPU has it, and
    a pod, to itself.

    Raises ConfigError when the bounds contradict each other or the plan; no rule of the CRD looks at that.
    """
    cpus = math.ceil(plan.num_cpus_per_replica)
    gpus = plan.runtime.num_gpus
    # Ray counts CPUs in 1/10000.
    per_pod = 1 if gpus else cpus * 10_000 // max(1, round(plan.num_cpus_per_replica * 10_000))
    needed = math.ceil(plan.num_replicas / per_pod)
    # A bound that is left out gives way to the one that is set.
    low = min(needed, settings.max_workers or needed) if settings.min_workers is None else settings.min_workers
    high = max(needed, low) if settings.max_workers is None else settings.max_workers
    if low > high:
        raise ConfigError(f"min_workers={low} is above max_workers={high}; lower the one or raise the other")
    if needed > high:
        raise ConfigError(
            f"max_workers={high} holds at most {high * per_pod} replicas of {plan.num_cpus_per_replica:g} CPUs, the "
            f"plan has num_replicas={plan.num_replicas}; set max_workers to {needed} or more, or plan fewer replicas"
        )
    return WorkerGroup(replicas=max(needed, low), min_replicas=low, max_replicas=high, cpus=cpus, gpus=gpus)


def render_ray_service(plan: Plan, settings: KubernetesSettings | None = None) -> dict[str, Any]:
    """The RayService that serves `plan`; `render_direct_service` goes with it.

    Raises ConfigError as `worker_group` does.
    """
    settings = settings or KubernetesSettings()
    group = worker_group(plan, settings)
    on_cluster = plan.model_copy(update={"store": settings.store_path})
    cluster: dict[str, Any] = {"rayVersion": RAY_VERSION}
    if group.is_elastic:
        cluster |= {"enableInTreeAutoscaling": True, "autoscalerOptions": {"version": "v2"}}
    cluster["headGroupSpec"] = {
        "rayStartParams": {"num-cpus": "0"},
        "template": {"spec": _head_pod(settings, autoscaler=group.is_elastic)},
    }
    cluster["workerGroupSpecs"] = [
        {
            "groupName": "workers",
            "replicas": group.replicas,
            "minReplicas": group.min_replicas,
            "maxReplicas": group.max_replicas,
            "rayStartParams": {"num-cpus": str(group.cpus)} | ({"num-gpus": str(group.gpus)} if group.gpus else {}),
            "template": _own_label(plan, settings) | {"spec": _worker_pod(settings, group, plan.direct_port)},
        }
    ]
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": settings.name, "labels": {"app.kubernetes.io/name": "sluice"}},
        "spec": {
            "serveConfigV2": serve_yaml(
                serve_config(on_cluster, http_port=settings.http_port, grpc_port=settings.grpc_port)
            ),
            "upgradeStrategy": {"type": "NewCluster"},
            "excludeHeadPodFromServeSvc": True,
            "rayClusterConfig": cluster,
        },
    }


def render_direct_service(plan: Plan, settings: KubernetesSettings | None = None) -> dict[str, Any] | None:
    """The Service before the replicas' own port; None for a plan without one. Its pods are those that KubeRay marks
    as serving, of whichever cluster: during an upgrade both answer, each with its own version.

    Raises ConfigError if the pods use that port otherwise.
    """
    settings = settings or KubernetesSettings()
    if plan.direct_port is None:
        return None
    taken = _purposes({"serve": settings.http_port} | _grpc_port(settings) | _HEAD_PORTS | _NODE_PORTS)
    if plan.direct_port in taken:
        raise ConfigError(
            f"direct_port={plan.direct_port} is {taken[plan.direct_port]}'s in these pods; choose another, say 8010"
        )
    return _service(settings, "direct", plan.direct_port)


def render_grpc_service(settings: KubernetesSettings | None = None) -> dict[str, Any] | None:
    """The Service before HAProxy's gRPC port: KubeRay's own names the HTTP port only. None without such a port.

    It is headless, so that a client may know all pods and deal its calls out among them (`round_robin`): a connection
    of gRPC stays, and with a Service of one address it stays with one pod, whose HAProxy then deals out alone.
    """
    settings = settings or KubernetesSettings()
    if settings.grpc_port is None:
        return None
    service = _service(settings, "grpc", settings.grpc_port)
    service["spec"]["clusterIP"] = "None"
    return service


def _service(settings: KubernetesSettings, name: str, port: int) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": f"{settings.name}-{name}", "labels": {"app.kubernetes.io/name": "sluice"}},
        "spec": {
            "selector": {_DIRECT_LABEL: settings.name, "ray.io/serve": "true"},
            "ports": [{"name": name, "port": port, "targetPort": port}],
        },
    }


def _own_label(plan: Plan, settings: KubernetesSettings) -> dict[str, Any]:
    """Of pods that a Service of ours selects."""
    ours = plan.direct_port is not None or settings.grpc_port is not None
    return {"metadata": {"labels": {_DIRECT_LABEL: settings.name}}} if ours else {}


def _grpc_port(settings: KubernetesSettings) -> dict[str, int]:
    return {} if settings.grpc_port is None else {"grpc": settings.grpc_port}


def _head_pod(settings: KubernetesSettings, *, autoscaler: bool) -> dict[str, Any]:
    container = _container(
        "ray-head", settings, cpus=settings.head_cpus, memory=settings.head_memory, ports=_HEAD_PORTS,
        alive=(_RAYLET, _GCS), ready=(_RAYLET, _GCS), timeout_s=5,
    )  # fmt: skip
    # The autoscaler beside the head talks to the API server; nothing else in here does.
    return _pod(container) | {"automountServiceAccountToken": autoscaler}


def _worker_pod(settings: KubernetesSettings, group: WorkerGroup, direct_port: int | None) -> dict[str, Any]:
    container = _container(
        "ray-worker", settings, cpus=group.cpus + 1, memory=settings.worker_memory,
        ports={} if direct_port is None else {"direct": direct_port},
        alive=(_RAYLET,), ready=(_RAYLET, _PROXY.format(port=settings.http_port)), timeout_s=4,
    )  # fmt: skip
    container["readinessProbe"]["failureThreshold"] = 1  # a pod whose HAProxy is not well gets no more requests
    if group.gpus:  # of the device plugin's; it takes a request only if it equals the limit
        for bound in container["resources"].values():
            bound[_GPU] = str(group.gpus)
    container["volumeMounts"] = [{"name": "store", "mountPath": settings.store_path, "readOnly": True}]
    volume = {"name": "store", "persistentVolumeClaim": {"claimName": settings.store_claim, "readOnly": True}}
    return _pod(container) | {"automountServiceAccountToken": False, "volumes": [volume]}


def _pod(container: dict[str, Any]) -> dict[str, Any]:
    # User 1000, group 100: `ray` in Ray's own images. Together with the container's part this is Pod Security's
    # "restricted", but for a read-only root: Ray writes its session under /tmp.
    return {
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": 1000,
            "runAsGroup": 100,
            "fsGroup": 100,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
    }


def _container(
    name: str, settings: KubernetesSettings, *, cpus: int, memory: str, ports: dict[str, int], alive: tuple[str, ...],
    ready: tuple[str, ...], timeout_s: int,
) -> dict[str, Any]:  # fmt: skip
    # Requests equal limits: Ray takes what a container may use for what it has, and a throttled core ruins the p99.
    size = {"cpu": str(cpus), "memory": memory}
    named = ports | {"serve": settings.http_port} | _grpc_port(settings) | _NODE_PORTS
    environment = throughput_environment(haproxy_threads=settings.haproxy_threads)
    return {
        "name": name,
        "image": settings.image,
        "env": [{"name": key, "value": value} for key, value in environment.items()],
        "ports": [{"name": key, "containerPort": port} for key, port in named.items()],
        "resources": {"requests": dict(size), "limits": dict(size)},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "livenessProbe": _probe(alive, delay_s=30, timeout_s=timeout_s, failures=120),
        "readinessProbe": _probe(ready, delay_s=10, timeout_s=timeout_s, failures=10),
    }


def _probe(commands: tuple[str, ...], *, delay_s: int, timeout_s: int, failures: int) -> dict[str, Any]:
    """KubeRay injects such probes where none are given; ours are written out so that they can be read and changed."""
    return {
        "exec": {"command": ["bash", "-c", " && ".join(commands)]},
        "initialDelaySeconds": delay_s,
        "periodSeconds": 5,
        "timeoutSeconds": timeout_s,
        "failureThreshold": failures,
    }


class _Dumper(yaml.SafeDumper):
    """Text of several lines as a literal block, so that the Serve config inside stays readable; no anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None)


_Dumper.add_representer(str, _represent_text)


def to_yaml(manifest: dict[str, Any]) -> str:
    """The manifest as YAML, in the order written."""
    return yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, width=4096)  # a folded shell command is hard to read


def read_plan(path: Path) -> Plan:
    """A plan from its JSON file. Raises ConfigError naming the file and the wrong field."""
    try:
        return Plan.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist; a plan is JSON as `Plan.model_dump_json()` writes it") from None
    except ValidationError as error:
        raise ConfigError(f"{path} is no plan: {error}") from error


def main(arguments: list[str]) -> int:
    """Print the RayService of one plan; the exit code is 2 for a plan that cannot be used."""
    if len(arguments) != 1:
        print("usage: python -m cluster.manifests plan.json > ray-service.yaml", file=sys.stderr)
        return 2
    try:
        plan = read_plan(Path(arguments[0]))
        rendered = [render_ray_service(plan), render_direct_service(plan)]
        print("---\n".join(to_yaml(manifest) for manifest in rendered if manifest is not None), end="")
    except ConfigError as error:
        print(f"cluster.manifests: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
