"""Whatever a model throws or returns, each request gets its own rows or its own error, and the thread lives on."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref

import numpy as np
import pytest

from cluster.errors import InferenceFailed, InvalidRequest
from serve_apps.batcher import Batcher
from serve_apps.executor import Arrays, Outputs
from tests.unit.serve_apps.gated_model import (
    GatedModel,
    WatchedBatcher,
    at_gate,
    finish,
    gated,
    model_of,
    raising,
    rows,
    run,
    until,
)


class BadRepr(Exception):
    def __repr__(self) -> str:
        raise SystemExit("not even a repr")


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
                assert (await future).outputs["y"].tolist() == [10 * n]
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
        assert (await futures[1]).outputs["y"].tolist() == [20]

    run(test())


def test_answers_share_memory_and_so_nobody_can_write_to_them() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model)
        futures = [batcher.submit(rows(n)) for n in (1, 2)]
        await finish(model, batcher)
        for future in futures:
            with pytest.raises(ValueError, match="read-only"):
                (await future).outputs["y"][0] = 5

    run(test())


def test_the_models_own_array_stays_writable() -> None:
    async def test() -> None:
        kept = np.zeros(1)

        def infer(inputs: Arrays) -> Outputs:
            return {"y": kept}

        batcher = Batcher([model_of(infer)])
        await batcher.submit(rows(1))
        kept[0] = 5
        batcher.close()

    run(test())


def test_an_answered_request_is_forgotten() -> None:
    async def test() -> None:
        batcher = Batcher([model_of(lambda inputs: {"y": inputs["x"] * 10})])
        inputs = rows(1)
        alive = weakref.ref(inputs["x"])
        answer = (await batcher.submit(inputs)).outputs
        answers = weakref.ref(answer["y"].base)
        del inputs, answer
        # The executor waits for the next batch now, and must not keep the last one until then.
        await until(lambda: gc.collect() >= 0 and alive() is None and answers() is None)
        batcher.close()

    run(test())


def test_inputs_of_one_request_are_joined_by_name_whatever_their_order() -> None:
    async def test() -> None:
        model = GatedModel()
        batcher = await gated(model)
        seen: list[Arrays] = []

        def infer(inputs: Arrays) -> Outputs:
            seen.append(inputs)
            return {"y": inputs["a"] - inputs["b"]}

        batcher.reconfigure(models=[model_of(infer)])
        first = batcher.submit({"a": np.array([5]), "b": np.array([1])})
        second = batcher.submit({"b": np.array([2]), "a": np.array([9])})
        await finish(model, batcher)
        assert (await first).outputs["y"].tolist() == [4]
        assert (await second).outputs["y"].tolist() == [7]
        assert len(seen) == 1

    run(test())


def test_a_large_request_is_answered_in_order_from_pieces() -> None:
    async def test() -> None:
        seen: list[int] = []

        def infer(inputs: Arrays) -> Outputs:
            seen.append(len(inputs["x"]))
            return {"y": inputs["x"] * 10, "wide": np.stack([inputs["x"]] * 3, axis=1)}

        batcher = Batcher([model_of(infer)], max_batch_size=32)
        answer = (await batcher.submit({"x": np.arange(10_000)})).outputs
        assert answer["y"].tolist() == list(range(0, 100_000, 10))
        assert answer["wide"].shape == (10_000, 3)
        assert (answer["wide"][:, 2] == np.arange(10_000)).all()
        assert seen == [32] * 312 + [16]
        assert batcher.counters.answered == 1
        batcher.close()

    run(test())


def test_pieces_that_do_not_fit_together_are_an_error() -> None:
    async def test() -> None:
        answers = iter([{"y": np.zeros((2, 3))}, {"y": np.zeros((2, 1))}])
        batcher = Batcher([model_of(lambda inputs: next(answers))], max_batch_size=2)
        with pytest.raises(InferenceFailed, match="between two pieces"):
            await batcher.submit(rows(1, 2, 3, 4))
        batcher.close()

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
