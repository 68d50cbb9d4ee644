"""Mosec: python mosec_server.py --port PORT --timeout MS ... (its own flags), with $SLUICE_BENCH_JOB (served.py).

Binary in and out; batches by its own Rust front, which waits `wait_s` for one to fill.
"""

from __future__ import annotations

from typing import Any

from mosec import Server, Worker  # type: ignore[import-not-found]
from served import Picture, Served, job


class Classify(Worker):  # type: ignore[misc]
    """One process; a body -> a picture -> logits -> their bytes."""

    req_mime_type = "application/octet-stream"
    resp_mime_type = "application/octet-stream"

    def __init__(self) -> None:
        super().__init__()
        self._served = Served(job())

    def deserialize(self, data: bytes) -> Picture:
        return self._served.picture(data)

    def forward(self, data: list[Picture]) -> list[Any]:
        return list(self._served.logits(data))

    def serialize(self, data: Any) -> bytes:
        found: bytes = data.tobytes()
        return found


if __name__ == "__main__":
    given = job()
    server = Server()
    server.append_worker(
        Classify, num=given["workers"], max_batch_size=given["max_batch_size"],
        max_wait_time=round(given["wait_s"] * 1e3),
    )  # fmt: skip
    server.run()
