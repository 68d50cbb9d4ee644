"""Requests of more rows than a batch: answered whole, in pieces that let their neighbours pass."""

from __future__ import annotations

import pytest

from cluster.errors import DeadlineExceeded, InferenceFailed, NotReady, Overloaded
from tests.unit.serve_apps.gated_model import (
    GatedModel,
    WatchedBatcher,
    at_gate,
    finish,
    gated,
    raising,
    rows,
    run,
    step,
)


def test_close_fails_a_large_request_between_its_pieces() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = WatchedBatcher(model, max_batch_size=2)
        large = batcher.submit(rows(1, 2, 3))
        await at_gate(model, batcher)
        batcher.close()
        model.stay_open()
        with pytest.raises(NotReady):
            await large
        assert batcher.counters.failed == 1

    run(test())


@pytest.mark.parametrize("timeout_s", [None, 60.0])
def test_neighbours_are_served_between_the_pieces_of_a_large_request(timeout_s: float | None) -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=2)
        large = batcher.submit(rows(10, 11, 12, 13, 14, 15, 16), timeout_s=timeout_s)
        for n in (1, 2, 3):
            batcher.submit(rows(n), timeout_s=timeout_s)
        await step(model, batcher)
        await step(model, batcher)
        late = batcher.submit(rows(4), timeout_s=timeout_s)  # arrives while pieces are still to come
        assert await finish(model, batcher) == [[10, 11], [1, 2], [3], [12, 13], [4], [14, 15], [16]]
        assert (await late).outputs["y"].tolist() == [40]
        assert (await large).outputs["y"].tolist() == [10 * n for n in range(10, 17)]

    run(test())


def test_two_large_requests_take_turns_and_priority_still_rules() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=2)
        batcher.submit(rows(10, 11, 12, 13))
        batcher.submit(rows(20, 21, 22))
        batcher.submit(rows(30, 31, 32, 33), priority=1)
        assert await finish(model, batcher) == [[30, 31], [32, 33], [10, 11], [20, 21], [12, 13], [22]]

    run(test())


def test_the_last_piece_shares_its_batch() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=3)
        large = batcher.submit(rows(1, 2, 3, 4))
        await step(model, batcher)
        await step(model, batcher)
        small = batcher.submit(rows(5))
        assert model.calls[-1] == [4]
        more = [batcher.submit(rows(6, 6, 6, 7)), batcher.submit(rows(8))]
        assert await finish(model, batcher) == [[1, 2, 3], [4], [5], [6, 6, 6], [8, 7]]
        for future in (large, small, *more):
            await future

    run(test())


def test_a_large_request_holds_one_place_in_the_queue() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=1, max_queued_requests=2)
        large = batcher.submit(rows(1, 2, 3))
        await step(model, batcher)  # its first piece is at the model, and the queue is free
        others = [batcher.submit(rows(n)) for n in (4, 5)]
        with pytest.raises(Overloaded):
            batcher.submit(rows(6))
        await finish(model, batcher)  # the next pieces came back into a full queue and were not refused
        assert (await large).outputs["y"].tolist() == [10, 20, 30]
        for future in others:
            await future

    run(test())


def test_a_large_request_fails_once_and_its_remaining_pieces_are_dropped() -> None:
    async def test() -> None:
        model = GatedModel(raising(ValueError("no"), poison=3))
        batcher = await gated(model, max_batch_size=2)
        large, small = batcher.submit(rows(1, 2, 3, 4, 5, 6)), batcher.submit(rows(7))
        assert await finish(model, batcher) == [[1, 2], [7], [3, 4]]
        with pytest.raises(InferenceFailed):
            await large
        assert (await small).outputs["y"].tolist() == [70]
        assert batcher.counters.failed == 1

    run(test())


@pytest.mark.parametrize("while_executed", [True, False])
def test_a_cancelled_large_request_drops_its_remaining_pieces(while_executed: bool) -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=2)
        large, small = batcher.submit(rows(1, 2, 3, 4, 5)), batcher.submit(rows(6))
        await step(model, batcher)
        if not while_executed:
            await step(model, batcher)
        large.cancel()
        assert await finish(model, batcher) == [[1, 2], [6]]
        assert (await small).outputs["y"].tolist() == [60]
        assert batcher.counters.cancelled == 1

    run(test())


def test_the_deadline_of_a_large_request_covers_the_whole() -> None:
    async def test() -> None:
        now = [0.0]
        model = GatedModel()
        batcher = await gated(model, max_batch_size=2, clock=lambda: now[0])
        large = batcher.submit(rows(1, 2, 3, 4, 5), timeout_s=10)
        await step(model, batcher)
        now[0] = 9.0
        await step(model, batcher)
        now[0] = 10.0
        assert await finish(model, batcher) == [[1, 2], [3, 4]]
        with pytest.raises(DeadlineExceeded):
            await large
        assert batcher.counters.expired == 1

    run(test())


def test_a_smaller_bound_splits_what_waits_already() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=8)
        future = batcher.submit(rows(1, 2, 3, 4, 5))
        batcher.reconfigure(max_batch_size=2)
        assert await finish(model, batcher) == [[1, 2], [3, 4], [5]]
        assert (await future).outputs["y"].tolist() == [10, 20, 30, 40, 50]

    run(test())
