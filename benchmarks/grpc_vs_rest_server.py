"""A variant of the store -> one process that serves it on three ports: REST, gRPC as we read it, gRPC by grpc.aio.

    python -m benchmarks.grpc_vs_rest_server '{"store": ..., "variant": ..., "ports": [REST, GRPC, AIO]}'

The replica's own parts without Ray, HAProxy or Serve, and one batcher behind all three, so that nothing but the way to
it differs. Ends with its parent, when its input ends.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

import grpc
import uvloop

from serve_apps.deployment import ModelHost
from serve_apps.front import grpc_ingress
from serve_apps.front.direct import DirectListener
from serve_apps.front.grpc_listener import GrpcListener
from serve_apps.front.protocol import LeanProtocol
from serve_apps.oip.grpc_service import GrpcService
from serve_apps.oip.routes import OipApp

MODEL = "classifier"


async def serve(store: str, variant: str, ports: list[int]) -> None:
    """Until standard input ends."""
    host = ModelHost(MODEL, store, variant, {"name": "onnxruntime", "threads": 1})
    await host.reconfigure({"max_batch_size": 64})
    app = OipApp(lambda: host)
    LeanProtocol.endpoint = app.exchange
    rest = DirectListener(app, port=ports[0], host="127.0.0.1")
    await rest.start()
    own = GrpcListener(GrpcService(lambda: host))
    await own.start(port=ports[1], host="127.0.0.1")
    stock = grpc.aio.server()
    stock.add_generic_rpc_handlers(tuple(grpc_ingress.handlers(GrpcService(lambda: host))))
    stock.add_insecure_port(f"127.0.0.1:{ports[2]}")
    await stock.start()
    print("ready", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main(given: dict[str, Any]) -> None:
    """See the module's first lines."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serve(given["store"], given["variant"], given["ports"]))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
