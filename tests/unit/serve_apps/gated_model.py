"""A model that runs one batch each time the test says so, and a Batcher that tells when a batch has been dealt with."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serve_apps.batcher import Batcher
from serve_apps.executor import Arrays, Infer, Model, Outputs

_PATIENCE_S = 20.0


async def until(predicate: Callable[[], object]) -> None:
    """Let the loop turn until it holds; fail the test if it never does."""
    end = time.monotonic() + _PATIENCE_S
    while not predicate():
        assert time.monotonic() < end, "the awaited state never came"
        await asyncio.sleep(0.0002)


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(test)


def rows(*values: int) -> dict[str, NDArray[np.generic]]:
    """Inputs whose rows are these numbers."""
    return {"x": np.array(values, dtype=np.int64)}


class GatedModel:
    """y = 10 x, once per permit. `spoil` is called with the rows first: it may raise, or return (other outputs,)."""

    def __init__(self, spoil: Callable[[list[int]], Any] = lambda rows: None) -> None:
        self.spoil = spoil
        self.calls: list[list[int]] = []
        self.waiting = False
        self.open = False
        self._permits = threading.Semaphore(0)

    def __call__(self, inputs: Arrays) -> Outputs:
        x = inputs["x"]
        self.calls.append(x.reshape(len(x), -1)[:, 0].tolist())
        if not self.open:
            self.waiting = True
            self._permits.acquire()
            self.waiting = False
        other = self.spoil(self.calls[-1])
        return {"y": x * 10} if other is None else other[0]

    def permit(self) -> None:
        self.waiting = False
        self._permits.release()

    def stay_open(self) -> None:
        self.open = True
        self._permits.release(1)


def model_of(*infer: Infer, accuracy: float = 0.9, name: str = "m", **fields: Any) -> Model:
    """As many runtimes as there are executors."""
    return Model(name, f"{name}/1", accuracy, infer, **fields)


class WatchedBatcher(Batcher):
    """Counts the batches whose outcomes have been handed out. `timeless`: nothing is learnt of how long they
    took, so that it decides nothing."""

    handled = 0
    timeless = False

    def __init__(self, *models: Infer | Model, **options: Any) -> None:
        super().__init__([each if isinstance(each, Model) else model_of(each) for each in models], **options)
        account = self._waiting.account
        self._waiting.account = lambda batch, now, *, learn: account(batch, now, learn=learn and not self.timeless)  # type: ignore[method-assign]

    def _done(self, thread: int, outcomes: Any) -> None:
        batch = self._running[thread]
        if self.timeless and batch is not None:
            batch.started = self._clock()
        super()._done(thread, outcomes)
        self.handled += 1


async def step(model: GatedModel, batcher: WatchedBatcher) -> None:
    """Let the batch that is being executed finish (with its retries, if it fails); the next one is then at the gate."""
    before = batcher.handled
    while batcher.handled == before:
        await until(lambda: model.waiting or batcher.handled > before)
        if batcher.handled == before:
            model.permit()
    await at_gate(model, batcher)


async def at_gate(model: GatedModel, batcher: WatchedBatcher) -> None:
    """The executor stands before the model with the current batch, or is idle."""
    await until(lambda: model.waiting or not batcher._is_busy())


def raising(error: BaseException, poison: int) -> Any:
    def spoil(batch: list[int]) -> None:
        if poison in batch:
            raise error

    return spoil


async def gated(model: GatedModel, **options: Any) -> WatchedBatcher:
    """A batcher whose executor is busy with request 0, so that what follows waits. How long this
    machine takes to run a test must not decide what is batched together, so it learns nothing of that."""
    batcher = WatchedBatcher(model, **options)
    batcher.timeless = True
    batcher.submit(rows(0))
    await at_gate(model, batcher)
    return batcher


async def finish(model: GatedModel, batcher: WatchedBatcher) -> list[list[int]]:
    """Everything executed but request 0, in order, batch by batch."""
    while batcher._is_busy():
        await step(model, batcher)
    batcher.close()
    return model.calls[1:]
