"""The environment that turns Serve into HAProxy -> replica, one hop: one table for local clusters and for Kubernetes.

Serve reads these variables when its processes start, so they must stand on every node, head and workers alike, before
`ray start`; a runtime_env reaches only the replicas and comes too late for the controller.
"""

from __future__ import annotations

RAY_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
"""What every Ray that Sluice starts gets, fast path or not."""

FRONT = "serve_apps.front.serve_hook:install"
"""Upward by string only: Serve imports it in the replica."""

GRPC = "serve_apps.front.grpc_ingress:add_to_server"
"""Also by string only: Serve imports it in each replica and in its own proxy, if the Serve config says so."""

MAX_GRPC_BYTES = (16 << 20) + (64 << 10)
"""Of a message, unpacked: a body as over HTTP, and what stands around its tensors. gRPC refuses more by itself."""

LATENCY_BUCKETS_MS = (0.5, 1, 2, 5, 10, 20, 35, 50, 75, 100, 200, 500, 1000, 5000)
"""Serve's own smallest bucket is 1 ms, and it has none between 20 and 50, where the SLO bounds are."""


def throughput_environment(*, haproxy_threads: int = 1) -> dict[str, str]:
    """RAY_ENVIRONMENT and the throughput-optimised path with HAProxy in front."""
    return RAY_ENVIRONMENT | {
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # Ray runs its workers, replicas too, at nice 15, behind its own agents and monitors. Measured on one core at
        # 500 req/s: p99 176 ms at nice 15, 8 ms at nice 0.
        "RAY_worker_niceness": "0",
        # HAProxy would send a log line for each request to an actor that parses it in Python, and each node's agent
        # would look at every process every 5 s: both on the replicas' cores (docs/decisions/0005).
        "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
        "REPORTER_UPDATE_INTERVAL_MS": "30000",
        # Inferences past Serve's wrapper around each request, on the replica's own port (docs/results/request-path.md).
        "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": FRONT,
        # It would also write each request down for a syslog that is not there.
        "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514 sample 1:1000000",
        "RAY_SERVE_GRPC_MAX_MESSAGE_SIZE": str(MAX_GRPC_BYTES),
        # Serve's own proxy hands calls on in messages of its own, of 4 MiB at most if nothing is said.
        "RAY_SERVE_REPLICA_GRPC_MAX_MESSAGE_LENGTH": str(MAX_GRPC_BYTES + (64 << 10)),
        "RAY_SERVE_HAPROXY_NBTHREAD": str(haproxy_threads),
        "RAY_SERVE_REQUEST_LATENCY_BUCKETS_MS": ",".join(f"{bound:g}" for bound in LATENCY_BUCKETS_MS),
    }
