"""Who is taken in, who is refused at once, and how each is told."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from cluster.errors import DeadlineExceeded, InvalidRequest, Overloaded, QuotaExceeded
from cluster.scheduling import PriorityClass, Scheduling
from serve_apps.executor import Answer, Request
from tests.unit.serve_apps.gated_model import GatedModel, WatchedBatcher, at_gate, finish, model_of, rows, run, step


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


async def busy(gate: GatedModel, clock: Clock, **options: Any) -> WatchedBatcher:
    """One second per row, as it was told, and request 0 at the model."""
    batcher = WatchedBatcher(model_of(gate, seconds={n: float(n) for n in (1, 2, 4, 8)}), clock=clock, **options)
    batcher.submit(rows(0))
    await at_gate(gate, batcher)
    return batcher


@pytest.mark.parametrize(("late", "error"), [("503", Overloaded), ("408", DeadlineExceeded)])
def test_who_would_be_late_is_refused_at_once(late: str, error: type[Exception]) -> None:
    async def test() -> None:
        gate, clock = GatedModel(), Clock()
        batcher = await busy(gate, clock, scheduling=Scheduling.model_validate({"late": late}))
        assert batcher.predicted_delay_s() == pytest.approx(1.0)
        for n in (1, 2, 3):
            batcher.submit(rows(n), timeout_s=4.4)
        assert batcher.predicted_delay_s() == pytest.approx(4.0)
        with pytest.raises(error, match=r"its timeout is 4\.5 s"):
            batcher.submit(rows(4), timeout_s=4.5)
        soon = batcher.submit(rows(5), timeout_s=3.0)  # by its deadline it stands before them
        assert batcher.counters.refused == 1
        assert await finish(gate, batcher) == [[5], [1], [2], [3]]
        assert (await soon).outputs["y"].tolist() == [50]

    run(test())


@pytest.mark.parametrize(("late", "error"), [("503", Overloaded), ("408", DeadlineExceeded)])
def test_who_has_become_late_is_refused_when_the_batch_forms(late: str, error: type[Exception]) -> None:
    async def test() -> None:
        gate, clock = GatedModel(), Clock()
        batcher = await busy(gate, clock, scheduling=Scheduling.model_validate({"late": late}))
        hurried = batcher.submit(rows(1), timeout_s=3.0)
        patient = batcher.submit(rows(2), timeout_s=30.0)
        clock.now += 2.5  # the model took longer than it was believed to
        assert await finish(gate, batcher) == [[2]]
        with pytest.raises(error, match="before its timeout"):
            await hurried
        await patient
        assert batcher.counters.expired == 1

    run(test())


@pytest.mark.parametrize(("late", "retry_after_s"), [("503", 3.0), ("408", None)])
def test_whose_time_is_over_hears_when_to_try_again_where_the_policy_says_so(
    late: str, retry_after_s: float | None
) -> None:
    async def test() -> None:
        gate, clock = GatedModel(), Clock()
        batcher = await busy(gate, clock, scheduling=Scheduling.model_validate({"late": late}))
        expiring = batcher.submit(rows(1), timeout_s=5.0)
        for n in (2, 3, 4):
            batcher.submit(rows(n))
        assert batcher.predicted_delay_s() == pytest.approx(5.0)
        clock.now += 6.0
        batcher._sweep()
        with pytest.raises(DeadlineExceeded, match="before the request was executed") as told:
            await expiring
        elsewhere = batcher.expired("it ran out on its way")
        for error in (told.value, elsewhere):
            assert error.retry_after_s == (retry_after_s and pytest.approx(retry_after_s))
        assert str(elsewhere) == "it ran out on its way"
        assert await finish(gate, batcher) == [[2], [3], [4]]

    run(test())


def test_who_was_late_makes_the_next_forecasts_of_its_class_more_careful() -> None:
    async def test() -> None:
        gate, clock = GatedModel(), Clock()
        batcher = await busy(gate, clock)
        for n in (1, 2):
            batcher.submit(rows(n), priority=2, timeout_s=3.5)
            clock.now += 4
            batcher._sweep()
            clock.now -= 3.8
        assert batcher.counters.expired == 2
        clock.now -= 0.4  # as it was at first: one second until the executor is free, and at most 1.3 for its own
        batcher.submit(rows(9), priority=2)
        with pytest.raises(Overloaded):
            batcher.submit(rows(3), priority=2, timeout_s=2.35)
        batcher.submit(rows(4), priority=2, timeout_s=2.45)
        assert await finish(gate, batcher) == [[4], [9]]

    run(test())


def test_a_class_whose_requests_are_all_refused_gets_one_in_now_and_then() -> None:
    async def test() -> None:
        gate, clock = GatedModel(), Clock()
        batcher = await busy(gate, clock)
        for n in range(1, 4):
            batcher.submit(rows(n), priority=1, timeout_s=100.0)

        def low(n: int) -> bool:
            try:
                batcher.submit(rows(n), priority=3, timeout_s=1.5)
            except Overloaded:
                return True
            return False

        assert [low(10), low(11)] == [True, True]
        clock.now += 1.0  # the class's max_wait_s
        assert [low(12), low(13)] == [False, True], "one at a time"
        assert (await finish(gate, batcher))[0] == [12]

    run(test())


def test_a_wrong_belief_that_refuses_everybody_is_tested_now_and_then() -> None:
    async def test() -> None:
        clock = Clock()
        batcher = WatchedBatcher(model_of(lambda inputs: {"y": inputs["x"]}, seconds={1: 5.0}), clock=clock)
        for _ in range(40):  # it is a hundred times as fast by now
            clock.now += 1.1
            await batcher.submit(rows(1), timeout_s=0.05)
            clock.now += 0.1
            if batcher._waiting._curves and next(iter(batcher._waiting._curves.values())).seconds(1) < 0.01:
                break
        else:
            pytest.fail("it never learnt better")
        await batcher.submit(rows(1), timeout_s=0.05)
        batcher.close()

    run(test())


def test_the_class_decides_how_long_a_request_would_wait() -> None:
    async def test() -> None:
        gate, clock = GatedModel(), Clock()
        batcher = await busy(gate, clock)
        for n in range(1, 21):
            batcher.submit(rows(n), priority=3, timeout_s=30.0)
        assert batcher.predicted_delay_s(priority=3) > 20
        assert batcher.predicted_delay_s(priority=1) < 3
        batcher.submit(rows(30), priority=1, timeout_s=4.0)
        for n in range(31, 38):
            batcher.submit(rows(n), priority=3, timeout_s=30.0)
        with pytest.raises(Overloaded):
            batcher.submit(rows(38), priority=3, timeout_s=30.0)
        assert (await finish(gate, batcher))[0] == [30]

    run(test())


def test_a_higher_class_takes_the_place_of_a_lower_one() -> None:
    async def test() -> None:
        gate = GatedModel()
        batcher = await busy(gate, Clock(), max_queued_requests=2)
        low = [batcher.submit(rows(n), priority=3) for n in (1, 2)]
        high = batcher.submit(rows(3), priority=1)
        with pytest.raises(Overloaded, match="a higher class"):
            await low[1]
        with pytest.raises(Overloaded, match="max_queued_requests=2"):
            batcher.submit(rows(4), priority=3)
        assert await finish(gate, batcher) == [[3], [1]]
        assert (await high).outputs["y"].tolist() == [30]
        assert (batcher.counters.evicted, batcher.counters.refused) == (1, 1)

    run(test())


def test_slots_are_kept_for_their_class() -> None:
    async def test() -> None:
        gate = GatedModel()
        keeps = Scheduling(classes=(PriorityClass(name="high", slots=1), PriorityClass(name="normal")))
        batcher = await busy(gate, Clock(), max_queued_requests=3, scheduling=keeps)
        for n in (1, 2):
            batcher.submit(rows(n))
        with pytest.raises(Overloaded):
            batcher.submit(rows(3))
        batcher.submit(rows(4), priority=1)
        assert batcher.queued == 3
        await finish(gate, batcher)

    run(test())


def test_a_tenant_is_kept_to_its_quota_and_told_when_to_come_back() -> None:
    async def test() -> None:
        gate, clock = GatedModel(), Clock()
        quotas = Scheduling.model_validate({"tenants": {"small": {"rate_rps": 2, "burst": 1}}})
        batcher = await busy(gate, clock, scheduling=quotas)
        batcher.submit(rows(1), tenant="small")
        with pytest.raises(QuotaExceeded, match="quota of 2 requests/s") as refused:
            batcher.submit(rows(2), tenant="small")
        assert refused.value.retry_after_s == pytest.approx(0.5)
        batcher.submit(rows(3), tenant="other")
        clock.now += 0.5
        batcher.submit(rows(4), tenant="small")
        await finish(gate, batcher)

    run(test())


def test_a_floor_that_nobody_reaches_is_the_requests_mistake() -> None:
    async def test() -> None:
        batcher = await busy(GatedModel(), Clock())
        with pytest.raises(InvalidRequest, match=r"accuracy=0.99 .* the best has 0.9"):
            batcher.submit(rows(1), accuracy=0.99)
        batcher.close()

    run(test())


def test_new_rules_hold_for_those_that_wait() -> None:
    async def test() -> None:
        gate = GatedModel()
        batcher = await busy(gate, Clock())
        for n, priority in ((1, 3), (2, 2), (3, 1)):
            batcher.submit(rows(n), priority=priority)
        one = Scheduling(classes=(PriorityClass(name="normal"),))
        batcher.reconfigure(scheduling=one)
        assert batcher.queued == 3
        assert await finish(gate, batcher) == [[1], [2], [3]]

    run(test())


def test_done_that_raises_costs_the_neighbours_nothing(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        gate = GatedModel()
        batcher = WatchedBatcher(gate)
        batcher.submit(rows(0))
        await at_gate(gate, batcher)

        def broken(request: Request, outcome: Answer | object) -> None:
            raise RuntimeError("the connection is gone")

        batcher.put(Request(rows(1), broken))
        other = batcher.submit(rows(2))
        await step(gate, batcher)
        await step(gate, batcher)
        assert (await other).outputs["y"].tolist() == [20]
        batcher.close()

    with caplog.at_level(logging.ERROR, logger="ray.serve"):
        run(test())
    assert "the connection is gone" in caplog.text
