"""What a batch is made of, and what one request can do to another: nothing."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest

from cluster.errors import ConfigError, DeadlineExceeded, InferenceFailed, InvalidRequest, NotReady, Overloaded
from serve_apps.batcher import Arrays, Batcher, Outputs
from tests.unit.serve_apps.gated_model import GatedModel, WatchedBatcher, at_gate, rows, run, step, until


class BadRepr(Exception):
    def __repr__(self) -> str:
        raise SystemExit("not even a repr")


def raising(error: BaseException, poison: int) -> Any:
    def spoil(batch: list[int]) -> None:
        if poison in batch:
            raise error

    return spoil


async def gated(model: GatedModel, **options: Any) -> WatchedBatcher:
    """A batcher whose executor is busy with request 0, so that what follows waits."""
    batcher = WatchedBatcher(model, **options)
    batcher.submit(rows(0))
    await at_gate(model, batcher)
    return batcher


async def finish(model: GatedModel, batcher: WatchedBatcher) -> list[list[int]]:
    """Everything executed but request 0, in order, batch by batch."""
    while batcher._busy:
        await step(model, batcher)
    batcher.close()
    return model.calls[1:]


def test_an_idle_server_answers_at_once() -> None:
    async def test() -> None:
        batcher = Batcher(lambda inputs: {"y": inputs["x"] * 10})
        assert (await batcher.submit(rows(7)))["y"].tolist() == [70]
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
        assert [(await future)["y"].tolist() for future in futures] == [[10], [20], [30], [40], [50]]

    run(test())


def test_priority_then_deadline_then_arrival() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=1)
        batcher.submit(rows(1))
        batcher.submit(rows(2))
        batcher.submit(rows(3), timeout_s=200)
        batcher.submit(rows(4), timeout_s=100)
        batcher.submit(rows(5), priority=1 << 61)  # the last of all levels still comes before no level
        batcher.submit(rows(6), priority=2)
        batcher.submit(rows(7), priority=1)
        batcher.submit(rows(8), priority=1, timeout_s=100)
        order = [call[0] for call in await finish(model, batcher)]
        assert order == [8, 7, 6, 5, 4, 3, 1, 2]

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
            assert (await future)["y"].ravel()[0] == 10 * n

    run(test())


def test_inputs_of_one_request_are_joined_by_name_whatever_their_order() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model)
        seen: list[Arrays] = []

        def infer(inputs: Arrays) -> Outputs:
            seen.append(inputs)
            return {"y": inputs["a"] - inputs["b"]}

        batcher.reconfigure(infer=infer)
        first = batcher.submit({"a": np.array([5]), "b": np.array([1])})
        second = batcher.submit({"b": np.array([2]), "a": np.array([9])})
        await finish(model, batcher)
        assert (await first)["y"].tolist() == [4]
        assert (await second)["y"].tolist() == [7]
        assert len(seen) == 1

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
        assert [(await future)["y"].tolist() for future in kept] == [[10], [20]]
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
        assert (await alive)["y"].tolist() == [20]
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
        assert (await slow)["y"].tolist() == [10]

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
        assert (await live)["y"].tolist() == [20]

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
        assert (await futures[2])["y"].tolist() == [30]
        assert (await asyncio.gather(batcher.submit(rows(4)), step(model, batcher)))[0]["y"].tolist() == [40]
        assert batcher.counters.cancelled == 2
        batcher.close()

    run(test())


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"), MemoryError(), SystemExit(3), KeyboardInterrupt(), GeneratorExit(), StopIteration(),
        asyncio.CancelledError(), asyncio.InvalidStateError(), BadRepr(), RecursionError(),
    ],
    ids=lambda error: type(error).__name__,
)  # fmt: skip
def test_one_poisonous_request_fails_alone_whatever_the_model_throws(error: BaseException) -> None:
    async def test() -> None:
        model = GatedModel(raising(error, poison=3))
        batcher = await gated(model)
        futures = [batcher.submit(rows(n)) for n in (1, 2, 3, 4, 5)]
        await finish(model, batcher)
        for n, future in enumerate(futures, 1):
            if n == 3:
                with pytest.raises(InferenceFailed, match=type(error).__name__):
                    await future
            else:
                assert (await future)["y"].tolist() == [10 * n]
        assert (batcher.counters.answered, batcher.counters.failed) == (5, 1)

    run(test())


def test_an_error_of_ours_keeps_its_class() -> None:
    async def test() -> None:
        model = GatedModel(raising(InvalidRequest("mis-shaped"), poison=1))
        batcher = await gated(model)
        future = batcher.submit(rows(1))
        await finish(model, batcher)
        with pytest.raises(InvalidRequest, match="mis-shaped"):
            await future

    run(test())


WRONG = {
    "nothing": (None, "returned NoneType"),
    "a bare array": (np.zeros(2), "returned ndarray"),
    "no outputs": ({}, "returned dict"),
    "a row too many": ({"y": np.zeros(4)}, r"output 'y' is \[4\] for 2 rows"),
    "a row too few": ({"y": np.zeros(1)}, r"output 'y' is \[1\] for 2 rows"),
    "a scalar": ({"y": np.float32(1)}, "output 'y' is float32"),
    "0-d": ({"y": np.zeros(())}, r"output 'y' is \[\] for"),
    "a list": ({"y": [1, 2]}, "output 'y' is list"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_outputs_that_are_no_rows_are_an_error_and_not_somebody_elses_rows(kind: str) -> None:
    outputs, complaint = WRONG[kind]

    async def test() -> None:
        model = GatedModel(lambda batch: (outputs,) if 1 in batch else None)
        batcher = await gated(model)
        futures = [batcher.submit(rows(1, 1)), batcher.submit(rows(2))]
        await finish(model, batcher)
        with pytest.raises(InferenceFailed, match=complaint):
            await futures[0]
        assert (await futures[1])["y"].tolist() == [20]

    run(test())


def test_answers_share_memory_and_so_nobody_can_write_to_them() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model)
        futures = [batcher.submit(rows(n)) for n in (1, 2)]
        await finish(model, batcher)
        for future in futures:
            with pytest.raises(ValueError, match="read-only"):
                (await future)["y"][0] = 5

    run(test())


def test_the_models_own_array_stays_writable() -> None:
    async def test() -> None:
        kept = np.zeros(1)

        def infer(inputs: Arrays) -> Outputs:
            return {"y": kept}

        batcher = Batcher(infer)
        await batcher.submit(rows(1))
        kept[0] = 5
        batcher.close()

    run(test())


def test_an_answered_request_is_forgotten() -> None:
    async def test() -> None:
        batcher = Batcher(lambda inputs: {"y": inputs["x"] * 10})
        inputs = rows(1)
        alive = weakref.ref(inputs["x"])
        answer = await batcher.submit(inputs)
        answers = weakref.ref(answer["y"].base)
        del inputs, answer
        # The executor waits for the next batch now, and must not keep the last one until then.
        await until(lambda: gc.collect() >= 0 and alive() is None and answers() is None)
        batcher.close()

    run(test())


def test_waiting_requests_keep_the_model_that_they_were_submitted_to() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=2)
        large, small = batcher.submit(rows(1, 2, 3, 4)), batcher.submit(rows(5))
        batcher.reconfigure(infer=lambda inputs: {"y": inputs["x"] * 1000})
        new = batcher.submit(rows(6))
        await finish(model, batcher)
        assert (await large)["y"].tolist() == [10, 20, 30, 40]
        assert (await small)["y"].tolist() == [50]
        assert (await new)["y"].tolist() == [6000]

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
        assert (await large)["y"].tolist() == [10, 20, 30, 40, 50]
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
        assert (await running)["y"].tolist() == [10, 20]
        await until(lambda: not thread.is_alive())

    run(test())


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


@pytest.mark.filterwarnings("error::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_loop_that_closes_under_a_running_model_leaves_no_thread() -> None:
    model = GatedModel()
    before = set(threading.enumerate())

    async def test() -> None:
        batcher = WatchedBatcher(model)
        batcher.submit(rows(1))
        await at_gate(model, batcher)

    run(test())
    [thread] = set(threading.enumerate()) - before
    model.stay_open()
    thread.join(20)
    assert not thread.is_alive()


def test_a_large_request_is_answered_in_order_from_pieces() -> None:
    async def test() -> None:
        seen: list[int] = []

        def infer(inputs: Arrays) -> Outputs:
            seen.append(len(inputs["x"]))
            return {"y": inputs["x"] * 10, "wide": np.stack([inputs["x"]] * 3, axis=1)}

        batcher = Batcher(infer, max_batch_size=32)
        answer = await batcher.submit({"x": np.arange(10_000)})
        assert answer["y"].tolist() == list(range(0, 100_000, 10))
        assert answer["wide"].shape == (10_000, 3)
        assert (answer["wide"][:, 2] == np.arange(10_000)).all()
        assert seen == [32] * 312 + [16]
        assert batcher.counters.answered == 1
        batcher.close()

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
        assert (await late)["y"].tolist() == [40]
        assert (await large)["y"].tolist() == [10 * n for n in range(10, 17)]

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
        assert (await large)["y"].tolist() == [10, 20, 30]
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
        assert (await small)["y"].tolist() == [70]
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
        assert (await small)["y"].tolist() == [60]
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


def test_pieces_that_do_not_fit_together_are_an_error() -> None:
    async def test() -> None:
        answers = iter([{"y": np.zeros((2, 3))}, {"y": np.zeros((2, 1))}])
        batcher = Batcher(lambda inputs: next(answers), max_batch_size=2)
        with pytest.raises(InferenceFailed, match="between two pieces"):
            await batcher.submit(rows(1, 2, 3, 4))
        batcher.close()

    run(test())


def test_a_smaller_bound_splits_what_waits_already() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model, max_batch_size=8)
        future = batcher.submit(rows(1, 2, 3, 4, 5))
        batcher.reconfigure(max_batch_size=2)
        assert await finish(model, batcher) == [[1, 2], [3, 4], [5]]
        assert (await future)["y"].tolist() == [10, 20, 30, 40, 50]

    run(test())
