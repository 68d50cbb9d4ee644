"""Several models in one batcher: which one answers, what it says, and the switch between them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from cluster.errors import ConfigError
from cluster.scheduling import AccuracyPolicy, Scheduling
from serve_apps.executor import Model
from tests.unit.serve_apps.gated_model import GatedModel, WatchedBatcher, at_gate, model_of, rows, run, until


def times(factor: int) -> Any:
    return lambda inputs: {"y": inputs["x"] * factor}


def three(**fields: Any) -> list[Model]:
    """Given in no order."""
    return [
        model_of(times(2), accuracy=0.8, name="middle", seconds={1: 0.002}, **fields),
        model_of(times(3), accuracy=0.7, name="fast", seconds={1: 0.001}, **fields),
        model_of(times(1), accuracy=0.9, name="exact", seconds={1: 0.004}, **fields),
    ]


@pytest.mark.parametrize(
    ("wish", "name"),
    [(None, "exact"), ("best", "exact"), ("balanced", "exact"), ("fast", "fast"), (0.75, "exact"), (0.9, "exact")],
)
def test_without_pressure(wish: Any, name: str) -> None:
    async def test() -> None:
        batcher = WatchedBatcher(*three())
        assert [model.name for model in batcher.models] == ["exact", "middle", "fast"]
        answer = await batcher.submit(rows(5), accuracy=wish)
        assert answer.model.name == name
        assert answer.outputs["y"].tolist() == [5 * {"exact": 1, "middle": 2, "fast": 3}[name]]
        batcher.close()

    run(test())


def test_under_pressure_those_that_allow_it_are_answered_by_faster_models() -> None:
    async def test() -> None:
        gate, now = GatedModel(), [1000.0]
        blocked = model_of(gate, accuracy=0.95, name="blocked")
        hasty = Scheduling(accuracy=AccuracyPolicy(target_delay_s=0.01))
        batcher = WatchedBatcher(blocked, clock=lambda: now[0], max_batch_size=1, scheduling=hasty)
        batcher.submit(rows(0))
        await at_gate(gate, batcher)
        batcher.reconfigure(models=three())
        wishes = ["best", "balanced", 0.75] * 30
        futures = [batcher.submit(rows(1), accuracy=wish) for wish in wishes]
        gate.stay_open()
        while not all(future.done() for future in futures):
            now[0] += 0.002
            await asyncio.sleep(0)
        by_wish: dict[Any, set[str]] = {}
        for wish, future in zip(wishes, futures, strict=True):
            by_wish.setdefault(wish, set()).add((await future).model.name)
        assert by_wish["best"] == {"exact"}
        assert "fast" in by_wish["balanced"]
        assert "fast" not in by_wish[0.75]
        assert "middle" in by_wish[0.75]
        batcher.close()

    run(test())


def test_one_in_a_hurry_is_answered_by_a_faster_model_rather_than_not() -> None:
    async def test() -> None:
        batcher = WatchedBatcher(*three())
        answer = await batcher.submit(rows(1), timeout_s=0.003)
        assert answer.model.name in ("middle", "fast")
        batcher.close()

    run(test())


def test_a_request_may_name_its_model() -> None:
    async def test() -> None:
        batcher = WatchedBatcher(*three())
        pinned = batcher.models[1]
        assert (await batcher.submit(rows(1), models=(pinned,), accuracy="fast")).model is pinned
        batcher.close()

    run(test())


def test_all_pieces_of_a_large_request_are_by_one_model() -> None:
    async def test() -> None:
        gate, now = GatedModel(), [1000.0]
        slow = model_of(gate, accuracy=0.95, name="slow", seconds={1: 0.1, 2: 0.1})
        batcher = WatchedBatcher(slow, *three(), clock=lambda: now[0], max_batch_size=2)
        large = batcher.submit(rows(1, 2, 3, 4, 5))
        await at_gate(gate, batcher)
        others = [batcher.submit(rows(7)) for _ in range(50)]  # pressure between the pieces
        gate.stay_open()
        answer = await large
        assert answer.model is slow
        assert answer.outputs["y"].tolist() == [10, 20, 30, 40, 50]
        await asyncio.gather(*others)
        batcher.close()

    run(test())


def test_two_executors_run_two_batches_at_once_each_with_its_own_runtime() -> None:
    async def test() -> None:
        gates = GatedModel(), GatedModel()
        batcher = WatchedBatcher(model_of(*gates), max_batch_size=1)
        futures = [batcher.submit(rows(n)) for n in (1, 2, 3)]
        await until(lambda: all(gate.waiting for gate in gates))
        assert batcher.queued == 1
        gates[1].permit()
        assert (await futures[1]).outputs["y"].tolist() == [20]
        await until(lambda: gates[1].waiting)
        assert not futures[0].done()
        assert gates[1].calls == [[2], [3]]
        assert gates[0].calls == [[1]]
        for gate in gates:
            gate.stay_open()
        await asyncio.gather(*futures)
        batcher.close()

    run(test())


def test_more_executors_come_with_new_models_and_fewer_leave_some_idle() -> None:
    async def test() -> None:
        one, two = GatedModel(), (GatedModel(), GatedModel())
        batcher = WatchedBatcher(one, max_batch_size=1)
        old = [batcher.submit(rows(n)) for n in (1, 2)]
        await at_gate(one, batcher)
        batcher.reconfigure(models=[model_of(*two, name="two")])
        new = batcher.submit(rows(3))
        await until(lambda: two[1].waiting)
        assert one.calls == [[1]], "the old one has a single runtime, which is busy"
        batcher.reconfigure(models=[model_of(times(7), name="seven")])
        newest = batcher.submit(rows(4))
        for gate in (one, *two):
            gate.stay_open()
        assert [(await each).model.name for each in (*old, new, newest)] == ["m", "m", "two", "seven"]
        batcher.close()

    run(test())


def test_a_reserved_executor_keeps_nobody_from_the_only_one_that_can() -> None:
    async def test() -> None:
        one = GatedModel()
        batcher = WatchedBatcher(one, max_batch_size=1)
        old = [batcher.submit(rows(n)) for n in (1, 2)]
        await at_gate(one, batcher)
        keeps = Scheduling.model_validate({"classes": [{"name": "own", "streams": 1}, {"name": "normal"}]})
        batcher.reconfigure(models=[model_of(times(7), times(7), name="two")], scheduling=keeps)
        assert (await batcher.submit(rows(3), priority=1)).model.name == "two", "its own executor is free"
        new = batcher.submit(rows(4))
        one.stay_open()
        assert [(await each).model.name for each in (*old, new)] == ["m", "m", "two"]
        batcher.close()

    run(test())


def test_models_that_do_not_go_together_are_refused_and_nothing_changes() -> None:
    async def test() -> None:
        batcher = WatchedBatcher(*three())
        before = batcher.models
        keeps = Scheduling.model_validate({"classes": [{"name": "normal"}, {"name": "own", "streams": 1}]})
        for wrong in ({"models": []}, {"models": [before[0], model_of(times(1), times(1))]}, {"scheduling": keeps}):
            with pytest.raises(ConfigError):
                batcher.reconfigure(**wrong)
        assert batcher.models is before
        await batcher.submit(rows(1))
        batcher.close()

    run(test())


def test_a_switch_back_and_forth_under_load_loses_nothing() -> None:
    async def test() -> None:
        first, second = three(), three()
        batcher = WatchedBatcher(*first, max_batch_size=4, max_queued_requests=1000)
        futures = []
        for n in range(1000):
            futures.append((n, batcher.submit(rows(n))))
            if n % 10 == 0:
                batcher.reconfigure(models=(first, second)[n // 10 % 2])
            if n % 7 == 0:
                await asyncio.sleep(0)
        for n, future in futures:
            answer = await future
            assert answer.outputs["y"].tolist() == [n * {"exact": 1, "middle": 2, "fast": 3}[answer.model.name]]
        batcher.close()

    run(test())
