"""Cells -> serving.md: who answers how many requests, how fast, and how many of them in time."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

from benchmarks.serving.cells import NOISY, Cell, Cells, is_noisy
from benchmarks.serving.h2load import CONNECTIONS, SHARES

_HOW = """One server at a time, all of its processes on cores {servers}, the client on {client}. Every server runs the
same file on one ONNX Runtime thread (one replica or worker unless its name says otherwise), in batches of up to 64;
Mosec, LitServe and @serve.batch wait 2 ms for one to fill, BentoML chooses by itself, ours takes what waits when the
executor frees. Before and after each visit every picture must be answered as the runtime itself answers it. Rounds go
over all servers in turn; medians, and the least and the most of the rounds in brackets. `*`: somebody else used over
{noisy} of the servers' cores in some round, so the figure is too low."""


def markdown(cells: Cells) -> str:
    """The whole page."""
    document = cells.document
    settings = document["settings"]
    where = {name: ", ".join(map(str, settings[f"{name}_cores"])) or "any" for name in ("server", "client")}
    how = _HOW.format(servers=where["server"], client=where["client"], noisy=f"{NOISY:.0%}")
    lines = ["# Serving, beside other frameworks", "", f"`{document['command']}`, {document['date']}.", "", how, ""]
    for work, facts in document.get("works", {}).items():
        told = (_alone(cells, work) + _closed(cells, work, settings) + _paced(cells, work, settings)
                + _slo(cells, work, settings)
                + _deadlines(cells, work, settings) + _speaks(document, work))  # fmt: skip
        if told:
            lines += [f"## {work}: {facts['does']}", "", *told]
    if failures := document.get("failures"):
        lines += ["## What did not work", "", *(f"- {where}: {why}" for where, why in failures.items()), ""]
    lines += ["## Versions", "", *(_versions(document)), "", f"Machine: {json.dumps(document['machine'])}", ""]
    return "\n".join(lines)


def _servers(cells: Cells, work: str, phase: str) -> list[str]:
    """Those with cells of that phase, in the order in which they came."""
    found = [key.split("/") for key in cells.cells]
    return list(dict.fromkeys(parts[1] for parts in found if parts[0] == work and parts[2] == phase))


def _parts(cells: Cells, prefix: str, place: int) -> list[str]:
    """What stands at that place of the keys below a prefix, in order."""
    return list(dict.fromkeys(key.split("/")[place] for key in cells.of(prefix)))


def _rounds(cells: Cells, prefix: str, figure: str) -> dict[str, float]:
    return {number: cell[figure] for number, cell in cells.of(prefix).items() if cell.get(figure) is not None}


def _spread(values: Iterable[float], digits: int = 0, times: float = 1.0) -> str:
    """1,234 [1,200, 1,300]; the bracket only where there is more than one."""
    kept = [value * times for value in values]
    if not kept:
        return ""
    middle = f"{statistics.median(kept):,.{digits}f}"
    return middle if len(kept) == 1 else f"{middle} [{min(kept):,.{digits}f}, {max(kept):,.{digits}f}]"


def _ratio(ours: dict[str, float], theirs: dict[str, float]) -> str:
    """Round by round, the median: rounds lie close together in time, medians of all do not."""
    pairs = [ours[number] / theirs[number] for number in ours if theirs.get(number)]
    return f"{statistics.median(pairs):.2f}" if pairs else ""


def table(headers: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A markdown table and the empty line after it."""
    return [
        f"| {' | '.join(headers)} |", f"|{'---|' * len(headers)}", *(f"| {' | '.join(row)} |" for row in rows), ""
    ]


def _alone(cells: Cells, work: str) -> list[str]:
    rows = []
    for name in _parts(cells, f"{work}/kernel", 0):
        prefix = f"{work}/kernel/{name}"
        last = next(reversed(cells.of(prefix).values()))
        rows.append((
            name, _spread(_rounds(cells, prefix, "latency_s").values(), 3, 1e3),
            _spread(_rounds(cells, prefix, "rate_rps").values()), str(last["best_batch"]),
        ))  # fmt: skip
    if not rows:
        return []
    return ["The bare runtimes, one thread on one core, nothing served:", "",
            *table(("runtime", "ms for one", "pictures/s at best", "in batches of"), rows)]  # fmt: skip


def _closed(cells: Cells, work: str, settings: dict[str, Any]) -> list[str]:
    servers = _servers(cells, work, "closed")
    rows = []
    counts = sorted({c for server in servers for c in _parts(cells, f"{work}/{server}/closed", 0)}, key=int)
    for connections in counts:
        mosec = _rounds(cells, f"{work}/mosec/closed/{connections}", "rate_rps")
        bare = _rounds(cells, f"{work}/kernel/onnxruntime", "rate_rps")
        for server in servers:
            prefix = f"{work}/{server}/closed/{connections}"
            found = cells.of(prefix)
            if not found:
                continue
            rates = _rounds(cells, prefix, "rate_rps")
            rows.append((
                connections, server, _floor(found) + _spread(rates.values()) + _noise(found),
                *(_spread(_rounds(cells, prefix, figure).values(), 2, 1e3) for figure in ("p50_s", "p99_s")),
                _ratio(rates, mosec), _ratio(rates, bare),
                _spread(_rounds(cells, prefix, "mean_batch").values(), 1),
                _spread(_rounds(cells, prefix, "core_s_per_million").values()),
                str(sum(cell["failed"] for cell in found.values())),
            ))  # fmt: skip
    if not rows:
        return []
    headers = ("connections", "server", "req/s", "p50 ms", "p99 ms", "to Mosec", "to bare ONNX Runtime", "in a batch",
               "core-s per million", "failed")  # fmt: skip
    return [f"Closed loop, wrk, {settings['closed_s']} s each; latencies from the sending:", "", *table(headers, rows)]


def _floor(found: dict[str, Cell]) -> str:
    return "at least " if any(cell.get("is_a_floor") for cell in found.values()) else ""


def _noise(found: dict[str, Cell]) -> str:
    return " *" if any(is_noisy(cell) for cell in found.values()) else ""


def _paced(cells: Cells, work: str, settings: dict[str, Any]) -> list[str]:
    rows = []
    servers = _servers(cells, work, "paced")
    for bound in list(dict.fromkeys(b for server in servers for b in _parts(cells, f"{work}/{server}/paced", 0))):
        mosec = _rounds(cells, f"{work}/mosec/paced/{bound}", "rate_rps")
        for server in servers:
            found, rates = (cells.of(f"{work}/{server}/paced/{bound}"),
                            _rounds(cells, f"{work}/{server}/paced/{bound}", "rate_rps"))  # fmt: skip
            if found:
                rows.append((bound, server, _spread(rates.values()) + _noise(found), _ratio(rates, mosec)))
    if not rows:
        return []
    return [f"Fixed rates, h2load, {settings['slo_s']:g} s each: the highest of {len(SHARES)} shares of a server's "
            f"closed-loop maximum ({', '.join(f'{share:g}' for share in SHARES)}) that it keeps, from {CONNECTIONS} "
            "connections, with 99% answered within the bound of the sending; 0: none:", "",
            *table(("p99 within", "server", "req/s", "to Mosec"), rows)]  # fmt: skip


def _slo(cells: Cells, work: str, settings: dict[str, Any]) -> list[str]:
    rows = []
    servers = _servers(cells, work, "slo")
    for bound in list(dict.fromkeys(b for server in servers for b in _parts(cells, f"{work}/{server}/slo", 0))):
        mosec = _rounds(cells, f"{work}/mosec/slo/{bound}", "rate_rps")
        for server in servers:
            prefix = f"{work}/{server}/slo/{bound}"
            found, rates = cells.of(prefix), _rounds(cells, prefix, "rate_rps")
            if not found:
                continue
            told = len(rates) == len(found)  # one seed that can't tell leaves a median of the others, which is none
            rate = _floor(found) + _spread(rates.values()) + _noise(found) if told else "can't tell"
            rows.append((bound, server, rate, _ratio(rates, mosec) if told else ""))
    if not rows:
        return []
    return ["SLO rate: the highest Poisson rate at which 99% are answered rightly within the bound of when they should "
            f"have been sent; steps of {settings['slo_s']:g} s, a seed in each round:", "",
            *table(("p99 within", "server", "req/s", "to Mosec"), rows)]  # fmt: skip


def _deadlines(cells: Cells, work: str, settings: dict[str, Any]) -> list[str]:
    fixed = cells.document.get("fixed", {})
    headers = ("arrivals", "share", "server", "% in time", "p50 ms", "p99 ms", "in a batch", "answers")
    lines: list[str] = []
    for rival in dict.fromkeys(key.split("/")[3] for key in cells.cells if key.startswith(f"{work}/ours/deadline/")):
        rate = fixed[f"{work}/{rival}/smaller_maximum_rps"]
        loads = [f"{kind}/{share}" for kind, share, _ in (
            key.split("/") for key in cells.of(f"{work}/ours/deadline/{rival}"))]  # fmt: skip
        rows = [
            _kept(cells, f"{work}/{server}/deadline/{rival}/{load}", load, server)
            for load in dict.fromkeys(loads) for server in ("ours", rival)
        ]  # fmt: skip
        lines += [f"Ours and {rival}, at shares of {rate:,.0f} req/s:", "", *table(headers, [r for r in rows if r])]
    if not lines:
        return []
    return [f"Deadline: {fixed[f'{work}/deadline_s'] * 1e3:.0f} ms from when a request should have been sent; our own "
            f"open-loop generator, {settings['deadline_s']:g} s each. Shares are of the smaller of the pair's "
            "closed-loop maxima. Gamma: gaps with a coefficient of variation of 2.5; trace: a recorded load, scaled to "
            "the rate. What is not answered rightly in time counts against a server, refusals too; a percentile is "
            "empty where more than the rest failed.", "", *lines]  # fmt: skip


def _kept(cells: Cells, prefix: str, load: str, server: str) -> tuple[str, ...]:
    """A row; empty if there is nothing to tell."""
    found = cells.of(prefix)
    if not found:
        return ()
    unsure = " (client short of CPU)" if any(cell["client_saturated"] for cell in found.values()) else ""
    in_time = _spread(_rounds(cells, prefix, "attainment").values(), 2, 100)
    times = (_spread(_rounds(cells, prefix, figure).values(), 1, 1e3) for figure in ("p50_s", "p99_s"))
    batch = _spread(_rounds(cells, prefix, "mean_batch").values(), 1)
    return (*load.split("/"), server, in_time + _noise(found) + unsure, *times, batch, _outcomes(found))


def _outcomes(found: dict[str, Cell]) -> str:
    """200: 1,234, 503: 5"""
    total: dict[str, int] = {}
    for cell in found.values():
        for name, number in cell["outcomes"].items():
            total[name] = total.get(name, 0) + number
    return ", ".join(f"{name}: {number:,}" for name, number in total.items())


def _speaks(document: dict[str, Any], work: str) -> list[str]:
    told = {key.partition("/")[2]: value for key, value in document.get("speaks", {}).items()
            if key.startswith(f"{work}/")}  # fmt: skip
    lines = [f"- {server}: {how}" for server, how in told.items()]
    if not document["works"][work]["exact"]:
        lines.append("- Under load only the status of an answer is checked: its bytes differ with the batch.")
    return ["How they are asked:", "", *lines, ""] if told else []


def _versions(document: dict[str, Any]) -> list[str]:
    return [f"- {whose}: {', '.join(f'{name} {version}' for name, version in told.items())}"
            for whose, told in document["versions"].items()]  # fmt: skip
