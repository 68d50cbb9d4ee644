"""A batcher that answers when the test says so, and requests that remember what they got."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from cluster.errors import DeadlineExceeded, SluiceError
from serve_apps.cache import ResponseCache

Arrays = Mapping[str, NDArray[np.generic]]


class Answer(NamedTuple):
    outputs: Arrays
    model: int


class Request:
    """As a front makes it."""

    def __init__(
        self, inputs: Arrays, *, wish: Hashable = None, timeout_s: float = math.inf, priority: int = 1,
        then: Callable[[Request], None] = lambda request: None,
    ) -> None:  # fmt: skip
        self.inputs = inputs
        self.wish = wish
        self.timeout_s = None if timeout_s == math.inf else timeout_s
        self.deadline = 0.0
        self.priority = priority
        self.outcomes: list[Answer | SluiceError] = []
        self.done: Callable[[Any, Any], None] = self._done
        self.then = then

    def _done(self, request: Request, outcome: Answer | SluiceError) -> None:
        assert request is self
        assert self.done == self._done, "it was put back"
        self.outcomes.append(outcome)
        self.then(self)

    @property
    def answer(self) -> Answer:
        [outcome] = self.outcomes
        assert isinstance(outcome, Answer)
        return outcome

    @property
    def error(self) -> SluiceError:
        [outcome] = self.outcomes
        assert isinstance(outcome, SluiceError)
        return outcome


def of(number: int, **wishes: Any) -> Request:
    return Request({"x": np.array([[number]], np.int32)}, **wishes)


def cache_of(batcher: ManualBatcher, **bounds: int) -> ResponseCache[Request, Answer]:
    options = {"max_bytes": 1 << 20, **bounds}
    return ResponseCache(batcher, Answer, wish=lambda request: request.wish, clock=lambda: batcher.now, **options)


class ManualBatcher:
    """Model 0 answers 10 times the input and, to tell models apart, adds its own number."""

    def __init__(self) -> None:
        self.model = 0
        self.now = 0.0
        self.next_ones: list[SluiceError | str | None] = []
        """What the next requests meet inside `put`: an error, "answer", or None: it waits."""
        self.at_once = False
        self.waiting: dict[Request, int] = {}
        """With the model that each was put to."""
        self.failed: set[Request] = set()
        """Met an error here themselves."""
        self.puts = 0

    def put(self, request: Request) -> None:
        self.puts += 1
        meets = self.next_ones.pop(0) if self.next_ones else None
        request.deadline = math.inf if request.timeout_s is None else self.now + request.timeout_s
        if request.deadline <= self.now:
            meets = DeadlineExceeded("too late")
        if isinstance(meets, Exception):
            self.failed.add(request)
            raise meets
        self.waiting[request] = self.model
        if self.at_once or meets == "answer":
            self.answer(request)

    def cancel(self, request: Request) -> None:
        self.waiting.pop(request, None)

    def expired(self) -> DeadlineExceeded:
        return DeadlineExceeded("too late, and told so by the batcher")

    def answer(self, request: Request) -> None:
        model = self.waiting.pop(request)
        # A row of a batch of a thousand, as a runtime gives it.
        rows = np.zeros((1000, 1), np.int64)
        rows[500:501] = 10 * request.inputs["x"] + model
        request.done(request, Answer({"y": rows[500:501]}, model))

    def fail(self, request: Request, error: SluiceError) -> None:
        del self.waiting[request]
        self.failed.add(request)
        request.done(request, error)

    def advance(self, seconds: float) -> None:
        self.now += seconds
        for request in [request for request in self.waiting if request.deadline <= self.now]:
            if request in self.waiting:
                self.fail(request, DeadlineExceeded("too late"))
