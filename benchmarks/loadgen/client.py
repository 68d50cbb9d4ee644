"""MLPerf LoadGen -> HTTP requests -> QuerySamplesComplete. Runs in LoadGen's own environment.

argv[1] is a job in JSON (see runs.py); a report in JSON goes to standard output, LoadGen's own logs into the job's
folder. LoadGen decides what is asked and when, on a thread of its own; one event loop sends it, on as many connections
as are needed at once, one picture in a request.

A refusal must not count as a fast success: LoadGen knows no refusals, so an answer that is not 200 is held back until
its time is over, and twice that long, before the sample is called complete. So it counts as late, with class 255.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import mlperf_loadgen as lg
import numpy as np
import uvloop

_HELD = 2.0
"""So many times the bound after its start, a refused sample is complete."""
_REFUSED = 255
_HEAD_END = b"\r\n\r\n"


class Connection(asyncio.Protocol):
    """One request at a time."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._buffer = b""
        self._transport: Any = None
        self.sample: Any = None
        self.began = 0.0

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def send(self, sample: Any, data: bytes) -> None:
        self.sample, self.began = sample, time.perf_counter()
        self._transport.write(data)

    def data_received(self, data: bytes) -> None:
        self._buffer = data = self._buffer + data if self._buffer else data
        end = data.find(_HEAD_END)
        if end < 0:
            return
        head = data[:end].lower()
        at = head.find(b"content-length:")
        stop = end + 4 + int(head[at + 15 :].split(b"\r\n", 1)[0])
        if len(data) < stop:
            return
        self._buffer = b""
        sample, self.sample = self.sample, None
        self._client.answered(self, sample, int(head[9:12]), data[end + 4 : stop])

    def connection_lost(self, exc: Exception | None) -> None:
        sample, self.sample = self.sample, None
        self._client.lost(self, sample)


class Client:
    """The system under test, as LoadGen sees it."""

    def __init__(self, job: dict[str, Any], requests: list[bytes]) -> None:
        self._job, self._requests = job, requests
        self._waiting: deque[Any] = deque()
        self._idle: deque[Connection] = deque()
        self._woken = False
        self._classes = np.arange(256, dtype=np.uint8)  # what a response points to; it must outlive the test
        self._first = self._classes.ctypes.data
        self._open = 0
        self.statuses: Counter[int] = Counter()
        self.loop: Any = uvloop.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        self._call(self._connect_all())

    def _call(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(30)

    async def _connect_all(self) -> None:
        for _ in range(self._job["connections"]):
            await self._connect()

    async def _connect(self) -> None:
        host, port = self._job["address"].rsplit(":", 1)
        _, connection = await self.loop.create_connection(lambda: Connection(self), host, int(port))
        self._open += 1
        self._idle.append(connection)
        self._send()

    def issue(self, samples: list[Any]) -> None:
        """LoadGen's thread calls this, at the time of each query."""
        self._waiting.extend(samples)
        if not self._woken:
            self._woken = True
            self.loop.call_soon_threadsafe(self._send)

    def flush(self) -> None:
        """LoadGen says that no query follows; nothing is held back here."""

    def _send(self) -> None:
        self._woken = False
        waiting, idle = self._waiting, self._idle
        while waiting and idle:
            sample = waiting.popleft()
            idle.pop().send(sample, self._requests[sample.index])

    def answered(self, connection: Connection, sample: Any, status: int, body: bytes) -> None:
        self.statuses[status] += 1
        self._idle.append(connection)
        if status == 200:
            # The raw output: ten logits, or the null server's few bytes, which mean nothing.
            logits = np.frombuffer(body, np.float32) if len(body) == 40 else self._classes[:1]
            self._complete(sample, int(logits.argmax()))
        else:
            self._refused(sample, connection.began)
        if self._waiting:
            self._send()

    def lost(self, connection: Connection, sample: Any) -> None:
        """It answers no more: what it was asked counts as refused, and another one is made."""
        self._open -= 1
        if connection in self._idle:
            self._idle.remove(connection)
        if sample is not None:
            self.statuses[0] += 1
            self._refused(sample, connection.began)
        self.loop.create_task(self._connect())

    def _refused(self, sample: Any, began: float) -> None:
        hold_s = max(0.0, _HELD * self._job["bound_s"] - (time.perf_counter() - began))
        self.loop.call_later(hold_s, self._complete, sample, _REFUSED)

    def _complete(self, sample: Any, number: int) -> None:
        lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, self._first + number, 1)])


def settings_of(job: dict[str, Any]) -> Any:
    made = lg.TestSettings()
    made.scenario = getattr(lg.TestScenario, job["scenario"])
    made.mode = getattr(lg.TestMode, job["mode"])
    made.min_duration_ms = int(1000 * job["seconds"])
    made.min_query_count = job["min_queries"]
    made.server_target_qps = job["qps"]
    made.server_target_latency_ns = int(1e9 * job["bound_s"])
    made.server_target_latency_percentile = 0.99
    made.offline_expected_qps = job["qps"]
    made.qsl_rng_seed, made.sample_index_rng_seed, made.schedule_rng_seed = job["seeds"]
    return made


def main() -> None:
    job = json.loads(Path(sys.argv[1]).read_text())
    with np.load(job["pictures"]) as file:
        pictures = file["pictures"]
    host = job["address"]
    head = (
        f"POST {job['path']} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/octet-stream\r\n"
        f"Accept: application/octet-stream\r\nContent-Length: {pictures[0].nbytes}\r\n\r\n"
    ).encode()
    client = Client(job, [head + picture.tobytes() for picture in pictures])
    output = lg.LogOutputSettings()
    output.outdir = job["folder"]
    output.copy_summary_to_stdout = False
    logs = lg.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    sut = lg.ConstructSUT(client.issue, client.flush)
    library = lg.ConstructQSL(len(pictures), len(pictures), lambda samples: None, lambda samples: None)
    began, cpu = time.perf_counter(), time.process_time()
    lg.StartTestWithLogSettings(sut, library, settings_of(job), logs)
    wall_s = time.perf_counter() - began
    report = {"statuses": dict(client.statuses), "wall_s": wall_s, "cpu_s": time.process_time() - cpu}
    lg.DestroyQSL(library)
    lg.DestroySUT(sut)
    print(json.dumps(report))


main()
