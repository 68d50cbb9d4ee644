"""Bodies -> tensors on a few threads of its own: decoding a photograph would hold the event loop for tens of
milliseconds.

Bounded twice, by pictures and by bytes that wait: a queue of large pictures is memory. What does not fit is refused at
once with Overloaded. A job whose client left is not begun.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError, InferenceFailed, NotReady, Overloaded, SluiceError

Work = Callable[[bytes], NDArray[np.generic]]
Outcome = NDArray[np.generic] | SluiceError
Done = Callable[[Outcome], None]


@dataclass(eq=False)
class Decoding:
    """A body that waits for a thread, or is being decoded."""

    body: bytes
    work: Work
    done: Done
    cancelled: bool = False

    def cancel(self) -> None:
        """`done` will not be called. Belongs to the event loop."""
        self.cancelled = True


class Decoder:
    """`submit`, `decode` and `close` belong to the event loop that is running when it is made."""

    def __init__(self, *, threads: int = 1, max_waiting: int = 64, max_waiting_bytes: int = 64 << 20) -> None:
        bounds = {"threads": threads, "max_waiting": max_waiting, "max_waiting_bytes": max_waiting_bytes}
        for name, value in bounds.items():
            if value < 1:
                raise ConfigError(f"{name}={value} is below 1; a decoder needs at least one")
        self.max_waiting = max_waiting
        self.max_waiting_bytes = max_waiting_bytes
        self._threads = threads
        self._started = False
        self._closed = False
        self._seconds = 0.0
        self._bytes = 0
        self._waiting = 0
        self._loop = asyncio.get_running_loop()
        self._jobs: SimpleQueue[Decoding | None] = SimpleQueue()

    @property
    def waiting(self) -> int:
        """Bodies that wait or are being decoded."""
        return self._waiting

    def submit(self, body: bytes, work: Work, done: Done) -> Decoding:
        """Call `done` once, on the event loop, with what `work(body)` returned or the error that it raised. Raises
        Overloaded when too much waits, NotReady when closed. One body is taken whatever its size, if none waits."""
        if self._closed:
            raise NotReady("this replica is shutting down; send the request again")
        if self._waiting >= self.max_waiting or (
            self._waiting and self._bytes + len(body) > self.max_waiting_bytes
        ):
            wait_s = max(1.0, math.ceil(self._waiting * self._seconds / self._threads))
            raise Overloaded(
                f"{self._waiting} pictures of {self._bytes} bytes wait to be decoded (max_waiting={self.max_waiting}, "
                f"max_waiting_bytes={self.max_waiting_bytes}); try again in {wait_s:g} s",
                retry_after_s=wait_s,
            )
        if not self._started:  # most models never get a picture
            self._start()
        job = Decoding(body, work, done)
        self._waiting += 1
        self._bytes += len(body)
        self._jobs.put(job)
        return job

    async def decode(self, body: bytes, work: Work) -> NDArray[np.generic]:
        """As `submit`, to be awaited; a cancelled wait cancels the job."""
        future: asyncio.Future[NDArray[np.generic]] = self._loop.create_future()

        def done(outcome: Outcome) -> None:
            if future.done():
                return
            if isinstance(outcome, SluiceError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

        job = self.submit(body, work, done)
        try:
            return await future
        finally:
            job.cancel()

    def close(self) -> None:
        """Answer what waits with NotReady, and free the threads. A second call does nothing."""
        if not self._closed and self._started:
            for _ in range(self._threads):
                self._jobs.put(None)
        self._closed = True

    def _start(self) -> None:
        self._started = True
        for number in range(self._threads):
            # Daemon: a decoder that never returns must not keep the process from ending.
            threading.Thread(target=self._work, name=f"decoder-{number}", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            started = time.perf_counter()
            outcome = self._outcome(job)
            try:
                self._loop.call_soon_threadsafe(self._done, job, outcome, time.perf_counter() - started)
            except RuntimeError:  # the loop is closed: nobody waits, nor ever will
                return

    def _outcome(self, job: Decoding) -> Outcome | None:
        if job.cancelled:
            return None
        if self._closed:
            return NotReady("this replica is shutting down; send the request again")
        try:
            return job.work(job.body)
        except SluiceError as error:
            return error
        except BaseException as error:  # the thread must outlive whatever a decoder throws
            return InferenceFailed(f"decoding the body failed: {type(error).__name__}: {str(error)[:200]}")

    def _done(self, job: Decoding, outcome: Outcome | None, took_s: float) -> None:
        """On the event loop."""
        self._waiting -= 1
        self._bytes -= len(job.body)
        if outcome is not None:
            self._seconds += 0.1 * (took_s - self._seconds)
            if not job.cancelled:
                job.done(outcome)
