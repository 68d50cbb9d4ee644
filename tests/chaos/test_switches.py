"""A thousand switches between two resident variants under load, and some to one that has to be loaded first: how long
each takes, and whether a request is lost.

A switch takes from the decision to the end of the first batch that the other variant executes. Outside the ordinary
tests: `make chaos` runs it and writes docs/results/DATE-switches.md.
"""

from __future__ import annotations

import asyncio
import itertools
import math
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from cluster.control import accuracy
from cluster.control.serve_config import serve_config
from cluster.load import LoadResult, Target, build_request, poisson, run_open_loop
from cluster.local import LocalCluster
from cluster.runtimes import RuntimeConfig
from cluster.scheduling import AccuracyPolicy, Scheduling
from serve_apps import batcher as batcher_module
from serve_apps.batcher import Batcher
from serve_apps.executor import Arrays, Model, Outputs
from serve_apps.loading import load
from serve_apps.oip.codec import encode_request
from tests.chaos.conftest import Pair
from tests.conftest import deploy, plan_of

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(400)]

SWITCHES = 1000
BOUND_S = 0.01
BACKGROUND_S = 0.002
"""Between two requests without wishes: one takes a tenth of it."""
POLICY = AccuracyPolicy(target_delay_s=0.005, hold_s=0.02, busy_at=1.0)
"""Quick to step up, or a thousand steps would take half an hour."""
BY_CONFIG = 20
CONFIG_LOAD_S = 120.0


class Watched:
    """A model whose batches are written down: (began, ended, which), on the clock of the batcher."""

    def __init__(self) -> None:
        self.batches: list[tuple[float, float, str]] = []

    def model(self, given: Model) -> Model:
        [infer] = given.infer

        def written(inputs: Arrays) -> Outputs:
            began = time.monotonic()
            try:
                return infer(inputs)
            finally:
                self.batches.append((began, time.monotonic(), given.name))

        return replace(given, infer=(written,))

    def ended_after(self, decided: float, name: str) -> float:
        """When the first batch ended that this model began after the decision."""
        first = bisect_left(self.batches, (decided,))
        return next(ended for _, ended, which in itertools.islice(self.batches, first, None) if which == name)


@pytest.fixture
def levels(monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, int]]:
    """Each decision of the policy to go to another level, and when; the policy is the real one."""
    seen: list[tuple[float, int]] = []

    def step(
        pressure: accuracy.Pressure, state: accuracy.Level, now: float, *, policy: AccuracyPolicy, levels: int
    ) -> accuracy.Level:
        decided = accuracy.step(pressure, state, now, policy=policy, levels=levels)
        if decided.level != state.level:
            seen.append((time.monotonic(), decided.level))
        return decided

    monkeypatch.setattr(batcher_module, "step", step)
    return seen


class Background:
    """Requests of one picture at even intervals; `failed` says what became of those that were not answered."""

    def __init__(self, batcher: Batcher, pair: Pair) -> None:
        self._batcher, self._pictures = batcher, pair.pictures
        self._asked: list[asyncio.Future[Any]] = []
        self._task = asyncio.create_task(self._ask())

    async def _ask(self) -> None:
        due = time.monotonic()
        while True:
            index = len(self._asked) % 400
            self._asked.append(self._batcher.submit({"image": self._pictures[index : index + 1]}))
            due = max(due + BACKGROUND_S, time.monotonic())
            await asyncio.sleep(due - time.monotonic())

    async def stop(self) -> tuple[int, int]:
        """(asked, failed)."""
        self._task.cancel()
        answers = await asyncio.gather(*self._asked, return_exceptions=True)
        return len(answers), sum(isinstance(answer, BaseException) for answer in answers)


def loaded(pair: Pair, watched: Watched) -> list[Model]:
    """Accurate, fast."""
    made = []
    for variant in (pair.accurate, pair.fast):
        model = load(pair.store, variant, RuntimeConfig(name="onnxruntime"), max_batch_size=32).model
        made.append(watched.model(model))
    return made


def figures(seconds: list[float]) -> dict[str, Any]:
    p50, p99, most = (round(float(np.quantile(seconds, q)) * 1e3, 2) for q in (0.5, 0.99, 1.0))
    return {"switches": len(seconds), "p50_ms": p50, "p99_ms": p99, "longest_ms": most}


def test_the_policy_switches(pair: Pair, levels: list[tuple[float, int]], record: Callable[..., Any]) -> None:
    """Bursts that the accurate variant would need twice the bearable wait for, and calm between them."""
    watched = Watched()

    async def test() -> tuple[int, int]:
        models = loaded(pair, watched)
        batcher = Batcher(models, scheduling=Scheduling(accuracy=POLICY), max_queued_requests=4096)
        row_s = min(seconds / rows for rows, seconds in models[0].seconds.items())
        burst = math.ceil(2 * POLICY.target_delay_s / row_s)
        background = Background(batcher, pair)
        asked = failed = 0
        while len(levels) < SWITCHES:
            crowd = [
                batcher.submit({"image": pair.pictures[index % 400 : index % 400 + 1]}) for index in range(burst)
            ]
            answers = await asyncio.gather(*crowd, return_exceptions=True)
            asked, failed = asked + burst, failed + sum(isinstance(answer, BaseException) for answer in answers)
            while batcher.level:
                await asyncio.sleep(0.002)
            await asyncio.sleep(3 * POLICY.hold_s)  # else it would be more patient after each step
        more, gone = await background.stop()
        await batcher.drain(5.0)
        batcher.close()
        return asked + more, failed + gone

    asked, failed = asyncio.run(test())
    names = [pair.accurate.name, pair.fast.name]
    took = [watched.ended_after(decided, names[level]) - decided for decided, level in levels]
    record("switches", what="by the accuracy policy, between resident variants", **figures(took), requests=asked,
           failed=failed)  # fmt: skip
    assert failed == 0
    assert len(took) >= SWITCHES
    assert np.quantile(took, 0.99) < BOUND_S


def test_a_wish_switches(pair: Pair, record: Callable[..., Any]) -> None:
    """Among requests that the accurate variant answers, one after the other that wants the fast one."""
    watched = Watched()

    async def test() -> tuple[list[float], int, int]:
        batcher = Batcher(loaded(pair, watched), max_queued_requests=4096)
        background = Background(batcher, pair)
        took = []
        while len(took) < SWITCHES:
            await asyncio.sleep(2.5 * BACKGROUND_S)  # somebody else's turn
            before, decided = watched.batches[-1][2], time.monotonic()
            answer = await batcher.submit({"image": pair.pictures[:1]}, accuracy="fast")
            assert answer.model.name == pair.fast.name
            if before == pair.accurate.name:
                took.append(watched.ended_after(decided, pair.fast.name) - decided)
        asked, failed = await background.stop()
        await batcher.drain(5.0)
        batcher.close()
        return took, asked + len(took), failed

    took, asked, failed = asyncio.run(test())
    record("switches", what="by a request's wish, between resident variants", **figures(took), requests=asked,
           failed=failed)  # fmt: skip
    assert failed == 0
    assert np.quantile(took, 0.99) < BOUND_S


@contextmanager
def under_load(target: Target, rate: float, seconds: float) -> Iterator[list[LoadResult]]:
    """Yields a list that holds the figures afterwards."""
    results: list[LoadResult] = []
    thread = threading.Thread(
        target=lambda: results.append(run_open_loop(target, poisson(rate, seconds, seed=1), duration_s=seconds))
    )
    thread.start()
    try:
        yield results
        assert thread.is_alive(), f"the load of {seconds:g} s ended before the last switch"
    finally:
        thread.join()


def test_user_config_switches(pair: Pair, tmp_path: Path, record: Callable[..., Any]) -> None:
    """To a variant that is not resident: loaded beside the one that serves, which goes on until it is warm. Seen from
    outside: from the last answer of the old one alone to the first of the new one alone."""
    body, headers = encode_request({"image": pair.pictures[:1]}, binary=True, binary_output=True)
    request = build_request("POST", "/v2/models/classifier/infer", "x", headers, body)
    with LocalCluster("switches", state_dir=tmp_path) as cluster:
        plan = plan_of(pair.store, pair.accurate)
        deploy(cluster, plan)
        target = Target("127.0.0.1", cluster.http_port, [request], [f"sluice-version: {pair.fast.id}".encode()])
        config = serve_config(plan, http_host="127.0.0.1", http_port=cluster.http_port)
        user_config = config["applications"][0]["deployments"][0]["user_config"]
        with under_load(target, 300.0, CONFIG_LOAD_S) as results, httpx.Client() as client:
            time.sleep(3.0)
            for turn in range(BY_CONFIG):
                user_config["variant"] = wanted = (pair.fast, pair.accurate)[turn % 2].id
                cluster.deploy(config)
                url = f"http://127.0.0.1:{cluster.http_port}/v2/models/classifier"
                while client.get(url).json()["versions"] != [wanted]:
                    time.sleep(0.02)
                time.sleep(0.5)
    [result] = results
    answered = result.outcome == 200
    order = np.argsort((result.scheduled_s + result.latency_s)[answered])
    at = (result.scheduled_s + result.latency_s)[answered][order]
    took = handovers(at, result.correct[answered][order])
    record("switches", what="by user_config, to a variant that is loaded first", **figures(took), requests=result.count,
           failed=int((~answered).sum()), longest_time_without_an_answer_ms=round(float(np.diff(at).max()) * 1e3, 1),
           latency_p99_ms=round(float(np.quantile(result.latency_s, 0.99)) * 1e3, 1))  # fmt: skip
    assert (~answered).sum() == 0, result.outcomes()
    assert len(took) == BY_CONFIG


def handovers(at: np.ndarray[Any, Any], fast: np.ndarray[Any, Any]) -> list[float]:
    """Seconds of each change: from the last answer before which all are of one variant to the first after which all are
    of the other. What changes again within 0.25 s is one change."""
    changes = np.flatnonzero(np.diff(fast.astype(int))) + 1
    found: list[list[float]] = []
    for index in changes:
        if found and at[index] - found[-1][1] < 0.25:
            found[-1][1] = float(at[index])
        else:
            found.append([float(at[index - 1]), float(at[index])])
    return [last - first for first, last in found]
