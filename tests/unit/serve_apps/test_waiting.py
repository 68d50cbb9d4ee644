"""Classes, deadlines and models against a clock that is simulated: no thread, no event loop, thousands of requests in a
blink."""

from __future__ import annotations

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.scheduling import PriorityClass, Scheduling
from serve_apps.executor import Model, Request
from serve_apps.queues import ClassQueue
from serve_apps.waiting import Batch, Waiting

ROW = {"x": np.zeros(1)}


def small(n: int) -> float:
    return 0.004 + 0.0002 * n


def per_row(n: int) -> float:
    return 0.02 * n


class Simulation:
    """Executors that take what `seconds` says, and requests put in at their times."""

    def __init__(
        self, seconds: Callable[[int], float], rules: Scheduling, *, threads: int = 1, limit: int = 32,
        places: int = 100_000,
    ) -> None:  # fmt: skip
        known = {1 << k: seconds(1 << k) for k in range(6)}
        self.seconds = seconds
        self.models = (Model("m", "1", 0.9, (lambda x: {},) * threads, known),)
        self.waiting = Waiting()
        self.waiting.places, self.waiting.executors = places, threads
        self.waiting.resize(limit)
        self.waiting.rearrange(rules)
        self.idle = list(range(threads))
        self.now = 0.0
        self.tickets = itertools.count()
        self.batches: list[Batch] = []
        self.done: list[tuple[Request, float]] = []
        self.late: list[Request] = []
        self.refused: Counter[int] = Counter()
        self.until = [0.0] * threads
        self.admits = False

    def put(self, priority: int = 0, timeout_s: float = math.inf) -> Request:
        request = Request(ROW, lambda *_: None, priority=priority, models=self.models)
        queue = self.waiting.queue(priority)
        lane = self.waiting.lane(queue, request)
        request.arrived, request.deadline = self.now, self.now + timeout_s
        self.waiting.push(queue, lane, (request.deadline, next(self.tickets), request), lane.curves[0].row_s)
        return request

    def admit(self, priority: int, timeout_s: float) -> None:
        """Put in if the forecast says that it will be in time, as the Batcher does."""
        queue = self.waiting.queue(priority)
        lane = self.waiting.lane(queue, Request(ROW, lambda *_: None, models=self.models))
        free_in_s = max(0.0, min(self.until) - self.now) if len(self.idle) == 0 else 0.0
        wait_s = self.waiting.delay_s(queue, self.now + timeout_s, lane.curves[0].row_s, self.now, free_in_s)
        if wait_s + lane.least_s(1) <= timeout_s:
            self.put(priority, timeout_s)
        else:
            self.refused[priority] += 1

    def run(self, arrivals: list[tuple[float, int, float]], until: float = math.inf) -> None:
        """Arrivals are (time, priority, timeout); stops when all is done, or then."""
        events: list[tuple[float, int, Any]] = [(at, n, rest) for n, (at, *rest) in enumerate(arrivals)]
        heapq.heapify(events)
        numbers = itertools.count(len(events))
        while events and events[0][0] <= until:
            self.now, _, event = heapq.heappop(events)
            if isinstance(event, tuple):
                thread, batch = event
                self.waiting.account(batch, self.now, learn=True)
                self.done += [(request, self.now) for request in batch.requests]
                self.idle.append(thread)
            else:
                (self.admit if self.admits else self.put)(*event)
            for thread in sorted(self.idle):
                batch, late = self.waiting.form(thread, self.now, 0)
                self.late += late
                if batch is not None:
                    self.idle.remove(thread)
                    self.batches.append(batch)
                    self.until[thread] = batch.until
                    heapq.heappush(events, (self.now + self.seconds(batch.rows), next(numbers), (thread, batch)))

    def busy_s(self) -> dict[int, float]:
        """Executor seconds by priority."""
        used: Counter[int] = Counter()
        for batch in self.batches:
            for request in batch.requests:
                used[request.priority] += self.seconds(batch.rows) / batch.rows  # type: ignore[assignment]
        return dict(used)


def flood(
    priorities: list[int], seconds: float, rate: float, timeout_s: float = math.inf
) -> list[tuple[float, int, float]]:
    """So many per second of each class."""
    return [(n / rate, priority, timeout_s) for n in range(int(seconds * rate)) for priority in priorities]


def rules(*classes: dict[str, Any], **fields: Any) -> Scheduling:
    named = [{"name": str(n), "max_wait_s": None} | each for n, each in enumerate(classes, 1)]
    return Scheduling.model_validate({"classes": named, "default_class": "1"} | fields)


@pytest.mark.parametrize("threads", [1, 3])
def test_time_is_shared_by_weight_while_all_have_work(threads: int) -> None:
    simulation = Simulation(per_row, rules({"weight": 6}, {"weight": 3}, {"weight": 1}), threads=threads)
    simulation.run(flood([1, 2, 3], 20.0, 100.0 * threads), until=20.0)
    used = simulation.busy_s()
    total = sum(used.values())
    assert [used[n] / total for n in (1, 2, 3)] == pytest.approx([0.6, 0.3, 0.1], abs=0.02)


def test_a_share_is_kept_whatever_the_weights_say() -> None:
    simulation = Simulation(per_row, rules({"weight": 100}, {"weight": 1, "share": 0.4}))
    simulation.run(flood([1, 2], 20.0, 100.0), until=20.0)
    used = simulation.busy_s()
    assert used[2] / sum(used.values()) == pytest.approx(0.4, abs=0.03)


def test_what_a_class_does_not_use_goes_to_the_others_and_is_not_saved_up() -> None:
    simulation = Simulation(per_row, rules({"weight": 1}, {"weight": 1}))
    late_start = [(at + 10.0, 1, timeout_s) for at, _, timeout_s in flood([1], 10.0, 100.0)]
    simulation.run(flood([2], 20.0, 100.0) + late_start, until=20.0)
    first = [batch for batch in simulation.batches if batch.started < 10.0]
    assert sum(batch.rows for batch in first) == pytest.approx(500, abs=2), "alone it had all"
    after = Counter(batch.requests[0].priority for batch in simulation.batches if batch.started >= 10.0)
    assert after[1] == pytest.approx(after[2], abs=3), "then half, and not less for what it had before"


def test_the_floor_serves_the_oldest_of_a_class_that_has_hardly_a_weight() -> None:
    simulation = Simulation(per_row, rules({"weight": 1e6}, {"weight": 1e-3, "max_wait_s": 1.0}))
    simulation.run(flood([1], 20.0, 100.0) + flood([2], 20.0, 10.0), until=20.0)
    low = [batch.started for batch in simulation.batches if batch.requests[0].priority == 2]
    assert 15 <= len(low) <= 21, "about once a second, and no more"
    assert max(b - a for a, b in itertools.pairwise(low)) < 1.2


def test_the_floor_also_serves_one_without_a_deadline_among_many_with_one() -> None:
    simulation = Simulation(per_row, rules({"max_wait_s": 1.0}))
    simulation.run([(0.0, 1, math.inf), (0.0, 1, math.inf), *flood([1], 10.0, 100.0, timeout_s=50.0)], until=10.0)
    waited = [at for request, at in simulation.done if request.deadline == math.inf]
    assert len(waited) == 2
    assert max(waited) < 2.2


@settings(deadline=None, max_examples=20)
@given(
    weights=st.lists(st.floats(0.5, 20), min_size=2, max_size=4), load=st.floats(1.2, 4.0), seed=st.integers(0, 1000),
)  # fmt: skip
def test_nobody_starves_whoever_floods(weights: list[float], load: float, seed: int) -> None:
    """Any one class floods; each other one, below its portion, waits at most for a few batches."""
    count = len(weights)
    flooding = 1 + seed % count
    simulation = Simulation(per_row, rules(*({"weight": weight} for weight in weights)))
    total = sum(weights)
    arrivals = flood([flooding], 10.0, 50.0 * load)
    for n, weight in enumerate(weights, 1):
        if n != flooding:
            arrivals += flood([n], 10.0, 0.5 * 50.0 * weight / total)
    simulation.run(arrivals, until=10.0)
    for request, at in simulation.done:
        if request.priority != flooding:
            portion = weights[request.priority - 1] / total
            assert at - request.arrived < 0.02 * (count + 1) * 2 + 0.02 / portion + 0.02


def test_other_classes_fill_the_rest_of_a_batch() -> None:
    simulation = Simulation(small, rules({"weight": 1}, {"weight": 1}))
    simulation.run([(0.0, 1, math.inf), *((0.001, n, math.inf) for n in (1, 1, 2, 2, 2))])
    assert [batch.rows for batch in simulation.batches] == [1, 5]
    assert sorted((queue.rank, rows) for queue, rows in simulation.batches[1].shares) == [(0, 2), (1, 3)]


def test_where_batching_buys_nothing_it_takes_one() -> None:
    simulation = Simulation(per_row, Scheduling())
    simulation.run([(0.0, 0, math.inf)] * 20)
    assert {batch.rows for batch in simulation.batches} == {1}


def test_a_batch_is_no_larger_than_the_tightest_deadline_permits() -> None:
    simulation = Simulation(small, Scheduling())
    simulation.run([(0.0, 0, math.inf)] + [(0.001, 0, math.inf)] * 30 + [(0.001, 0, 0.010)])
    [_, second, third] = simulation.batches
    assert second.requests[0].deadline < math.inf
    assert second.rows < 30
    assert second.started + simulation.seconds(second.rows) <= second.requests[0].deadline
    assert second.rows + third.rows == 31


def test_earliest_deadline_first() -> None:
    simulation = Simulation(per_row, Scheduling())
    simulation.run([(0.0, 0, math.inf)] + [(0.001, 0, 1.0 + 0.1 * (7 * n % 10)) for n in range(10)])
    deadlines = [request.deadline for request, _ in simulation.done[1:]]
    assert deadlines == sorted(deadlines)


def test_overload_makes_some_late_and_not_all() -> None:
    """Twice what can be done, all with 30 ms: batches stay large, and what is executed is in time."""
    simulation = Simulation(small, Scheduling())
    simulation.run(flood([0], 5.0, 6000.0, timeout_s=0.03), until=5.0)
    in_time = sum(at <= request.deadline for request, at in simulation.done)
    assert in_time > 0.99 * len(simulation.done)
    assert in_time > 0.9 * 5.0 * 32 / small(32), "of what it could do at most"


def test_at_twice_the_load_the_high_class_is_in_time_and_none_starves() -> None:
    simulation = Simulation(small, Scheduling())
    simulation.admits = True
    capacity_rps = 32 / small(32)
    rates = {1: 0.3 * capacity_rps, 2: 0.7 * capacity_rps, 3: 1.0 * capacity_rps}
    arrivals = [arrival for priority, rate in rates.items() for arrival in flood([priority], 10.0, rate, 0.05)]
    simulation.run(arrivals, until=10.0)
    in_time = Counter(request.priority for request, at in simulation.done if at <= request.deadline)
    assert in_time[1] > 0.99 * 10.0 * rates[1]
    assert in_time[2] > 0.7 * 10.0 * rates[2]
    assert in_time[3] > 0.03 * 10.0 * rates[3]
    assert sum(in_time.values()) > 0.93 * 10.0 * capacity_rps
    assert sum(in_time.values()) > 0.98 * len(simulation.done), "what is executed is in time"
    assert len(simulation.late) < 0.25 * simulation.refused.total(), "most are refused when they come"


def test_reserved_executors_serve_only_their_class() -> None:
    simulation = Simulation(per_row, rules({"streams": 1}, {}), threads=2)
    simulation.run([*flood([2], 5.0, 200.0), (1.0, 1, math.inf), (3.0, 1, math.inf)], until=5.0)
    high = [(request, at) for request, at in simulation.done if request.priority == 1]
    assert [at - request.arrived for request, at in high] == pytest.approx([0.02, 0.02])
    assert sum(request.priority == 2 for request, _ in simulation.done) == pytest.approx(250, abs=3)


def filled(rules: Scheduling, places: int, priorities: list[int]) -> tuple[Simulation, list[Request]]:
    simulation = Simulation(per_row, rules, places=places)
    return simulation, [simulation.put(priority) for priority in priorities]


def queue_of(simulation: Simulation, priority: int) -> ClassQueue:
    return simulation.waiting.queue(priority)


def test_a_higher_class_pushes_out_the_newest_of_the_lowest_and_never_the_other_way() -> None:
    simulation, requests = filled(Scheduling(), 4, [1, 3, 2, 3])
    waiting = simulation.waiting
    assert not waiting.has_place(queue_of(simulation, 1))
    assert waiting.evict(queue_of(simulation, 3)) is None
    assert waiting.evict(queue_of(simulation, 1)) is requests[3]
    assert waiting.evict(queue_of(simulation, 2)) is requests[1]
    assert waiting.evict(queue_of(simulation, 2)) is None
    assert waiting.evict(queue_of(simulation, 1)) is requests[2]
    assert waiting.evict(queue_of(simulation, 1)) is None
    assert waiting.live == 1


def test_slots_are_for_their_class_only() -> None:
    kept = Scheduling(classes=(PriorityClass(name="high"), PriorityClass(name="normal", slots=2)))
    simulation, requests = filled(kept, 4, [2, 2, 1, 1])
    assert not simulation.waiting.has_place(queue_of(simulation, 1))
    assert not simulation.waiting.has_place(queue_of(simulation, 2))
    assert simulation.waiting.evict(queue_of(simulation, 1)) is None, "those are in their own places"
    for request in requests[:2]:
        simulation.waiting.drop(request)
    assert not simulation.waiting.has_place(queue_of(simulation, 1)), "two are kept"
    assert simulation.waiting.has_place(queue_of(simulation, 2))


def test_the_predicted_wait_comes_true() -> None:
    """With three classes that flood at their weights, for each class."""
    simulation = Simulation(per_row, rules({"weight": 6}, {"weight": 3}, {"weight": 1}))
    simulation.run(flood([1, 2, 3], 2.0, 60.0), until=2.0)
    for priority in (1, 2, 3):
        queue = queue_of(simulation, priority)
        assert queue.live > 5
        predicted_s = simulation.waiting.delay_s(queue, math.inf, 0.02, simulation.now, 0.0)
        more = flood([1, 2, 3], 40.0, 60.0)
        copy = Simulation(per_row, rules({"weight": 6}, {"weight": 3}, {"weight": 1}))
        copy.run(flood([1, 2, 3], 2.0, 60.0) + [(2.0, priority, math.inf)] + [(2.001 + at, *r) for at, *r in more])
        took_s = next(at - r.arrived for r, at in copy.done if r.priority == priority and r.arrived == 2.0)
        assert predicted_s == pytest.approx(took_s, rel=0.35), priority


def test_memory_follows_what_waits() -> None:
    simulation = Simulation(per_row, Scheduling())
    keep = simulation.put(1)
    for _ in range(5000):
        simulation.waiting.drop(simulation.put(1))
    queue = queue_of(simulation, 1)
    assert len(queue.arrivals) < 200
    assert len(keep.lane.heap) < 200
    assert queue.oldest() is keep
