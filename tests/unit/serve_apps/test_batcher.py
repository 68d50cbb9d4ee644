"""What a batch is made of, when it forms, and who waits for whom."""

from __future__ import annotations

import asyncio
import threading

import numpy as np
import pytest

from cluster.errors import ConfigError, DeadlineExceeded, NotReady, Overloaded
from serve_apps.batcher import Batcher
from tests.unit.serve_apps.gated_model import (
    GatedModel,
    WatchedBatcher,
    at_gate,
    finish,
    gated,
    model_of,
    rows,
    run,
    step,
    until,
)


def test_an_idle_server_answers_at_once() -> None:
    async def test() -> None:
        batcher = Batcher([model_of(lambda inputs: {"y": inputs["x"] * 10})])
        assert (await batcher.submit(rows(7))).outputs["y"].tolist() == [70]
        assert batcher.counters.batch_sizes == {1: 1}
        batcher.close()

    run(test())


def test_a_batch_forms_when_the_executor_frees() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=4)
        futures = [batcher.submit(rows(n)) for n in (1, 2, 3, 4, 5)]
        assert batcher.queued == 5
        assert await finish(model, batcher) == [[1, 2, 3, 4], [5]]
        assert [(await future).outputs["y"].tolist() for future in futures] == [[10], [20], [30], [40], [50]]

    run(test())


def test_class_then_deadline_then_arrival() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=1, clock=lambda: 1000.0)
        batcher.submit(rows(1))
        batcher.submit(rows(2))
        batcher.submit(rows(3), timeout_s=200)
        batcher.submit(rows(4), timeout_s=100)
        batcher.submit(rows(5), priority=1 << 61)  # beyond the last class is the last
        batcher.submit(rows(6), priority=3)
        batcher.submit(rows(7), priority=1)
        batcher.submit(rows(8), priority=1, timeout_s=100)
        order = [call[0] for call in await finish(model, batcher)]
        assert order == [8, 7, 4, 3, 1, 2, 5, 6]

    run(test())


def test_a_request_that_does_not_fit_waits_and_is_not_overtaken() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=4)
        for batch in ((1, 2, 3), (4, 5), (6,)):
            batcher.submit(rows(*batch))
        assert await finish(model, batcher) == [[1, 2, 3], [4, 5, 6]]

    run(test())


def test_differently_shaped_requests_never_share_a_batch() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model)
        futures = [
            batcher.submit({"x": np.full((1, *tail), n, dtype)})
            for n, (tail, dtype) in enumerate([((), "i8"), ((2,), "i8"), ((), "i8"), ((2,), "i8"), ((), "f4")], 1)
        ]
        two = batcher.submit(rows(6) | {"z": np.ones((1, 3), np.int8)})
        assert await finish(model, batcher) == [[1, 3], [2, 4], [5], [6]]
        for n, future in enumerate([*futures, two], 1):
            assert (await future).outputs["y"].ravel()[0] == 10 * n

    run(test())


def test_a_full_queue_refuses_and_says_when_to_come_back() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_queued_requests=2)
        kept = [batcher.submit(rows(n)) for n in (1, 2)]
        for _ in range(3):
            with pytest.raises(Overloaded, match="max_queued_requests=2") as refused:
                batcher.submit(rows(9))
            assert refused.value.retry_after_s >= 1
        assert batcher.counters.refused == 3
        await finish(model, batcher)
        assert [(await future).outputs["y"].tolist() for future in kept] == [[10], [20]]
        assert [9] not in model.calls

    run(test())


def test_requests_whose_clients_left_do_not_fill_the_queue() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_queued_requests=4)
        for _ in range(5):
            for future in [batcher.submit(rows(1)) for _ in range(4)]:
                future.cancel()
        alive = batcher.submit(rows(2))
        assert await finish(model, batcher) == [[2]]
        assert (await alive).outputs["y"].tolist() == [20]
        assert batcher.counters.cancelled == 20

    run(test())


def test_a_deadline_is_kept_while_the_executor_is_stuck() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model)
        slow = batcher.submit(rows(1), timeout_s=3600)
        quick = [batcher.submit(rows(2), timeout_s=0.02), batcher.submit(rows(3), timeout_s=0.01)]
        for future in quick:
            with pytest.raises(DeadlineExceeded):
                await future
        assert not slow.done()
        assert batcher.queued == 1
        assert batcher.counters.expired == 2
        assert await finish(model, batcher) == [[1]]
        assert (await slow).outputs["y"].tolist() == [10]

    run(test())


def test_a_later_shorter_deadline_moves_the_alarm_forward() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model)
        first = batcher.submit(rows(1), timeout_s=0.01)
        with pytest.raises(DeadlineExceeded):
            await first
        second = batcher.submit(rows(2), timeout_s=0.01)  # after the alarm for the first has gone off
        with pytest.raises(DeadlineExceeded):
            await second
        assert await finish(model, batcher) == []

    run(test())


def test_an_expired_request_is_not_executed_even_if_no_alarm_came() -> None:
    async def test() -> None:
        now = [100.0]
        model = GatedModel()
        batcher = await gated(model, clock=lambda: now[0])
        late, live = batcher.submit(rows(1), timeout_s=50), batcher.submit(rows(2), timeout_s=50.5)
        now[0] = 150.0
        assert await finish(model, batcher) == [[2]]
        with pytest.raises(DeadlineExceeded):
            await late
        assert (await live).outputs["y"].tolist() == [20]

    run(test())


def test_a_client_that_leaves_is_not_executed_and_one_that_leaves_too_late_harms_nobody() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model)
        futures = [batcher.submit(rows(n)) for n in (1, 2, 3)]
        futures[0].cancel()
        await step(model, batcher)
        assert model.calls[-1] == [2, 3]
        futures[1].cancel()  # now it is being executed
        await step(model, batcher)
        assert (await futures[2]).outputs["y"].tolist() == [30]
        assert (await asyncio.gather(batcher.submit(rows(4)), step(model, batcher)))[0].outputs["y"].tolist() == [40]
        assert batcher.counters.cancelled == 2
        batcher.close()

    run(test())


def test_waiting_requests_keep_the_model_that_they_were_submitted_to() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=2)
        large, small = batcher.submit(rows(1, 2, 3, 4)), batcher.submit(rows(5))
        batcher.reconfigure(models=[model_of(lambda inputs: {"y": inputs["x"] * 1000})])
        new = batcher.submit(rows(6))
        await finish(model, batcher)
        assert (await large).outputs["y"].tolist() == [10, 20, 30, 40]
        assert (await small).outputs["y"].tolist() == [50]
        assert (await new).outputs["y"].tolist() == [6000]

    run(test())


def test_one_can_wait_until_a_model_has_no_request_left() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=2)
        large = batcher.submit(rows(1, 2, 3, 4))
        before = batcher.models
        batcher.reconfigure(models=[model_of(lambda inputs: {"y": inputs["x"]})])
        assert not await batcher.finished(before, -1.0), "one is being executed and one waits"
        gone = asyncio.create_task(batcher.finished(before, 60.0))
        await step(model, batcher)  # the first is done, and half of the large one at the gate
        await asyncio.sleep(0.03)
        assert not gone.done()
        new = batcher.submit(rows(6))
        await step(model, batcher)
        await step(model, batcher)
        assert await gone
        assert large.done()
        await new
        batcher.close()

    run(test())


def test_bounds_below_one_are_refused_and_the_rest_takes_effect() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model)
        for name in ("max_batch_size", "max_queued_requests"):
            with pytest.raises(ConfigError, match=f"{name}=0"):
                batcher.reconfigure(**{name: 0})
        for n in (1, 2, 3, 4):
            batcher.submit(rows(n))
        batcher.reconfigure(max_batch_size=3, max_queued_requests=5)
        batcher.submit(rows(5))
        with pytest.raises(Overloaded):
            batcher.submit(rows(6))
        assert await finish(model, batcher) == [[1, 2, 3], [4, 5]]

    run(test())


def test_drain_finishes_what_waits_and_takes_nothing_new() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=2)
        large = batcher.submit(rows(1, 2, 3, 4, 5))
        assert not await batcher.drain(0.01)
        with pytest.raises(NotReady) as refused:
            batcher.submit(rows(6))
        assert refused.value.retry_after_s >= 1
        model.stay_open()
        first, second = await asyncio.gather(batcher.drain(3600), batcher.drain(3600))
        assert first
        assert second
        assert (await large).outputs["y"].tolist() == [10, 20, 30, 40, 50]
        assert await batcher.drain(0)
        batcher.close()

    run(test())


def test_close_refuses_what_waits_answers_what_runs_and_ends_its_thread() -> None:
    async def test() -> None:
        before = set(threading.enumerate())
        model = GatedModel()
        batcher = WatchedBatcher(model, max_batch_size=2)
        [thread] = set(threading.enumerate()) - before
        running = batcher.submit(rows(1, 2))
        await at_gate(model, batcher)
        waiting = batcher.submit(rows(3))
        batcher.close()
        batcher.close()
        with pytest.raises(NotReady):
            await waiting
        with pytest.raises(NotReady):
            batcher.submit(rows(4))
        model.stay_open()
        assert (await running).outputs["y"].tolist() == [10, 20]
        await until(lambda: not thread.is_alive())

    run(test())
