"""Tallies -> a page, and what in them is a fault."""

from __future__ import annotations

import json
import statistics
import time
from collections import Counter
from dataclasses import dataclass, field

import psutil

from cluster.hardware import fingerprint, version_of
from tests.conformance.deployed import Deployed
from tests.conformance.openapi import Ran
from tests.fuzz.campaign import Tally

MOST_MIB = 48.0
"""How much the memory of the replica may grow between the first sample and the last: of bodies of 16 MiB, eight at
once, an allocator keeps some, now more and now less."""
MOST_FDS = 8
_HOW = """Every case is a request that is wrong, torn, too large or hostile, made of a seed; the same seed sends the
same. Half of those over HTTP go through HAProxy, half to the replica's own port. Behind each that is whole a right
request follows on the same connection, beside them all a right one goes out every 20 ms to each port, and behind every
call over gRPC a right one: all are compared with the values that must come back. 24 connections to each port stand
open all the while with half a head. A case is a fault if it is answered with 5xx but 503, or not within 15 s, or
refused by us without `{"error": ...}` that says why (over gRPC: INTERNAL, UNKNOWN, DEADLINE_EXCEEDED, or no
details). `page`: what HAProxy or the HTTP parser refused in its own words, before it could reach us; `left`: not a
whole request, waited for until the client went; `closed`: refused by closing the connection."""


@dataclass(frozen=True)
class Sample:
    """Of the processes that serve."""

    when: str
    replica_mib: float
    replica_fds: int
    proxy_mib: float
    proxy_fds: int


@dataclass
class Visit:
    """One subject."""

    subject: str
    tally: Tally = field(default_factory=Tally)
    samples: list[Sample] = field(default_factory=list)

    def sample(self, where: Deployed, when: str) -> None:
        """Look at them now."""
        self.samples.append(Sample(when, *_size((where.replica,)), *_size(where.proxies)))

    def leaks(self) -> list[str]:
        first, last = self.samples[0], self.samples[-1]
        told = []
        if last.replica_mib > first.replica_mib + MOST_MIB:
            told.append(f"the replica's memory grew from {first.replica_mib:.0f} to {last.replica_mib:.0f} MiB")
        if last.replica_fds > first.replica_fds + MOST_FDS:
            told.append(f"the replica's descriptors grew from {first.replica_fds} to {last.replica_fds}")
        if last.proxy_fds > first.proxy_fds + 4 * MOST_FDS:
            told.append(f"HAProxy's descriptors grew from {first.proxy_fds} to {last.proxy_fds}")
        return told


def _size(processes: tuple[psutil.Process, ...]) -> tuple[float, int]:
    return sum(p.memory_info().rss for p in processes) / 2**20, sum(p.num_fds() for p in processes)


@dataclass
class Found:
    """All of it."""

    seed: int
    visits: list[Visit] = field(default_factory=list)
    described: Ran | None = None
    new_files: list[str] = field(default_factory=list)
    """In the store."""

    def faults(self) -> list[str]:
        told = []
        for visit in self.visits:
            told += [f"{visit.subject}: {fault}" for fault in visit.tally.faults + visit.leaks()]
        if self.described is not None and self.described.fault:
            told.append(f"Schemathesis: {self.described.fault}")
        return told + [f"a file appeared in the store: {name}" for name in self.new_files]


def markdown(found: Found, command: str, took_s: float) -> str:
    """The whole page."""
    sent = sum(visit.tally.count() for visit in found.visits)
    described = found.described
    more = sum(described.statuses.values()) if described is not None else 0
    right = sum(visit.tally.beside + visit.tally.behind for visit in found.visits)
    faults = found.faults()
    lines = [
        "# Bad input", "", f"`{command}`, {time.strftime('%F')}, {took_s:.0f} s: {sent + more:,} hostile requests "
        f"({more:,} of them Schemathesis'), {right:,} right ones between them; {len(faults)} faults.", "", _HOW, "",
    ]  # fmt: skip
    for visit in found.visits:
        lines += _visit(visit)
    if described is not None:
        told = ", ".join(f"{status}: {count:,}" for status, count in sorted(described.statuses.items()))
        lines += [f"## Schemathesis {described.version} on /v2/openapi.json", "",
        f"{more:,} requests, by status: {told}.",
                  "", "```", *described.summary, "```", ""]  # fmt: skip
    if faults:
        lines += [
            f"## Faults: {len(faults)}",
            "",
            *(f"- {' '.join(fault.split())[:300]}" for fault in faults[:100]),
            "",
        ]
    told = ", ".join(f"{name} {version_of(name)}" for name in ("ray", "onnxruntime", "uvicorn", "httptools", "grpcio"))
    return "\n".join([*lines, "## Versions", "", told, "", f"Machine: {json.dumps(fingerprint())}", ""])


def _visit(visit: Visit) -> list[str]:
    tally = visit.tally
    times = sorted(tally.beside_s) or [0.0]
    lines = [
        f"## Serving `{visit.subject}`", "",
        f"{tally.count():,} hostile; right ones: {tally.behind:,} behind them, {tally.beside:,} beside them (median "
        f"{statistics.median(times) * 1e3:.1f} ms, 99% within {times[int(0.99 * (len(times) - 1))] * 1e3:.0f} ms, the "
        f"slowest {times[-1] * 1e3:.0f} ms). The slowest hostile one took {tally.slowest[0] * 1e3:.0f} ms.", "",
        "| place | kind | sent | what came back |", "|---|---|---|---|",
    ]  # fmt: skip
    for (place, kind), count in sorted(tally.sent.items()):
        came: Counter[str] = Counter()
        for (at, what, outcome), number in tally.statuses.items():
            if (at, what) == (place, kind):
                came[outcome] += number
        told = ", ".join(f"{outcome}: {number:,}" for outcome, number in sorted(came.items()))
        lines.append(f"| {place} | {kind} | {count:,} | {told} |")
    lines += ["", "| | replica, MiB | its descriptors | HAProxy, MiB | its descriptors |", "|---|---|---|---|---|"]
    lines += [
        f"| {s.when} | {s.replica_mib:.1f} | {s.replica_fds} | {s.proxy_mib:.1f} | {s.proxy_fds} |"
        for s in visit.samples
    ]
    return [*lines, ""]
