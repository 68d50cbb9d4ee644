"""Runs of LoadGen -> a page."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from benchmarks.loadgen.runs import Ran
from cluster.hardware import fingerprint, version_of
from cluster.variants import Variant
from tune_spaces.stages import Cores

_NAMES = {"ours": "behind HAProxy", "ours-direct": "the replica's own port"}
_HOW = """LoadGen decides what is asked and when, and judges by itself; one picture in a request, its 784 bytes in, ten
logits back, on 128 connections that stay open. Every request has a deadline of {bound:g} ms, so that the server may
refuse what it could not answer in time. A refusal does not count as a fast success: it is held back until twice the
bound is over, and so counts as late. `Server`: Poisson arrivals, VALID where the 99th percentile is within
{bound:g} ms. Official runs take 600 s at least and are audited; these are shorter, and no
official results. Servers on cores {server}, LoadGen and
its client, which is Python, on {client}: where the client's core is full, the figure is the client's."""


@dataclass
class Entry:
    """One way to the same replica."""

    name: str
    accuracy: Ran | None = None
    searched: list[Ran] = field(default_factory=list)
    server: Ran | None = None
    others: list[Ran] = field(default_factory=list)


@dataclass
class Found:
    """All that was measured."""

    does: str
    variant: Variant
    client_qps: float
    client_runs: list[Ran]
    bound_ms: float
    cores: Cores
    entries: list[Entry] = field(default_factory=list)


def markdown(found: Found, command: str, versions: Mapping[str, str]) -> str:
    """The whole page."""
    told = found.variant.accuracy_in("onnxruntime") or found.variant.accuracy
    how = _HOW.format(bound=found.bound_ms, server=found.cores.server or "any", client=found.cores.client or "any")
    header = ["", "accuracy of the log's answers", "highest target found VALID, /s", "p99, ms", "completed, /s",
    "refused",
              "client's core", "SingleStream p90, ms", "Offline, /s"]  # fmt: skip
    said = f" What the variant's manifest says of its accuracy: {told.value:.4f}." if told else ""
    lines = [
        "# MLPerf LoadGen as the load source", "", f"`{command}`, {time.strftime('%F')}.", "", how, "",
        f"Served: {found.does}.", "", "## What was found", "",
        f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(_row(entry) for entry in found.entries), "",
        f"The client alone, against a server that answers at once: VALID to {found.client_qps:,.0f}/s.{said}", "",
    ]  # fmt: skip
    for entry in found.entries:
        lines += [f"## {_NAMES.get(entry.name, entry.name)}: the search", "", *_table(entry.searched)]
        for ran in [entry.server, *entry.others]:
            if ran is not None:
                lines += [f"### {ran.scenario}, target {ran.qps:,.0f}/s, {ran.seconds:g} s", "", *_own_words(ran)]
    lines += ["## The client alone: the search", "", *_table(found.client_runs)]
    known = [f"{name} {number}" for name, number in versions.items()]
    known += [f"{name} {version_of(name)}" for name in ("ray", "onnxruntime")]
    return "\n".join([*lines, "## Versions", "", ", ".join(known), "", f"Machine: {json.dumps(fingerprint())}", ""])


def _row(entry: Entry) -> str:
    accuracy, server = entry.accuracy, entry.server
    single = next((ran for ran in entry.others if ran.scenario == "SingleStream"), None)
    offline = next((ran for ran in entry.others if ran.scenario == "Offline"), None)
    cells = [
        _NAMES.get(entry.name, entry.name),
        "" if accuracy is None else f"{accuracy.accuracy:.4f} of {accuracy.answered:,}",
        "none" if server is None or not server.valid else f"{server.qps:,.0f} ({server.seconds:g} s)",
        "" if server is None else _ms(server, "99.00 percentile latency (ns)"),
        "" if server is None else server.figures.get("Completed samples per second", ""),
        "" if server is None else f"{server.refused}", "" if server is None else f"{server.client_share:.0%}",
        "" if single is None else _ms(single, "90.00 percentile latency (ns)"),
        "" if offline is None else offline.figures.get("Samples per second", ""),
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def _table(runs: Iterable[Ran]) -> list[str]:
    rows = [
        f"| {ran.qps:,.0f} | {ran.figures.get('Result is', '')} | {_ms(ran, '50.00 percentile latency (ns)')} | "
        f"{_ms(ran, '99.00 percentile latency (ns)')} | {ran.figures.get('Completed samples per second', '')} | "
        f"{ran.refused} | {ran.client_share:.0%} |" for ran in sorted(runs, key=lambda ran: ran.qps)
    ]  # fmt: skip
    return ["| target, /s | LoadGen says | p50, ms | p99, ms | completed, /s | refused | client's core |",
            "|---|---|---|---|---|---|---|", *rows, ""]  # fmt: skip


def _ms(ran: Ran, name: str) -> str:
    value = ran.ms(name)
    return "" if value is None else f"{value:.2f}"


def _own_words(ran: Ran) -> list[str]:
    """LoadGen's summary as it wrote it, without the settings that say nothing here."""
    kept = re.split(r"\n=+\nTest Parameters Used", ran.summary)[0].strip()
    return ["```", kept, "```", ""]
