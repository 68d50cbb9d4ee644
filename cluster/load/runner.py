"""Target + arrivals -> load workers in their own processes -> LoadResult.

Arrivals are dealt out round-robin; every worker starts from one CLOCK_MONOTONIC instant, which processes share.
"""

from __future__ import annotations

import contextlib
import math
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError, SluiceError
from cluster.load.job import JobSpec, WorkerReport, write_inputs
from cluster.load.result import LoadResult, merge_results

_STARTUP_S = 60.0
_LEAD_S = 0.1  # from the last "ready" to the first request: enough for every worker to read the start time


@dataclass(frozen=True)
class Target:
    """Where to send and what: request k of a run is `requests[k % len(requests)]`, prebuilt (http1.build_request).

    With `expect`, one entry per request, an answer is right only if those bytes occur in its head or body.
    """

    host: str
    port: int
    requests: list[bytes]
    expect: list[bytes] | None = None

    def __post_init__(self) -> None:
        if not self.requests:
            raise ConfigError("requests=[] leaves nothing to send; build at least one with build_request().")
        if self.expect is not None and len(self.expect) != len(self.requests):
            raise ConfigError(
                f"expect has {len(self.expect)} entries for {len(self.requests)} requests; pass one per request."
            )


def run_open_loop(
    target: Target,
    arrivals: NDArray[np.float64],
    *,
    duration_s: float | None = None,
    processes: int = 1,
    connections: int = 64,
    cpus: Sequence[int] | None = None,
    timeout_s: float = 10.0,
    abort_backlog: int | None = None,
) -> LoadResult:
    """Send one request at each of `arrivals` (sorted seconds from the start), whatever the server does.

    `duration_s` is the window that rates are computed over (default: up to the last arrival). `connections` and
    `abort_backlog` are totals over all processes; once more than `abort_backlog` requests wait in a client's queue,
    the rest is recorded as unsent. Worker k is pinned to `cpus[k % len(cpus)]`. A request unanswered `timeout_s`
    after its scheduled time is a timeout. Raises ConfigError for bad arguments, SluiceError if a worker dies.
    """
    times = np.asarray(arrivals, dtype=np.float64)
    if times.ndim != 1 or times.size == 0:
        raise ConfigError(f"arrivals of shape {times.shape} schedule no request; raise the rate or the duration.")
    if not np.all(np.isfinite(times)) or times[0] < 0 or np.any(np.diff(times) < 0):
        raise ConfigError("arrivals must be sorted, finite and >= 0 seconds; see cluster.load.arrivals.")
    window = float(times[-1]) if duration_s is None else duration_s
    if window <= 0:
        window = 1.0 / times.size if duration_s is None else window
    _check_counts(processes, connections, timeout_s)
    specs = [
        _Share(
            arrivals=times[k::processes],
            first=k,
            abort_backlog=None if abort_backlog is None else math.ceil(abort_backlog / processes),
        )
        for k in range(processes)
    ]
    return _run(
        "open", target, specs, window, connections=connections, cpus=cpus, timeout_s=timeout_s,
        limit_s=float(times[-1]) + timeout_s,
    )  # fmt: skip


def run_closed_loop(
    target: Target,
    *,
    duration_s: float,
    processes: int = 1,
    connections: int = 64,
    cpus: Sequence[int] | None = None,
    timeout_s: float = 10.0,
) -> LoadResult:
    """Keep `connections` requests in flight for `duration_s`: an estimate of the server's maximum.

    Latencies count from the sending, so they say nothing about a user's wait; `goodput_rps()` is the figure.
    """
    _check_counts(processes, connections, timeout_s)
    if not duration_s > 0:
        raise ConfigError(f"duration_s={duration_s} is not positive; pass the seconds to run for.")
    shares = [_Share(arrivals=np.empty(0), first=k, abort_backlog=None) for k in range(processes)]
    return _run(
        "closed", target, shares, duration_s, connections=connections, cpus=cpus, timeout_s=timeout_s,
        limit_s=duration_s + timeout_s,
    )  # fmt: skip


@dataclass(frozen=True)
class _Share:
    arrivals: NDArray[np.float64]
    first: int
    abort_backlog: int | None


def _check_counts(processes: int, connections: int, timeout_s: float) -> None:
    if processes < 1 or connections < processes:
        raise ConfigError(f"processes={processes}, connections={connections}: each process needs a connection.")
    if not timeout_s > 0:
        raise ConfigError(f"timeout_s={timeout_s} is not positive; pass the seconds after which to give up.")


def _run(
    mode: Literal["open", "closed"],
    target: Target,
    shares: Sequence[_Share],
    duration_s: float,
    *,
    connections: int,
    cpus: Sequence[int] | None,
    timeout_s: float,
    limit_s: float,
) -> LoadResult:
    count = len(shares)
    with tempfile.TemporaryDirectory(prefix="sluice-load-") as folder, contextlib.ExitStack() as stack:
        specs = []
        for k, share in enumerate(shares):
            spec = JobSpec(
                mode=mode, host=target.host, port=target.port,
                inputs=Path(folder, f"in{k}.npz"), results=Path(folder, f"out{k}.npz"),
                connections=connections // count + (k < connections % count),
                timeout_s=timeout_s, abort_backlog=share.abort_backlog, first=share.first, step=count,
                duration_s=duration_s, cpu=cpus[k % len(cpus)] if cpus else None,
            )  # fmt: skip
            write_inputs(spec.inputs, share.arrivals, target.requests, target.expect)
            specs.append(spec)
        workers = [stack.enter_context(_Worker(spec, Path(folder, f"err{k}"))) for k, spec in enumerate(specs)]
        ready_by = time.monotonic() + _STARTUP_S + timeout_s
        for worker in workers:
            worker.read_line(ready_by)
        start = time.monotonic() + _LEAD_S
        for worker in workers:
            worker.write_line(repr(start))
        # The arrays of a long run take a while to write.
        reports = [
            WorkerReport.model_validate_json(worker.read_line(start + limit_s + _STARTUP_S)) for worker in workers
        ]
        return merge_results([_read(spec, report, duration_s) for spec, report in zip(specs, reports, strict=True)])


def _read(spec: JobSpec, report: WorkerReport, duration_s: float) -> LoadResult:
    with np.load(spec.results, allow_pickle=False) as arrays:
        return LoadResult(
            **{name: arrays[name] for name in arrays.files},
            duration_s=duration_s,
            client_cpu_s=report.cpu_s,
            client_cpu_share=report.cpu_s / max(report.elapsed_s, 1e-9),
            aborted=report.aborted,
        )


class _Worker:
    """A worker process that never outlives its `with` block."""

    def __init__(self, spec: JobSpec, errors: Path) -> None:
        self._spec, self._errors = spec, errors

    def __enter__(self) -> _Worker:
        with self._errors.open("wb") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cluster.load.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                bufsize=0,
            )
        self.write_line(self._spec.model_dump_json())
        return self

    def write_line(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):  # it died: reading its answer says why
            self._pipe(self._process.stdin).write(line.encode() + b"\n")

    def read_line(self, deadline: float) -> str:
        stdout, data = self._pipe(self._process.stdout), b""
        while not data.endswith(b"\n"):
            if not select.select([stdout], [], [], max(deadline - time.monotonic(), 0.0))[0]:
                raise SluiceError(
                    "a load worker missed its deadline: the machine is overcommitted; use fewer processes."
                )
            part = stdout.read(4096)
            if not part:
                raise SluiceError(f"a load worker died: {self._errors.read_text(errors='replace')[-2000:]}")
            data += part
        return data.decode()

    def __exit__(self, *_: object) -> None:
        self._pipe(self._process.stdin).close()
        try:
            self._process.wait(1.0)  # a closed stdin stops it
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._pipe(self._process.stdout).close()

    @staticmethod
    def _pipe(pipe: IO[bytes] | None) -> IO[bytes]:
        assert pipe is not None
        return pipe
