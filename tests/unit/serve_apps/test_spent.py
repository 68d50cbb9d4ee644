"""What is said to be spent adds up, over threads, sizes, pieces and failures."""

from __future__ import annotations

import math
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_apps.batcher import Batcher
from serve_apps.executor import Model, Request
from serve_apps.spent import Batches, Spent
from tests.unit.serve_apps.gated_model import run


def request(rows: int, arrived: float, *, stop: int | None = None) -> Request:
    made = Request({"x": np.zeros((rows, 1))}, lambda *_: None)
    made.arrived, made.stop = arrived, rows if stop is None else stop
    return made


BATCH = st.tuples(
    st.lists(st.integers(1, 3), min_size=1, max_size=4), st.integers(0, 1),
    st.lists(st.floats(0, 9), min_size=4, max_size=4),
)  # fmt: skip


@given(st.lists(BATCH, max_size=12))
def test_all_threads_add_up(batches: list[tuple[list[int], int, list[float]]]) -> None:
    threads = (Spent(), Spent())
    now = 100.0
    for sizes, thread, (queue_s, input_s, infer_s, output_s) in batches:
        began = now + queue_s
        inferred = began + input_s + infer_s
        requests = [request(rows, now) for rows in sizes]
        threads[thread].executed(requests, sum(sizes), began, began + input_s, inferred, inferred + output_s)
        now += 1
    total = Spent.total(threads)
    assert total.answered == sum(len(sizes) for sizes, _, _ in batches)
    assert total.rows == sum(sum(sizes) for sizes, _, _ in batches)
    assert math.isclose(total.waited_s, sum(len(sizes) * took[0] for sizes, _, took in batches), abs_tol=1e-6)
    assert math.isclose(total.answered_s, sum(len(sizes) * sum(took) for sizes, _, took in batches), abs_tol=1e-6)
    everything = total.batches
    assert everything.executions == len(batches)
    for part, at in (("input_s", 1), ("infer_s", 2), ("output_s", 3)):
        assert math.isclose(getattr(everything, part), sum(took[at] for _, _, took in batches), abs_tol=1e-6)
    assert list(total.by_rows) == sorted({sum(sizes) for sizes, _, _ in batches})
    assert (total.last_s is None) == (not batches)


def test_a_request_in_pieces_counts_once_and_its_time_from_the_first_on() -> None:
    spent = Spent()
    spent.executed([request(5, 10.0, stop=3)], 3, 12.0, 12.0, 13.0, 13.5)
    assert (Spent.total([spent]).answered, Spent.total([spent]).answered_s) == (0, 3.5)
    spent.executed([request(5, 13.5, stop=5)], 2, 14.0, 14.0, 15.0, 15.0)
    total = Spent.total([spent])
    assert (total.answered, total.answered_s, total.waited_s) == (1, 5.0, 2.5)
    assert total.by_rows == {2: Batches(1, 0.0, 1.0, 0.0), 3: Batches(1, 0.0, 1.0, 0.5)}


def test_the_batcher_s_threads_measure_what_they_execute() -> None:
    def slow(inputs: Any) -> Any:
        if (inputs["x"] < 0).any():
            raise ValueError("poison")
        time.sleep(0.02)
        return {"y": inputs["x"]}

    async def test() -> None:
        model = Model("m", "1", 0.9, (slow, slow))
        batcher = Batcher([model], max_batch_size=4)
        waiting = [batcher.submit({"x": np.full((2, 1), value)}) for value in (1, 2, -1, 3, 4)]
        waiting.append(batcher.submit({"x": np.ones((10, 1))}))
        for number, future in enumerate(waiting):
            if number == 2:
                with pytest.raises(Exception, match="poison"):
                    await future
            else:
                await future
        total = Spent.total(model.spent)
        assert (total.answered, total.failed, total.rows) == (5, 1, 18)
        assert total.batches.infer_s >= 0.02 * total.batches.executions
        assert total.answered_s >= total.waited_s + 0.02 * 5
        assert total.last_s is not None
        assert abs(total.last_s - time.time()) < 60
        batcher.close()

    run(test())


def test_nothing_is_said_of_a_model_that_did_nothing() -> None:
    total = Spent.total([Spent()])
    assert (total.answered, total.failed, total.last_s, total.by_rows, total.batches) == (0, 0, None, {}, Batches())
