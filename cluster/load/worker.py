"""One load process: `python -m cluster.load.worker`, driven over stdin by the runner (see job.py).

Open loop: each request is due at its scheduled time whatever the server does, and its latency counts from that time,
so a stalled server cannot slow down its own questioner (coordinated omission).
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import time
from math import nan

import numpy as np
import uvloop

from cluster.load.job import JobSpec, WorkerReport, read_inputs
from cluster.load.pool import Pool
from cluster.load.timer import make_timer

_SWEEP_S = 0.02
_monotonic = time.monotonic


class OpenLoop:
    """Sends every request that is due at each wake-up; one slot per request in plain lists (faster than numpy)."""

    def __init__(self, loop: asyncio.AbstractEventLoop, spec: JobSpec) -> None:
        self.offsets, self._requests, self._expect = read_inputs(spec.inputs)
        count = len(self.offsets)
        self._loop, self._spec, self._count = loop, spec, count
        self._due_at = self.offsets
        self._next = self._ended = 0
        self.aborted = False
        self.finished: asyncio.Future[None] = loop.create_future()
        self.wake_lag, self.send_lag, self.latency = [nan] * count, [nan] * count, [nan] * count
        self.outcome, self.correct = [0] * count, [False] * count
        self.pool = Pool(
            loop,
            spec.host,
            spec.port,
            size=spec.connections,
            connect_timeout_s=spec.timeout_s,
            payload=self._payload,
            on_sent=self._sent,
            on_outcome=self._outcome,
        )
        # The payload's number in the whole run, so that splitting over processes changes nothing.
        self._numbers = [(spec.first + k * spec.step) % len(self._requests) for k in range(count)]

    def start(self, at: float) -> None:
        self._due_at = [at + offset for offset in self.offsets]
        self._timer = make_timer(self._loop, self._wake)
        if self._count:
            self._timer.arm(self._due_at[0])
            self._loop.call_later(_SWEEP_S, self._sweep)
        else:
            self.finished.set_result(None)

    def stop(self) -> None:
        self._timer.close()
        self.pool.close()

    def _wake(self) -> None:
        due_at, wake_lag, submit = self._due_at, self.wake_lag, self.pool.submit
        index, count, now = self._next, self._count, _monotonic()
        while index < count and due_at[index] <= now:
            wake_lag[index] = now - due_at[index]
            submit(index)
            index += 1
            now = _monotonic()
        self._next = index
        limit = self._spec.abort_backlog
        if limit is not None and len(self.pool.queue) > limit:
            self._abort()
        elif index < count:
            self._timer.arm(due_at[index])
        else:
            self._timer.close()

    def _abort(self) -> None:
        self.aborted = True
        self._timer.close()
        self.pool.queue.extend(range(self._next, self._count))
        self._next = self._count
        self.pool.drop_queue()

    def _payload(self, index: int) -> bytes:
        return self._requests[self._numbers[index]]

    def _sent(self, index: int) -> None:
        self.send_lag[index] = _monotonic() - self._due_at[index]

    def _outcome(self, index: int, outcome: int, response: bytes) -> None:
        self.latency[index] = _monotonic() - self._due_at[index]
        self.outcome[index] = outcome
        expect = self._expect
        self.correct[index] = outcome > 0 and (not expect or expect[self._numbers[index]] in response)
        self._ended += 1
        if self._ended == self._count and not self.finished.done():
            self.finished.set_result(None)

    def _sweep(self) -> None:
        oldest = _monotonic() - self._spec.timeout_s
        self.pool.expire(lambda index: self._due_at[index] < oldest)
        if not self.finished.done():
            self._loop.call_later(_SWEEP_S, self._sweep)

    def save(self) -> None:
        _save(self._spec, self.offsets, self.wake_lag, self.send_lag, self.latency, self.outcome, self.correct)


class ClosedLoop:
    """Every connection asks again as soon as it is answered: the server's maximum, not a user's experience."""

    def __init__(self, loop: asyncio.AbstractEventLoop, spec: JobSpec) -> None:
        _, self._requests, self._expect = read_inputs(spec.inputs)
        self._loop, self._spec = loop, spec
        self._stop_at = 0.0
        self._start = 0.0
        self.aborted = False
        self.finished: asyncio.Future[None] = loop.create_future()
        self._sent_at: list[float] = []
        self._latency: list[float] = []
        self._outcomes: list[int] = []
        self._correct: list[bool] = []
        self._ended = 0
        self.pool = Pool(
            loop,
            spec.host,
            spec.port,
            size=spec.connections,
            connect_timeout_s=spec.timeout_s,
            payload=self._payload,
            on_sent=self._sent,
            on_outcome=self._outcome,
        )

    def start(self, at: float) -> None:
        self._loop.call_later(max(at - _monotonic(), 0.0), self._begin)

    def _begin(self) -> None:
        self._start = _monotonic()
        self._stop_at = self._start + self._spec.duration_s
        for _ in range(self._spec.connections):
            self._submit()
        self._loop.call_later(_SWEEP_S, self._sweep)

    def stop(self) -> None:
        self.pool.close()

    def _submit(self) -> None:
        now = _monotonic()
        if now >= self._stop_at:
            self._finish_if_idle(now)
            return
        index = len(self._sent_at)
        self._sent_at.append(now)
        self._latency.append(nan)
        self._outcomes.append(0)
        self._correct.append(False)
        self.pool.submit(index)

    def _payload(self, index: int) -> bytes:
        return self._requests[(self._spec.first + index * self._spec.step) % len(self._requests)]

    def _sent(self, index: int) -> None:
        self._sent_at[index] = _monotonic()

    def _outcome(self, index: int, outcome: int, response: bytes) -> None:
        now = _monotonic()
        self._latency[index] = now - self._sent_at[index]
        self._outcomes[index] = outcome
        number = (self._spec.first + index * self._spec.step) % len(self._requests)
        self._correct[index] = outcome > 0 and (not self._expect or self._expect[number] in response)
        self._ended += 1
        if now < self._stop_at:
            # Ask again once the pool has taken the connection back; a dead server must not make this spin.
            if outcome > 0:
                self._loop.call_soon(self._submit)
            else:
                self._loop.call_later(0.01, self._submit)
        self._finish_if_idle(now)

    def _finish_if_idle(self, now: float) -> None:
        if now >= self._stop_at and self._ended == len(self._sent_at) and not self.finished.done():
            self.finished.set_result(None)

    def _sweep(self) -> None:
        now = _monotonic()
        oldest = now - self._spec.timeout_s
        self.pool.expire(lambda index: self._sent_at[index] < oldest)
        self._finish_if_idle(now)
        if not self.finished.done():
            self._loop.call_later(_SWEEP_S, self._sweep)

    def save(self) -> None:
        offsets = [sent - self._start for sent in self._sent_at]
        lags = [0.0] * len(offsets)
        _save(self._spec, offsets, lags, lags, self._latency, self._outcomes, self._correct)


def _save(
    spec: JobSpec,
    offsets: list[float],
    wake_lag: list[float],
    send_lag: list[float],
    latency: list[float],
    outcome: list[int],
    correct: list[bool],
) -> None:
    np.savez(
        spec.results,
        allow_pickle=False,
        scheduled_s=np.array(offsets, dtype=np.float64),
        wake_lag_s=np.array(wake_lag, dtype=np.float64),
        send_lag_s=np.array(send_lag, dtype=np.float64),
        latency_s=np.array(latency, dtype=np.float64),
        outcome=np.array(outcome, dtype=np.int16),
        correct=np.array(correct, dtype=np.bool_),
    )


async def _run(spec: JobSpec) -> WorkerReport:
    loop = asyncio.get_running_loop()
    run: OpenLoop | ClosedLoop = OpenLoop(loop, spec) if spec.mode == "open" else ClosedLoop(loop, spec)
    await run.pool.warm_up()
    print("ready", flush=True)
    start = float(await asyncio.to_thread(sys.stdin.readline))
    # From here on stdin can only close: the runner is gone, and so are we.
    loop.add_reader(sys.stdin.fileno(), os._exit, 3)
    gc.collect()
    gc.freeze()
    gc.disable()
    run.start(start)
    await asyncio.sleep(max(start - _monotonic(), 0.0))
    cpu, began = time.process_time(), _monotonic()
    await run.finished
    report = WorkerReport(cpu_s=time.process_time() - cpu, elapsed_s=_monotonic() - began, aborted=run.aborted)
    run.stop()
    run.save()
    return report


def main() -> None:
    spec = JobSpec.model_validate_json(sys.stdin.readline())
    if spec.cpu is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {spec.cpu})
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        report = runner.run(_run(spec))
    print(report.model_dump_json(), flush=True)


if __name__ == "__main__":
    main()
