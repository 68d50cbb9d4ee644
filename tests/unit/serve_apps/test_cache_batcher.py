"""The cache before the real batcher: their requests, clocks and errors fit."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np

from cluster.errors import NotReady
from serve_apps.batcher import Batcher
from serve_apps.cache import ResponseCache
from serve_apps.executor import Answer, Arrays, Model, Outputs, Request


def test_equal_requests_are_executed_once_and_known_ones_not_at_all() -> None:
    gate = threading.Event()
    executed: list[int] = []

    def infer(inputs: Arrays) -> Outputs:
        assert gate.wait(20)
        executed.extend(inputs["x"][:, 0].tolist())
        return {"y": 10 * inputs["x"]}

    async def run() -> None:
        batcher = Batcher([Model("m", "1", 1.0, (infer,))])
        cache: ResponseCache[Request, Answer] = ResponseCache(
            batcher, Answer, max_bytes=1 << 20, wish=lambda request: (request.accuracy, request.models)
        )
        answers: list[tuple[int, Any]] = []
        told = asyncio.Event()

        def done(request: Request, outcome: Any) -> None:
            answers.append((int(request.inputs["x"][0, 0]), outcome))
            told.set()

        def ask(number: int, **wishes: Any) -> Request:
            request = Request({"x": np.array([[number]])}, done, **wishes)
            cache.put(request)
            return request

        async def until(count: int) -> None:
            while len(answers) < count:
                told.clear()
                await asyncio.wait_for(told.wait(), 20)

        leader = ask(1, timeout_s=30.0)
        ask(1, timeout_s=60.0)
        ask(1)
        gone = ask(2, timeout_s=30.0)
        cache.cancel(leader)
        cache.cancel(gone)
        gate.set()
        await until(2)
        ask(1)
        ask(3)
        await until(4)
        assert [(number, outcome.outputs["y"].item()) for number, outcome in answers] == [(1, 10)] * 3 + [(3, 30)]
        assert answers[0][1].model.version == "1"
        assert executed == [1, 3]
        batcher.close()
        ask(4)
        assert isinstance(answers[-1][1], NotReady)

    asyncio.run(run())
