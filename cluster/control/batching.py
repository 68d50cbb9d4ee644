"""Who is next, how long will it wait, and which of those that wait go together. Pure: the caller owns queue and clock.

Between classes: start-time fair queueing (Goyal, Vin, Cheng 1996). Each class has a tag that grows by the seconds which
it used, divided by its portion; the class with the least tag is next. A class that was idle starts at the tag of the
one that is served, so that it can neither save time up nor be made to pay for what was free.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol


class Latency(Protocol):
    """What these decisions need of cluster/control/latency.py."""

    def seconds(self, rows: int) -> float: ...

    def upper(self, rows: int) -> float: ...

    def fits(self, budget_s: float, rows: int) -> int: ...


class Rival(NamedTuple):
    """Another class, as one class's wait depends on it."""

    portion: float
    work_s: float
    """Of the executors' time, what waits in it."""
    usage: float
    """Executors that it kept busy lately, on average: it will go on so."""


def wait_s(
    ahead_s: float, own_s: float, portion: float, rivals: Iterable[Rival], *, executors: int, free_in_s: float
) -> float:
    """How long a request waits until it is executed: what executes now, then what is ahead of it in its own class, and
    meanwhile of each other class what that has, but not more than its portion lets it take."""
    through_s = ahead_s + own_s
    work_s = ahead_s
    rivals = list(rivals)
    if rivals:
        rough_s = (ahead_s + sum(rival.work_s for rival in rivals)) / executors
        for rival in rivals:
            work_s += min(rival.work_s + rival.usage * rough_s, through_s * rival.portion / portion)
    return free_in_s + work_s / executors


class Split(NamedTuple):
    """Of the requests that wait, by deadline: the first `skip` are given up, the next `take` go together."""

    skip: int
    take: int


def split(rows: Sequence[int], slacks_s: Sequence[float], latency: Latency) -> Split:
    """Which of these to execute, when the first has no time for a batch of all of them. At least one is taken or given
    up. Rows and time left of each request, by deadline.

    Serving the first ones in a small batch keeps their deadlines, and may cost those of everybody behind them: under
    overload the batches would get ever smaller and nobody be in time (Nexus, SOSP 2019, section 6.3). So both ways are
    counted: a small batch now and the rest after it, or the rest at once without those that would hold it up.
    """
    if latency.seconds(rows[0]) > slacks_s[0]:
        return Split(1, 0)
    total = sum(rows)
    small, small_rows = 1, rows[0]
    room = latency.fits(slacks_s[0], total)
    while small < len(rows) and small_rows + rows[small] <= room:
        small_rows += rows[small]
        small += 1
    rest_s = latency.seconds(small_rows) + latency.upper(total - small_rows) if small < len(rows) else 0.0
    in_time = small + sum(slack >= rest_s for slack in slacks_s[small:])
    left = total
    for skip in range(1, len(rows)):
        left -= rows[skip - 1]
        if len(rows) - skip <= in_time:
            break
        if latency.upper(left) <= slacks_s[skip]:
            return Split(skip, len(rows) - skip)
    return Split(0, small)
