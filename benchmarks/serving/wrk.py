"""wrk: requests -> what a closed loop of so many connections gets out of a server.

One thread on the client's core; the requests are the very bytes that our own generator sends (wrk.lua). What wrk counts
as an answer is any; those that are not 2xx or 3xx are taken off again here.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.processes import installed
from cluster.errors import SluiceError
from cluster.load import CPU_LIMIT, Target

SCRIPT = Path(__file__).with_name("wrk.lua")
_UNITS_S = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_PATIENCE_S = 60


@dataclass(frozen=True)
class Closed:
    """One run of wrk. Latencies count from the sending."""

    rate_rps: float
    """Answers of 2xx and 3xx a second."""
    p50_s: float
    p99_s: float
    answers: int
    """All that came, whatever their status."""
    failed: int
    """Of another status, or no answer at all."""
    client_cpu_share: float = 0.0
    """Of one core."""

    @property
    def is_a_floor(self) -> bool:
        """The client was short of CPU: the server might have given more."""
        return self.client_cpu_share > CPU_LIMIT


def parse(text: str) -> Closed:
    """wrk's output, with --latency. Raises SluiceError if it is none."""

    def figure(pattern: str) -> float:
        found = re.search(pattern, text)
        if found is None:
            raise SluiceError(f"wrk told nothing of {pattern!r}: {text.strip()[-400:]}")
        number, unit = float(found[1]), (found[2] if found.re.groups > 1 else None)
        return number * _UNITS_S[unit] if unit else number

    time_of = r"\s+([\d.]+)(us|ms|s|m|h)\b"
    seconds = figure(r"requests in" + time_of)
    answers = int(figure(r"(\d+) requests in"))
    bad = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    broken = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    refused = int(bad[1]) if bad else 0
    p50_s, p99_s = (figure(rf"\n\s+{percent}%" + time_of) for percent in (50, 99))
    return Closed(
        rate_rps=(answers - refused) / seconds, p50_s=p50_s, p99_s=p99_s,
        answers=answers, failed=refused + (sum(map(int, broken.groups())) if broken else 0),
    )  # fmt: skip


def program() -> str:
    """Where wrk is; see `installed`. Raises ConfigError."""
    return installed("wrk", "wrk", "drives the closed loops")


def run(target: Target, *, connections: int, seconds: int, cores: Sequence[int]) -> Closed:
    """A closed loop from `cores` (none: from any), a thread for each of them."""
    threads = max(1, min(len(cores), connections))
    with tempfile.TemporaryDirectory(prefix="sluice-wrk-") as folder:
        path = Path(folder, "requests")
        path.write_bytes(b"".join(b"%d\n%s" % (len(each), each) for each in target.requests))
        pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        command = [
            *pinned, program(), "--latency", f"-t{threads}", f"-c{connections}", f"-d{seconds}s",
            f"--timeout={_PATIENCE_S}s", "-s", str(SCRIPT), f"http://{target.host}:{target.port}/", "--", str(path),
        ]  # fmt: skip
        with Path(folder, "out").open("w+") as out:
            began = time.monotonic()
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT)
            try:
                _, status, used = os.wait4(process.pid, 0)
            except BaseException:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                process.wait()
                raise
            took_s = time.monotonic() - began
            process.returncode = os.waitstatus_to_exitcode(status)
            out.seek(0)
            text = out.read()
    if process.returncode != 0:
        raise SluiceError(f"wrk ended with code {process.returncode}: {text.strip()[-400:]}")
    share = (used.ru_utime + used.ru_stime) / took_s / threads
    found = parse(text)
    return Closed(found.rate_rps, found.p50_s, found.p99_s, found.answers, found.failed, share)
