"""h2load: one request -> the highest fixed rate at which a server answers within a bound.

Our own open-loop generator, in Python, holds some thousand requests a second from one core; the fast servers here take
several times that. h2load (Debian's nghttp2-client, C) sends from each of its connections at fixed times; connections
begin a few at a time, or all of them would send at once in each period. A connection whose answer is late sends its
next request late, so a server that does not keep up is seen by the rate: below 99% of what was asked for counts as
missed, whatever its percentiles say.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.serving.processes import installed
from cluster.errors import SluiceError
from cluster.load import Target

CONNECTIONS = 256
SHARES = (1.0, 0.95, 0.9, 0.85, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1)
"""Of a server's closed-loop maximum: rates that are tried, from above."""
_KEPT = 0.99
_BEGIN, _BEGIN_EVERY_S = 4, 0.019
"""So many connections begin at once, and so often: no multiple of the usual periods."""
_RAMP_S = CONNECTIONS / _BEGIN * _BEGIN_EVERY_S
_OWN_HEADERS = (b"host", b"content-length")


@dataclass(frozen=True)
class Paced:
    """One run. Latencies count from the sending."""

    offered_rps: float
    rate_rps: float
    """Answers of 200 a second."""
    p50_s: float
    p99_s: float
    """Infinite if more than one in a hundred was none of 200."""
    answers: int
    failed: int

    def holds(self, bound_s: float) -> bool:
        """Kept the rate, and 99% within the bound."""
        return self.rate_rps >= _KEPT * self.offered_rps and self.p99_s <= bound_s


def program() -> str:
    """Where h2load is; see `installed`. Raises ConfigError."""
    return installed("h2load", "nghttp2-client", "drives fixed rates")


def run(target: Target, *, rate_rps: float, seconds: float, warmup_s: float, cores: Sequence[int]) -> Paced:
    """The target's first request, over and over, at this rate. Raises SluiceError if h2load fails."""
    head, _, body = target.requests[0].partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    path = first.split(b" ")[1].decode()
    kept = [line.decode("latin-1") for line in lines if line.split(b":")[0].lower() not in _OWN_HEADERS]
    begun_s = _RAMP_S + warmup_s  # all connections are at work from here on, until the first one is done
    count = CONNECTIONS * max(1, math.ceil((begun_s + seconds) * rate_rps / CONNECTIONS))
    with tempfile.TemporaryDirectory(prefix="sluice-h2load-") as folder:
        data, log = Path(folder, "body"), Path(folder, "log")
        data.write_bytes(body)
        pinned = ["taskset", "-c", ",".join(map(str, cores))] if cores else []
        command = [
            *pinned, program(), "--h1", f"-t{max(1, len(cores))}", f"-c{CONNECTIONS}", f"-n{count}", f"-r{_BEGIN}",
            f"--rate-period={_BEGIN_EVERY_S * 1e3:g}ms", f"--rps={rate_rps / CONNECTIONS:g}", f"--data={data}",
            f"--log-file={log}", *(word for line in kept for word in ("-H", line)),
            f"http://{target.host}:{target.port}{path}",
        ]  # fmt: skip
        patience_s = 10 * (begun_s + seconds) + 60
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=patience_s)
        if done.returncode != 0 or not log.is_file():
            told = (done.stderr or done.stdout)[-400:].strip()
            raise SluiceError(f"h2load ended with code {done.returncode}: {told}")
        return judge(log.read_text(), rate_rps, seconds, begun_s)


def judge(log: str, offered_rps: float, seconds: float, begun_s: float) -> Paced:
    """h2load's log, of so many seconds from when all had begun: for each answer when its request was sent
    (microseconds), its status, its time (microseconds)."""
    rows = np.array([line.split("\t")[:3] for line in log.splitlines()], dtype=np.int64).reshape(-1, 3)
    if not len(rows):
        raise SluiceError("h2load had no answer at all")
    sent_s = (rows[:, 0] - rows[:, 0].min()) / 1e6
    rows = rows[(sent_s >= begun_s) & (sent_s < begun_s + seconds)]
    good = rows[:, 1] == 200
    took_s = np.where(good, rows[:, 2] / 1e6, np.inf)
    p50_s, p99_s = (
        float(np.quantile(took_s, q, method="inverted_cdf")) if len(rows) else float("inf") for q in (0.5, 0.99)
    )
    return Paced(offered_rps, float(good.sum()) / seconds, p50_s, p99_s, len(rows), int((~good).sum()))


def search(measure: Callable[[float], Paced], most_rps: float, bounds_s: Sequence[float]) -> tuple[
    dict[float, float], list[Paced]
]:  # fmt: skip
    """The highest of the rates that holds, by bound (0: none does), and all that was measured."""
    found: dict[float, float] = {}
    seen: list[Paced] = []
    for share in SHARES:
        seen.append(measure(share * most_rps))
        for bound_s in bounds_s:
            if bound_s not in found and seen[-1].holds(bound_s):
                found[bound_s] = seen[-1].rate_rps
        if len(found) == len(bounds_s):
            break
    return {bound_s: found.get(bound_s, 0.0) for bound_s in bounds_s}, seen
