"""Waiting: the queues of all classes, and what the next batch is. No event loop, no thread, no clock of its own.

It finds the class whose turn it is, its first request, the model for that, and how many more go with it; the rest of
the batch is filled from other classes. What it decides by is in cluster/control/.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass

from cluster.control.batching import Rival, split, wait_s
from cluster.control.latency import Curve
from cluster.errors import InvalidRequest
from cluster.scheduling import Scheduling
from serve_apps.executor import RUNS, Model, Request
from serve_apps.queues import FASTEST, ClassQueue, Entry, Lane, Meter, first

_MAX_CURVES = 512
"""Shapes are the clients' to choose."""
_NOTICED_S = 0.01
"""A class that used the executors for less than this lately does not count for others when it has nothing to do."""
_PROBE_EVERY = 128
"""Of batches that could have been larger, one is: what was once measured badly is never tried again otherwise."""


@dataclass(slots=True)
class Batch:
    """What a thread executes, and on whose account."""

    requests: list[Request]
    rows: int
    model: Model
    curve: Curve
    started: float
    until: float
    """When it should be done."""
    shares: list[tuple[ClassQueue, int]]
    """Rows of each class."""
    charged: bool


class Waiting:
    """See above; `places` and `executors` are set by its owner."""

    def __init__(self) -> None:
        self.limit = 1
        """Rows of a batch; see `resize`."""
        self.places = 1
        self.executors = 1
        self.live = 0
        self._classes: list[ClassQueue] = []
        self._owners: list[ClassQueue] = []
        """Of the last threads, from the last on: whatever has fewer runtimes than there are threads uses the first."""
        self._now_served = 0.0
        """The tag of the class that was served last: where one begins that had nothing to do."""
        self._curves: dict[tuple[Model, tuple[object, ...]], Curve] = {}
        self._busy = Meter()
        self._probes = 0
        self._last_signature: tuple[object, ...] = ()

    def rearrange(self, scheduling: Scheduling) -> None:
        """Queue what waits anew, by these rules."""
        before = [entry for queue in self._classes for entry in queue.entries()]
        known = {queue.spec.name: queue for queue in self._classes}
        self._scheduling = scheduling
        self._classes = []
        for rank, (spec, portion) in enumerate(zip(scheduling.classes, scheduling.portions, strict=True)):
            queue, was = ClassQueue(spec, rank, portion, self._now_served), known.get(spec.name)
            if was is not None:
                queue.tag, queue.caution = was.tag, was.caution
            self._classes.append(queue)
        self._ranks = [scheduling.rank(priority) for priority in range(len(self._classes) + 1)]
        self._shared_slots = sum(spec.slots for spec in scheduling.classes)
        self._owners = [queue for queue in self._classes for _ in range(queue.spec.streams)]
        self.live = 0
        for entry in sorted(before, key=lambda entry: entry[1]):
            request = entry[2]
            queue = self.queue(request.priority)
            self.push(queue, self.lane(queue, request), entry, request.cost_s)

    def queue(self, priority: int) -> ClassQueue:
        """Of the class of such a request."""
        ranks = self._ranks
        return self._classes[ranks[priority] if 0 <= priority < len(ranks) else ranks[-1 if priority > 0 else 0]]

    def lane(self, queue: ClassQueue, request: Request) -> Lane:
        """Where in this class it waits. Raises InvalidRequest if none of its models is accurate enough."""
        models, wish = request.models, request.accuracy
        assert models is not None
        wish = queue.spec.accuracy if wish is None else wish
        allowed = len(models) if wish == "balanced" else 1 if wish == "best" else FASTEST
        if not isinstance(wish, str):
            allowed = sum(model.accuracy >= wish for model in models)
            if not allowed:
                raise InvalidRequest(
                    f"accuracy={wish:g} is more than any variant here has; the best has {models[0].accuracy:g}"
                )
        key = (models, allowed, request.signature)
        lane = queue.lanes.get(key)
        if lane is None:
            curves = tuple(self._curve(model, request.signature) for model in models)
            lane = queue.lanes[key] = Lane(models, allowed, request.signature, curves)
        return lane

    def _curve(self, model: Model, signature: tuple[object, ...]) -> Curve:
        curve = self._curves.get((model, signature))
        if curve is None:
            if len(self._curves) >= _MAX_CURVES:
                del self._curves[next(iter(self._curves))]
            curve = self._curves[model, signature] = Curve(model.seconds, limit=self.limit)
        return curve

    def resize(self, limit: int) -> None:
        """So many rows in a batch from now on."""
        if limit != self.limit:
            self.limit = limit
            for curve in self._curves.values():
                curve.limit = limit

    def push(self, queue: ClassQueue, lane: Lane, entry: Entry, cost_s: float) -> None:
        """Queue up."""
        if not queue.live and queue.tag < self._now_served:
            queue.tag = self._now_served
        queue.push(entry, lane, cost_s)
        self.live += 1

    def drop(self, request: Request, ticket: int = RUNS) -> None:
        """It no longer waits."""
        request.queue.drop(request, ticket)
        self.live -= 1

    def clear(self) -> list[Request]:
        """Let all go."""
        gone = [entry[2] for queue in self._classes for entry in queue.entries()]
        for request in gone:
            self.drop(request)
        return gone

    def expired(self, now: float) -> tuple[list[Request], float]:
        """Let those go whose time has run out; also the next deadline."""
        waiting = [entry[2] for queue in self._classes for entry in queue.entries()]
        gone = [request for request in waiting if request.deadline <= now]
        for request in gone:
            self.drop(request)
        return gone, min((request.deadline for request in waiting if request.deadline > now), default=math.inf)

    def need(self, models: set[Model]) -> bool:
        """Whether somebody waits whom one of these may have to execute."""
        return any(lane.live and not models.isdisjoint(lane.models) for q in self._classes for lane in q.lanes.values())

    def forget(self, models: tuple[Model, ...]) -> None:
        """Only these are served from now on: what nobody waits for must not keep others alive."""
        for queue in self._classes:
            queue.forget()
        waited_for = {model for queue in self._classes for lane in queue.lanes.values() for model in lane.models}
        self._curves = {key: each for key, each in self._curves.items() if key[0] in waited_for or key[0] in models}

    def has_place(self, queue: ClassQueue) -> bool:
        """Whether one more of this class fits in."""
        if self.live < self.places and not self._shared_slots:
            return True
        if queue.live < queue.spec.slots:
            return True
        taken = sum(max(0, each.live - each.spec.slots) for each in self._classes)
        return taken < self.places - self._shared_slots

    def evict(self, queue: ClassQueue) -> Request | None:
        """Let the newest request of the lowest class go that is below this one and fills more than its own places."""
        for each in self._classes[:queue.rank:-1]:
            if each.live > each.spec.slots and (request := each.newest()) is not None:
                self.drop(request)
                return request
        return None

    def delay_s(self, queue: ClassQueue, deadline: float, own_s: float, now: float, free_in_s: float) -> float:
        """How long such a request would wait until it is executed."""
        executors = max(1, self.executors - len(self._owners) + queue.spec.streams)
        rivals = [
            Rival(each.portion, each.work_s, each.usage.rate(now))
            for each in self._classes
            if each is not queue and (each.live or each.usage.total > _NOTICED_S)
        ]
        if not rivals:
            return free_in_s + queue.ahead_s(deadline) / executors
        return wait_s(
            queue.ahead_s(deadline), own_s, queue.portion, rivals, executors=executors, free_in_s=free_in_s
        )  # fmt: skip

    def serves(self, thread: int, queue: ClassQueue) -> bool:
        """Whether this thread executes requests of this class."""
        return self._owner(thread) in (None, queue)

    def _owner(self, thread: int) -> ClassQueue | None:
        from_last = self.executors - 1 - thread
        return self._owners[from_last] if 0 <= from_last < len(self._owners) else None

    def total_s(self, level: int) -> float:
        """Of the executors' time, all that waits, at this level."""
        lanes = (lane for queue in self._classes for lane in queue.lanes.values() if lane.live)
        return sum(lane.rows * lane.curves[lane.index(level)].row_s for lane in lanes)

    def revalue(self, level: int) -> None:
        """What waits will cost something else now."""
        for queue in self._classes:
            queue.work_s = 0.0
            for _, _, request in queue.entries():
                curve = request.lane.curves[request.lane.index(level)]
                request.cost_s = (request.rows - request.start) * curve.row_s
                queue.work_s += request.cost_s

    def busy_above(self, models: tuple[Model, ...], level: int, now: float) -> float:
        """How many executors the load of late would keep busy one level further up."""
        if level == 0:
            return 0.0
        curves = [self._curves.get((model, self._last_signature)) for model in models[level - 1 : level + 1]]
        above_s, here_s = (curve.row_s if curve is not None else 0.0 for curve in curves)
        return self._busy.rate(now) * above_s / here_s if here_s else 0.0

    def form(self, thread: int, now: float, level: int) -> tuple[Batch | None, list[Request]]:
        """The next batch for this thread, if there is one, and those that are given up because they would be late."""
        late: list[Request] = []
        while self.live:
            queue, head = self._next(thread, now)
            if head is None:
                break
            batch = self._with(head, queue, thread, now, level, late)
            if batch is not None:
                self._charge(batch, batch.until - now)
                return batch, late
        return None, late

    def _next(self, thread: int, now: float) -> tuple[ClassQueue, Request | None]:
        """Whose turn it is."""
        own = self._owner(thread)
        if own is not None:
            return own, own.head(thread)
        busy = [queue for queue in self._classes if queue.live]
        overdue = [
            (oldest.arrived, queue.rank, oldest)
            for queue in busy
            if (wait_s := queue.spec.max_wait_s) is not None and now >= queue.floor_due
            and (oldest := queue.oldest()) is not None and oldest.arrived + wait_s <= now
            and oldest.lane.threads > thread
        ]  # fmt: skip
        for queue in self._classes:
            owed = queue.owed
            if owed is None:
                continue
            if owed.ticket < 0:  # it waits no longer
                queue.owed = None
            elif owed.lane.threads > thread:
                overdue.append((-math.inf, queue.rank, owed))
        if overdue:
            *_, oldest = min(overdue)
            queue = oldest.queue
            queue.floor_due = now + (queue.spec.max_wait_s or 0.0)
            return queue, oldest
        if len(busy) > 1:
            busy.sort(key=lambda queue: queue.tag)
        for queue in busy:
            head = queue.head(thread)
            if head is not None:
                self._now_served = max(self._now_served, queue.tag)
                return queue, head
        return busy[0], None

    def _with(
        self, head: Request, queue: ClassQueue, thread: int, now: float, level: int, late: list[Request]
    ) -> Batch | None:
        """The batch that begins with this request; None if it was given up."""
        lane = head.lane
        need = min(head.rows - head.start, self.limit)
        slack_s = head.deadline - now
        index = lane.index(level)
        while index + 1 < lane.wish and lane.curves[index].seconds(need) > slack_s:
            index += 1  # rather less accurate than not at all
        curve, model = lane.curves[index], lane.models[index]
        if slack_s <= 0 or (curve.seconds(need) > slack_s and not head.sure):
            self.drop(head)
            late.append(head)
            return None
        self._last_signature = lane.signature

        def alike(other: ClassQueue) -> list[Lane]:
            return [
                each for each in other.lanes.values()
                if each is lane or (
                    each.live and each.signature == lane.signature and each.threads > thread
                    and each.models[each.index(level)] is model
                )
            ]  # fmt: skip

        mine = alike(queue)
        sources = [(queue, mine)]
        shared = self._owner(thread) is None
        if shared and self.live > queue.live:
            others = sorted((each for each in self._classes if each is not queue and each.live), key=lambda q: q.tag)
            sources += [(each, alike(each)) for each in others]
        reach = min(self.limit, sum(each.rows for _, lanes in sources for each in lanes))
        target = max(need, self._worth(curve, reach))
        if curve.upper(target) > slack_s:
            chosen = [head] if head.sure else self._split(head, mine, target, curve, now, late)
            for request in chosen:
                self._take(request)
            shares = [(queue, sum(request.stop - request.start for request in chosen))]
        else:
            chosen, shares = self._fill(head, sources, target, now, now + curve.upper(target), late)
        rows = sum(share for _, share in shares)
        until = now + curve.seconds(rows)
        return Batch(chosen, rows, model, curve, now, until, shares, shared)

    def _worth(self, curve: Curve, reach: int) -> int:
        """How many rows to execute together, of so many."""
        rows = curve.pays(reach)
        if rows < reach:
            self._probes += 1
            if self._probes % _PROBE_EVERY == 0:
                return min(2 * rows, reach)
        return rows

    def _split(
        self, head: Request, lanes: list[Lane], target: int, curve: Curve, now: float, late: list[Request]
    ) -> list[Request]:
        """Whom to take where the first has no time for all; see control/batching.py."""
        candidates, needs, rows = [head], [min(head.rows - head.start, self.limit)], 0
        for *_, request in heapq.nsmallest(2 * target, (entry for lane in lanes for entry in lane.entries())):
            if request is head:
                continue
            need = min(request.rows - request.start, self.limit)
            if needs[0] + rows + need > 2 * target:
                break
            rows += need
            candidates.append(request)
            needs.append(need)
        skip, take = split(needs, [request.deadline - now for request in candidates], curve, target)
        for request in candidates[:skip]:
            self.drop(request)
            late.append(request)
        return candidates[skip : skip + take]

    def _fill(
        self, head: Request, sources: list[tuple[ClassQueue, list[Lane]]], target: int, now: float, finish: float,
        late: list[Request],
    ) -> tuple[list[Request], list[tuple[ClassQueue, int]]]:  # fmt: skip
        """So many rows, from the head on; all of them must have time until `finish`."""
        chosen, shares = [head], []
        rows, before = self._take(head), 0
        for queue, lanes in sources:
            while rows < target:
                entry = lanes[0].head() if len(lanes) == 1 else first(lanes)
                if entry is None:
                    break
                request = entry[2]
                if request.deadline < finish:
                    # It could only go before the one that is due: with one executor it is late by now.
                    if request.deadline > now and (self.executors > 1 or queue.rank <= head.queue.rank):
                        break
                    self.drop(request)
                    late.append(request)
                    continue
                if rows + min(request.rows - request.start, self.limit) > target:
                    break
                rows += self._take(request)
                chosen.append(request)
            if rows > before:
                shares.append((queue, rows - before))
            before = rows
        return chosen, shares

    def _take(self, request: Request) -> int:
        self.drop(request)
        need = min(request.rows - request.start, self.limit)
        request.stop = request.start + need
        return need

    def _charge(self, batch: Batch, seconds: float) -> None:
        """To the classes whose requests are in it. A thread of its own costs a class nothing."""
        if batch.charged:
            for queue, rows in batch.shares:
                queue.tag += seconds * rows / batch.rows / queue.portion

    def account(self, batch: Batch, now: float, *, learn: bool) -> None:
        """It was executed: put right what was charged by forecast."""
        took_s = now - batch.started
        self._charge(batch, took_s - (batch.until - batch.started))
        self._busy.add(took_s, now)
        for queue, rows in batch.shares:
            queue.refused_at = math.inf
            queue.usage.add(took_s * rows / batch.rows, now)
        if learn:
            batch.curve.observe(batch.rows, took_s)
            batch.curve.checked_at = now
