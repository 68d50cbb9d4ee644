"""Can this client hold this rate? Ask it of a server that costs nothing, before believing it about one that does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.errors import ClientSaturated
from cluster.load.arrivals import poisson
from cluster.load.http1 import build_request
from cluster.load.null_server import null_server
from cluster.load.runner import Target, run_open_loop
from cluster.load.slo_rate import CPU_LIMIT, LAG_LIMIT_S

BODY_BYTES = 784  # one 28 x 28 picture of bytes


@dataclass(frozen=True)
class SelfCheck:
    """`ok`: everything was answered and the client's own p99 lag stayed within the limit. Rates are req/s."""

    ok: bool
    send_lag_p99_s: float
    rate: float
    achieved: float
    client_cpu_s: float
    client_cpu_share: float
    latency_p99_s: float

    def require(self) -> SelfCheck:
        """Itself, or ClientSaturated."""
        if not self.ok:
            raise ClientSaturated(
                f"at {self.rate:.0f} req/s against a null server the client reached {self.achieved:.0f} req/s with "
                f"a p99 lag of {self.send_lag_p99_s * 1e3:.2f} ms (limit {LAG_LIMIT_S * 1e3:.0f} ms) and "
                f"{self.client_cpu_share:.0%} of its core; use more client processes, or give them cores of their own."
            )
        return self


def self_check(
    rate: float,
    duration_s: float = 5.0,
    *,
    cpus: Sequence[int] | None = None,
    server_cpu: int | None = None,
    processes: int = 1,
    connections: int = 64,
    body: bytes = b"\0" * BODY_BYTES,
    lag_limit_s: float = LAG_LIMIT_S,
    seed: int = 1,
) -> SelfCheck:
    """Send Poisson arrivals at `rate` to a null server pinned to `server_cpu`, from workers pinned to `cpus`."""
    with null_server(cpu=server_cpu) as (host, port):
        target = Target(host, port, [build_request("POST", "/v2/models/null/infer", host, {}, body)])
        result = run_open_loop(
            target,
            poisson(rate, duration_s, seed),
            duration_s=duration_s,
            processes=processes,
            connections=connections,
            cpus=cpus,
            timeout_s=2.0,
        )
    held = bool(result.ok.all()) and result.client_cpu_share <= CPU_LIMIT
    return SelfCheck(
        ok=held and result.send_lag_p99_s <= lag_limit_s,
        send_lag_p99_s=result.send_lag_p99_s,
        rate=rate,
        achieved=result.goodput_rps(),
        client_cpu_s=result.client_cpu_s,
        client_cpu_share=result.client_cpu_share,
        latency_p99_s=result.latency_quantile_s(0.99),
    )
