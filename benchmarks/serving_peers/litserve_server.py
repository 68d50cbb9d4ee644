"""LitServe: python litserve_server.py, with $SLUICE_BENCH_JOB (served.py).

Binary in and out, which FastAPI below it can do: the type of `decode_request` is a dependency that reads the raw body.
Its ZeroMQ queue between front and worker is on (fast_queue), as its documentation has it for high throughput.
"""

# No `from __future__ import annotations`: LitServe hands these annotations to FastAPI as they are.
from typing import Annotated, Any

import litserve  # type: ignore[import-not-found]
from fastapi import Depends, Request, Response
from served import Picture, Served, job


async def raw(request: Request) -> bytes:
    """The body, unread by anyone else."""
    return await request.body()


class Classify(litserve.LitAPI):  # type: ignore[misc]
    """Decoding, batching and inference in one worker process, HTTP in another."""

    def setup(self, device: str) -> None:
        self._served = Served(job())

    def decode_request(self, request: Annotated[bytes, Depends(raw)]) -> Picture:
        return self._served.picture(request)

    def batch(self, inputs: list[Picture]) -> list[Picture]:
        return inputs

    def predict(self, x: list[Picture]) -> Any:
        return self._served.logits(x)

    def unbatch(self, output: Any) -> list[Any]:
        return list(output)

    def encode_response(self, output: Any) -> Response:
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    given = job()
    api = Classify(max_batch_size=given["max_batch_size"], batch_timeout=given["wait_s"])
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=given["workers"], timeout=60, fast_queue=True
    )
    server.run(host="127.0.0.1", port=given["port"], num_api_servers=given["workers"], log_level="warning",
               generate_client_file=False)  # fmt: skip
