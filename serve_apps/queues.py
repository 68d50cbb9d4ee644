"""Requests of one priority class, until they are executed: earliest deadline first, then in the order they came.

A lane holds those that may share a batch: inputs that can be joined, and the same models allowed. Nothing is ever
searched for or removed from the middle: an entry is alive while its ticket is that of its request, and dead ones are
dropped when they come to the front. Lists of entries are compacted when most of what they hold is dead, so that memory
follows what waits.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterable, Iterator

from cluster.control.admission import Caution
from cluster.control.latency import Curve
from cluster.scheduling import PriorityClass
from serve_apps.executor import RUNS, Model, Request

Entry = tuple[float, int, Request]
"""What it is ordered by, its ticket, the request. Tuples are compared in C, and tickets differ: a comparison never gets
to the request."""
FASTEST = 0
"""The wish for whichever model is fastest; a positive number allows the so many first, that is most accurate, ones."""
_SLACK = 64
_MAX_EMPTY_LANES = 16


class Lane:
    """Requests of a class that are shaped alike and allow the same models."""

    __slots__ = ("curves", "heap", "live", "models", "rows", "signature", "threads", "wish")

    def __init__(
        self, models: tuple[Model, ...], wish: int, signature: tuple[object, ...], curves: tuple[Curve, ...]
    ) -> None:
        self.models = models
        self.wish = wish
        self.signature = signature
        self.curves = curves
        self.threads = min(len(model.infer) for model in models)
        self.heap: list[Entry] = []
        self.live = 0
        self.rows = 0

    def index(self, level: int) -> int:
        """Which of its models is next, so many steps below the most accurate one."""
        if self.wish != FASTEST:
            return min(level, self.wish - 1)
        # The least accurate is taken to be the fastest until it is known better.
        if not self.curves[-1].known:
            return len(self.models) - 1
        known = (i for i, curve in enumerate(self.curves) if curve.known)
        return min(known, key=lambda i: self.curves[i].row_s)

    def least_s(self, rows: int) -> float:
        """By the fastest of the models that it allows; 0 if that is not known."""
        if self.wish == FASTEST:
            return self.curves[self.index(0)].upper(rows)
        if self.wish == 1:
            return self.curves[0].upper(rows)
        return min(curve.upper(rows) for curve in self.curves[: self.wish])

    def entries(self) -> Iterator[Entry]:
        """All that are alive, in any order."""
        return (entry for entry in self.heap if entry[1] == entry[2].ticket)

    def head(self) -> Entry | None:
        """The first that is alive."""
        heap = self.heap
        while heap:
            entry = heap[0]
            if entry[1] == entry[2].ticket:
                return entry
            heapq.heappop(heap)
        return None


class ClassQueue:
    """The lanes of one class, and its account."""

    __slots__ = (
        "arrivals", "caution", "floor_due", "lanes", "latest", "live", "owed", "portion", "rank", "refused_at",
        "spec", "tag", "usage", "work_s",
    )  # fmt: skip

    def __init__(self, spec: PriorityClass, rank: int, portion: float, tag: float) -> None:
        self.spec = spec
        self.rank = rank
        self.portion = portion
        self.tag = tag
        """Executor seconds used, divided by the portion."""
        self.caution = Caution()
        self.usage = Meter()
        """Executor seconds per second."""
        self.lanes: dict[tuple[object, ...], Lane] = {}
        self.arrivals: deque[Entry] = deque()
        self.live = 0
        self.work_s = 0.0
        """Of the executors' time, what waits here."""
        self.latest = -math.inf
        """No request stands behind this in the order."""
        self.floor_due = -math.inf
        """Before this its oldest request has no right of way."""
        self.refused_at = math.inf
        """When one was first refused since one was executed."""
        self.owed: Request | None = None
        """Let in whatever the forecast said, because none had been for so long; it has the right of way."""

    def push(self, entry: Entry, lane: Lane, cost_s: float) -> None:
        """Queue up in this lane."""
        request = entry[2]
        request.queue, request.lane, request.cost_s, request.ticket = self, lane, cost_s, entry[1]
        heapq.heappush(lane.heap, entry)
        self.arrivals.append(entry)
        lane.live += 1
        lane.rows += request.rows - request.start
        self.live += 1
        self.work_s += cost_s
        if entry[0] > self.latest:
            self.latest = entry[0]
        if len(self.arrivals) > 2 * self.live + _SLACK:
            self.arrivals = deque(entry for entry in self.arrivals if _is_alive(entry))
        if len(lane.heap) > 2 * lane.live + _SLACK:
            lane.heap = list(lane.entries())
            heapq.heapify(lane.heap)

    def drop(self, request: Request, ticket: int = RUNS) -> None:
        """It no longer waits."""
        request.ticket = ticket
        lane = request.lane
        lane.live -= 1
        lane.rows -= request.rows - request.start
        self.live -= 1
        self.work_s -= request.cost_s
        if not lane.live:
            lane.heap.clear()
            if len(self.lanes) > _MAX_EMPTY_LANES:
                self.lanes = {key: each for key, each in self.lanes.items() if each.live}
        if not self.live:
            self.arrivals.clear()
            self.work_s = 0.0
            self.latest = -math.inf

    def forget(self) -> None:
        """Empty lanes keep models alive."""
        self.lanes = {key: lane for key, lane in self.lanes.items() if lane.live}

    def head(self, thread: int) -> Request | None:
        """The next that this thread may execute."""
        entry = first(lane for lane in self.lanes.values() if lane.live and lane.threads > thread)
        return entry[2] if entry is not None else None

    def oldest(self) -> Request | None:
        """Who has waited longest."""
        while self.arrivals and not _is_alive(self.arrivals[0]):
            self.arrivals.popleft()
        return self.arrivals[0][2] if self.arrivals else None

    def newest(self) -> Request | None:
        """Who came last, and of whom nothing was executed yet."""
        while self.arrivals and not _is_alive(self.arrivals[-1]):
            self.arrivals.pop()
        return next((each[2] for each in reversed(self.arrivals) if _is_alive(each) and not each[2].start), None)

    def ahead_s(self, deadline: float) -> float:
        """Executor seconds of those that go before a request with this deadline."""
        if deadline >= self.latest:  # as always if all have the same timeout
            return self.work_s
        return sum(entry[2].cost_s for entry in self.entries() if entry[0] <= deadline)

    def entries(self) -> list[Entry]:
        """All of them, in any order."""
        return [entry for lane in self.lanes.values() for entry in lane.entries()]


class Meter:
    """Amounts as they come -> amount per second, over about the last second."""

    __slots__ = ("_at", "total")
    _SPAN_S = 1.0

    def __init__(self) -> None:
        self.total = 0.0
        self._at = -math.inf

    def add(self, amount: float, now: float) -> None:
        self.total = self.rate(now) * self._SPAN_S + amount
        self._at = now

    def rate(self, now: float) -> float:
        """Per second."""
        if not self.total:
            return 0.0
        return self.total / self._SPAN_S * math.exp((self._at - now) / self._SPAN_S)


def first(lanes: Iterable[Lane]) -> Entry | None:
    """Of all that wait in these lanes."""
    heads = [entry for lane in lanes if (entry := lane.head()) is not None]
    return min(heads) if heads else None


def _is_alive(entry: Entry) -> bool:
    return entry[1] == entry[2].ticket
