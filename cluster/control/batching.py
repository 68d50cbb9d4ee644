"""Who is next, how long will it wait, and which of those that wait go together. Pure: the caller owns queue and clock.

Between classes: start-time fair queueing (Goyal, Vin, Cheng 1996). Each class has a tag that grows by the seconds which
it used, divided by its portion; the class with the least tag is next. A class that was idle starts at the tag of the
one that is served, so that it can neither save time up nor be made to pay for what was free.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple, Protocol

_GAIN = 1.02
"""Nobody is given up for less."""


class Latency(Protocol):
    """What these decisions need of cluster/control/latency.py."""

    def seconds(self, rows: int) -> float: ...

    def upper(self, rows: int) -> float: ...


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
    work_s, going_on = ahead_s, list(rivals)
    while going_on:
        # As if each of them were served as it is now until this request's turn, and would get all that it wants.
        spare = executors - sum(rival.usage for rival in going_on)
        wait = (work_s + sum(rival.work_s for rival in going_on)) / spare if spare > 0 else math.inf
        most_s = [through_s * rival.portion / portion for rival in going_on]
        held = [rival.work_s + rival.usage * wait >= most for rival, most in zip(going_on, most_s, strict=True)]
        if not any(held):
            return free_in_s + wait
        work_s += sum(most for most, is_held in zip(most_s, held, strict=True) if is_held)
        going_on = [rival for rival, is_held in zip(going_on, held, strict=True) if not is_held]
    return free_in_s + work_s / executors


class Split(NamedTuple):
    """Of the requests that wait, by deadline: the first `skip` are given up, the next `take` go together."""

    skip: int
    take: int


def split(rows: Sequence[int], slacks_s: Sequence[float], latency: Latency, most: int) -> Split:
    """Which of these to execute, at most so many rows, when the first has no time for as many. At least one is taken or
    given up. Rows and time left of each request, by deadline.

    Serving the first ones in a small batch keeps their deadlines, and may cost those of everybody behind them: under
    overload the batches would get ever smaller and hardly anybody be in time (Nexus, SOSP 2019, "early drop"). So if
    not all can be in time this way, the batch that begins where most are answered per second is taken, and whoever
    stands before it is given up.
    """
    if latency.seconds(rows[0]) > slacks_s[0]:
        return Split(1, 0)
    ends = [0, *itertools.accumulate(rows)]
    stop = 1
    while stop < len(rows) and _fits(ends[stop + 1], slacks_s[0], latency, most):
        stop += 1
    small = stop
    rest = min(most, ends[-1] - ends[small])
    rest_s = latency.seconds(ends[small]) + (latency.upper(rest) if rest else 0.0)
    if all(slack >= rest_s for slack in slacks_s[small:]):
        return Split(0, small)
    best, best_rate = Split(0, small), _rate(small, ends[small], latency)
    for start in range(1, len(rows)):
        stop = max(stop, start)
        while stop < len(rows) and _fits(ends[stop + 1] - ends[start], slacks_s[start], latency, most):
            stop += 1
        rate = _rate(stop - start, ends[stop] - ends[start], latency) if stop > start else 0.0
        if rate > _GAIN * best_rate:
            best, best_rate = Split(start, stop - start), rate
    return best


def _fits(rows: int, slack_s: float, latency: Latency, most: int) -> bool:
    return rows <= most and latency.upper(rows) <= slack_s


def _rate(requests: int, rows: int, latency: Latency) -> float:
    return requests / max(latency.seconds(rows), 1e-9)
