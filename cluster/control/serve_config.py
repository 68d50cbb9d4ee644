"""Plan -> the config that stock `serve deploy` accepts. Refers upward to the application by string only."""

from __future__ import annotations

from typing import Any

import yaml

from cluster.control.serve_env import GRPC
from cluster.plans import Plan

IMPORT_PATH = "serve_apps.app:build"
DEPLOYMENT = "ModelDeployment"


def serve_config(
    plan: Plan, *, http_host: str = "0.0.0.0", http_port: int = 8000, grpc_port: int | None = None
) -> dict[str, Any]:
    """The Serve config as a dict; `user_config` holds what may change without a restart, and both ports are fixed when
    Serve starts. Without `grpc_port` there is no gRPC.

    max_ongoing_requests is above what our own queue admits, so that our 503 with Retry-After decides and not Serve's.
    """
    return {
        "http_options": {"host": http_host, "port": http_port},
        **({"grpc_options": {"port": grpc_port, "grpc_servicer_functions": [GRPC]}} if grpc_port is not None else {}),
        "logging_config": {"enable_access_log": False},
        "applications": [
            {
                "name": plan.model_name,
                "route_prefix": "/",
                "import_path": IMPORT_PATH,
                "args": {
                    "model_name": plan.model_name,
                    "store": plan.store,
                    "variant": plan.variant_id,
                    "runtime": plan.runtime.model_dump(mode="json"),
                    **({"also": list(plan.also)} if plan.also else {}),
                    **({"executors": plan.executors} if plan.executors > 1 else {}),
                    **({"direct_port": plan.direct_port} if plan.direct_port is not None else {}),
                },
                "deployments": [
                    {
                        "name": DEPLOYMENT,
                        # Without the access log Serve still makes a record of each request, at level INFO, to drop it.
                        "logging_config": {"enable_access_log": False, "log_level": "WARNING"},
                        "num_replicas": plan.num_replicas,
                        "max_ongoing_requests": plan.max_queued_requests + 2 * plan.max_batch_size,
                        "ray_actor_options": {
                            "num_cpus": plan.num_cpus_per_replica,
                            # Ray hides every GPU from a replica that asks for none.
                            **({"num_gpus": plan.runtime.num_gpus} if plan.runtime.num_gpus else {}),
                        },
                        "user_config": {
                            "max_batch_size": plan.max_batch_size,
                            "max_queued_requests": plan.max_queued_requests,
                            "default_timeout_s": plan.default_timeout_s,
                            **({"repository": True} if plan.repository else {}),
                            **(
                                {"scheduling": plan.scheduling.model_dump(mode="json", exclude_defaults=True)}
                                if plan.scheduling is not None
                                else {}
                            ),
                        },
                    }
                ],
            }
        ],
    }


def to_yaml(config: dict[str, Any]) -> str:
    """The config as YAML, in the order written."""
    return yaml.safe_dump(config, sort_keys=False)
