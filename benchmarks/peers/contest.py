"""What was judged and measured -> who is best, and the tables that say so. Nothing here runs anything.

A row is one result in one runtime: tool, name, runtime, size_bytes, value, to_root, verdict, and rounds: by the round's
number its latency_s, throughput_rps and best_batch.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = dict[str, Any]
OURS = "sluice"


def measured(row: Row, what: str) -> float:
    """Median over its rounds."""
    return float(statistics.median(each[what] for each in row["rounds"].values()))


def able(rows: Sequence[Row], tool: str) -> list[Row]:
    """Those of a tool whose floor holds and whose speed is known."""
    return [r for r in rows if r["tool"] == tool and r["verdict"] == "holds" and r.get("rounds")]


def fastest(rows: Sequence[Row], tool: str) -> Row | None:
    """Most samples per second, of those whose floor holds."""
    return max(able(rows, tool), key=lambda r: measured(r, "throughput_rps"), default=None)


def smallest(rows: Sequence[Row], tool: str) -> Row | None:
    """Fewest bytes, of those whose floor holds; of equals the faster."""
    return min(able(rows, tool), key=lambda r: (r["size_bytes"], -measured(r, "throughput_rps")), default=None)


def contenders(rows: Sequence[Row], tools: Sequence[str], *, count: int = 2) -> list[Row]:
    """Who is measured again, after a round of all: of each tool the `count` fastest and the smallest."""
    kept: list[Row] = []
    for tool in tools:
        ordered = sorted(able(rows, tool), key=lambda r: -measured(r, "throughput_rps"))[:count]
        small = smallest(rows, tool)
        kept += [*ordered, *([small] if small is not None and small not in ordered else [])]
    return kept


def ratio(row: Row, other: Row, what: str) -> float | None:
    """Median over the rounds that both were in of the one's to the other's; None where there is no such round."""
    both = row["rounds"].keys() & other["rounds"].keys()
    return statistics.median(row["rounds"][n][what] / other["rounds"][n][what] for n in both) if both else None


def summary(rows: Sequence[Row], tools: Mapping[str, Row]) -> list[str]:
    """A line for each tool: its fastest and its smallest."""
    ours = fastest(rows, OURS)
    ours_small = smallest(rows, OURS)
    lines = [
        "| tool | fastest whose floor holds | runtime | samples/s (rounds) | ours to it | ms at batch 1 | KiB "
        "| to the trained, points | smallest whose floor holds | KiB | its size to ours |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for tool in tools:
        best, small = fastest(rows, tool), smallest(rows, tool)
        if best is None or small is None:
            lines.append(f"| {tool} | none | | | | | | | none | | |")
            continue
        to_it = None if ours is None or tool == OURS else ratio(ours, best, "throughput_rps")
        size = "" if ours_small is None or tool == OURS else f"{small['size_bytes'] / ours_small['size_bytes']:.2f}x"
        lines.append(
            f"| {tool} | {best['name']} | {best['runtime']} | {_rate(best)} | "
            f"{'' if to_it is None else f'{to_it:.2f}x'} | {measured(best, 'latency_s') * 1e3:.3f} | "
            f"{best['size_bytes'] / 1024:.0f} | {_points(best)} | "
            f"{small['name']} | {small['size_bytes'] / 1024:.0f} | {size} |"
        )
    return [*lines, ""]


def everything(rows: Sequence[Row]) -> list[str]:
    """A line for each row, those that were not measured included."""
    lines = [
        "| tool | variant | runtime | s to make it | KiB | accuracy | to the trained, points [95%] | floor | "
        "ms at batch 1 | samples/s (rounds) | at batch |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        speed = " | |"
        if row.get("rounds"):
            last = list(row["rounds"].values())[-1]
            speed = f"{measured(row, 'latency_s') * 1e3:.3f} | {_rate(row)} | {last['best_batch']}"
        lines.append(
            f"| {row['tool']} | {row['name']} | {row['runtime']} | {row['seconds']:.0f} | "
            f"{row['size_bytes'] / 1024:.0f} | {row['value']:.4f} | {_points(row)} | {row['verdict']} | {speed} |"
        )
    return [*lines, ""]


def _rate(row: Row) -> str:
    rounds = ", ".join(f"{each['throughput_rps']:,.0f}" for each in row["rounds"].values())
    return f"{measured(row, 'throughput_rps'):,.0f} ({rounds})"


def _points(row: Row) -> str:
    apart = row["to_root"]
    low, high = apart["interval"]
    return f"{100 * apart['value']:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]"


def failures(tools: Mapping[str, Row]) -> list[str]:
    """What did not work, and its own words."""
    lines = []
    for tool, told in tools.items():
        if told.get("error"):
            lines.append(f"- {tool}: {told['error']}")
        lines += [f"- {tool}, {way['name']} ({way['does']}): {way['error']}" for way in told["ways"] if "error" in way]
    return lines or ["- nothing"]
