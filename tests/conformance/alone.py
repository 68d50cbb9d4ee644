"""`python -m tests.conformance.alone STORE VARIANT MODEL_NAME [WORD FILE]`: a replica's code without Ray around it.

The same ModelHost, with the port of its own that a replica opens when `direct_port` is set, and the same gRPC; what is
missing is HAProxy and Serve. It says its addresses as a line of JSON once it answers, and ends with its standard input.
Every path with WORD in it that Python opens is written into FILE.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path
from typing import Any

from cluster.local import free_ports
from serve_apps.deployment import ModelHost
from serve_apps.front.grpc_listener import GrpcListener
from serve_apps.oip.grpc_service import GrpcService


async def serve(store: str, variant: str, model_name: str) -> None:
    """Until standard input ends."""
    (http,) = free_ports(1)
    host = ModelHost(model_name, store, variant, {"name": "onnxruntime"}, direct_port=http)
    await host.reconfigure({"max_batch_size": 16, "max_queued_requests": 256})
    await host.check_health()
    listener = GrpcListener(GrpcService(lambda: host))
    grpc = await listener.start(host="127.0.0.1")
    said: dict[str, Any] = {"http": f"127.0.0.1:{http}", "grpc": f"127.0.0.1:{grpc}"}
    print(json.dumps(said), flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    await listener.stop(grace=1.0)
    await host.__del__()
    os._exit(0)  # else it would be called again, by nobody who awaits it


def watch(word: str, file: Path) -> None:
    """From now on."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir", "os.rename", "os.remove", "os.mkdir", "subprocess.Popen"):
            text = repr(args)
            if word in text and str(file) not in text:
                with file.open("a") as found:
                    found.write(f"{event} {text}\n")

    sys.addaudithook(hook)


if __name__ == "__main__":
    given = sys.argv[1:]
    if len(given) > 3:
        watch(given[3], Path(given[4]))
    asyncio.run(serve(*given[:3]))
