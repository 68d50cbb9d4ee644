"""What a model's executions took: how many, of what sizes, and where their time went.

Written by one executor thread after each batch, in about a microsecond; read by whoever tells of it (oip/answers.py).
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from serve_apps.executor import Request


class Batches(NamedTuple):
    """Of one size: how many were executed, and the seconds that all of them together took."""

    executions: int = 0
    input_s: float = 0.0
    """To join the requests' tensors."""
    infer_s: float = 0.0
    """The runtime's."""
    output_s: float = 0.0
    """To take the answers apart."""


class Total(NamedTuple):
    """Of a model."""

    answered: int
    """Requests; one that was executed in pieces counts with its last."""
    failed: int
    answered_s: float
    """From when they came to when their answers were there, all added up."""
    waited_s: float
    """Until they were executed."""
    by_rows: dict[int, Batches]
    last_s: float | None
    """When the last batch ended, as time.time() has it; None before the first."""

    @property
    def batches(self) -> Batches:
        """Of all sizes."""
        return _sum(self.by_rows.values())

    @property
    def rows(self) -> int:
        return sum(rows * each.executions for rows, each in self.by_rows.items())


class Spent:
    """Of one model on one thread, since it was loaded."""

    __slots__ = ("_answered", "_answered_s", "_batches", "_failed", "_last", "_waited_s")

    def __init__(self) -> None:
        self._answered = self._failed = 0
        self._answered_s = self._waited_s = self._last = 0.0
        self._batches: dict[int, list[float]] = {}

    def executed(
        self, requests: list[Request], rows: int, began: float, joined: float, inferred: float, ended: float
    ) -> None:
        """A batch went well; the times are the clock's that `Request.arrived` is by."""
        took = self._batches.get(rows)
        if took is None:
            took = self._batches[rows] = [0, 0.0, 0.0, 0.0]
        took[0] += 1
        took[1] += joined - began
        took[2] += inferred - joined
        took[3] += ended - inferred
        waited = 0.0
        for request in requests:
            waited += began - request.arrived
        count = len(requests)
        self._waited_s += waited
        self._answered_s += waited + count * (ended - began)
        # A piece of a request fills its batch alone.
        self._answered += count if count > 1 or requests[0].stop == requests[0].rows else 0
        self._last = ended

    def failed(self) -> None:
        """One request did, by itself."""
        self._failed += 1

    @staticmethod
    def total(parts: Iterable[Spent]) -> Total:
        """Of a model, whose threads these are."""
        parts = list(parts)
        by_rows: dict[int, list[Batches]] = {}
        for part in parts:
            for rows, (count, *seconds) in list(part._batches.items()):  # which its thread may add to meanwhile
                by_rows.setdefault(rows, []).append(Batches(int(count), *seconds))
        last = max((part._last for part in parts), default=0.0)
        return Total(
            answered=sum(part._answered for part in parts), failed=sum(part._failed for part in parts),
            answered_s=sum(part._answered_s for part in parts), waited_s=sum(part._waited_s for part in parts),
            by_rows={rows: _sum(by_rows[rows]) for rows in sorted(by_rows)},
            last_s=time.time() - (time.monotonic() - last) if last else None,
        )  # fmt: skip


def _sum(batches: Iterable[Batches]) -> Batches:
    columns = list(zip(*batches, strict=True))
    return Batches(*(sum(column) for column in columns)) if columns else Batches()
