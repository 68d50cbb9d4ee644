"""Batches and how long they took -> how long a batch of n rows will take. Learns as it goes, from a prior or nothing.

A curve is a time at each power of two, straight between them, kept as logarithms: a machine that is twice as slow is
one shift. Each batch moves the two knots beside its size by a part of what the curve was wrong by, and drags the others
along: a little where much was seen, and where nothing was, as far as the nearest one that was. What is wrong by much
more than usual is cut to three mean deviations (Huber), so that one batch which met a garbage collection moves it no
more than a somewhat slow one, while a change that lasts, several batches on the same side, is followed within ten or
so. Read back, a curve never falls: knots that do are averaged (pool adjacent violators).
"""

from __future__ import annotations

import math
from collections.abc import Mapping

_RATE = 0.05
"""Of the error, what a knot that has seen much takes over."""
_DRAG = 0.3
"""How far other knots that were seen follow, as a part of the move."""
_SETTLED = 4
_FAST = 0.3
"""The same, while a change seems to last."""
_CHANCE = 3
"""So many batches in a row may be far off to the same side without meaning anything."""
_CUT = 3.0
_UNSEEN_CUT = 2.0
"""A knot not seen before may be wrong by this much: seven times."""
_LEAST_S = 1e-7
_PAY = 1.08
"""A batch that costs at most this much more per row than the best is as good."""
_CERTAIN = 3.0
"""Mean deviations between the mean and what `upper` says."""


class Curve:
    """Seconds by rows. `known` is false until anything was seen or given; an unknown curve promises all: zero."""

    __slots__ = ("_counts", "_deviation", "_limit", "_logs", "_run", "_seen", "_times", "checked_at", "known", "row_s")

    def __init__(self, seconds: Mapping[int, float] | None = None, *, limit: int = 32) -> None:
        self.known = False
        self.row_s = 0.0
        """Of the executor's time per row, in the batches that pay best."""
        self.checked_at = -math.inf
        """When it was last compared with an execution; for whoever uses it, who has the clock."""
        self._limit = limit
        self._seen = 0
        self._run = 0
        self._deviation = 0.3
        self._logs: list[float] = []
        self._counts: list[float] = []
        self._times: list[float] = []
        points = sorted((n, max(s, _LEAST_S)) for n, s in (seconds or {}).items() if n >= 1)
        if points:
            self._fill(points)
            self._deviation, self._seen = 0.1, 4
            self._counts = [3.0 if 1 << k in dict(points) else 0.0 for k in range(len(self._logs))]
            self._read_back()

    @property
    def limit(self) -> int:
        """Rows of a batch at most; what pays best is sought up to here."""
        return self._limit

    @limit.setter
    def limit(self, rows: int) -> None:
        self._limit = rows
        if self.known:
            self._reach(rows)
            self._read_back()

    def seconds(self, rows: int) -> float:
        """The mean."""
        if not self.known:
            return 0.0
        return self._times[0] if rows == 1 else _between(self._times, rows)

    def upper(self, rows: int) -> float:
        """What most batches stay below."""
        return self.seconds(rows) * (1 + _CERTAIN * self._deviation)

    def fits(self, budget_s: float, rows: int) -> int:
        """The most rows, up to these, whose `upper` is within the budget; 0 if not even one is."""
        low, high = 0, rows
        if self.upper(rows) <= budget_s:
            return rows
        while low + 1 < high:
            middle = (low + high) // 2
            low, high = (middle, high) if self.upper(middle) <= budget_s else (low, middle)
        return low

    def pays(self, rows: int) -> int:
        """How many of so many rows to take at once: the fewest that cost hardly more per row than the best number, for
        whoever waits for this batch or comes after it. All, if that is more than half: what is left would make a worse
        batch."""
        if not self.known or rows <= 1:
            return rows
        bound = _PAY * min(self.seconds(n) / n for n in _corners(rows))
        before, time_before = 1, self.seconds(1)
        if time_before <= bound:
            return 1
        for n in _corners(rows)[1:]:
            time = self.seconds(n)
            if time <= bound * n:
                slope = (time - time_before) / (n - before)  # time = base + slope n <= bound n
                base = time - slope * n
                least = math.ceil(base / (bound - slope) - 1e-9) if bound > slope else n
                least = min(max(least, before + 1), n)
                return least if 2 * least <= rows else rows
            before, time_before = n, time
        return rows

    def observe(self, rows: int, seconds: float) -> None:
        """A batch of so many rows took so long."""
        log = math.log(max(seconds, _LEAST_S))
        if not self.known:
            # Nothing to go by but one point: half as steep as rows alone, so that larger batches are worth a try.
            self._fill([(rows, math.exp(log))])
        self._reach(rows)
        left = rows.bit_length() - 1
        part = rows / (1 << left) - 1
        right = left + 1 if part else left
        error = log - math.log(_between([math.exp(self._logs[left]), math.exp(self._logs[right])], 1 + part))
        rate = max(_RATE, 1 / (self._seen + 2))
        usual = _CUT * self._deviation
        far = 0 if abs(error) <= usual else 1 if error > 0 else -1
        self._run = self._run + far if far * self._run > 0 else far
        self._deviation += rate * (min(abs(error), usual) - self._deviation)
        self._deviation = max(self._deviation, 0.01)
        lasting = abs(self._run) > _CHANCE
        if lasting:
            usual *= 2.0 ** (abs(self._run) - _CHANCE)
        self._move(left, right, part, error, usual, _FAST if lasting else _RATE)
        self._seen += 1
        self._read_back()

    def _move(self, left: int, right: int, part: float, error: float, usual: float, least: float) -> None:
        near = {left: 1 - part, right: part} if right != left else {left: 1.0}
        scale = sum(weight * weight for weight in near.values())
        moves: dict[int, float] = {}
        settled = min(self._counts[knot] for knot in near) >= _SETTLED
        seen = [knot for knot, count in enumerate(self._counts) if count >= 1 and knot not in near]
        for knot, weight in near.items():
            cut = usual if self._counts[knot] >= 1 else max(usual, _UNSEEN_CUT)
            rate = max(least, 1 / (self._counts[knot] + 1))
            moves[knot] = min(max(error, -cut), cut) * rate * weight / scale
            self._counts[knot] += weight * min(1.0, cut / max(abs(error), _LEAST_S))
        # What a knot learns at first is the curve's shape; only later it is the machine's speed, which all share.
        dragged = sum(moves[knot] * weight for knot, weight in near.items()) * (_DRAG if settled else 0.0)
        moves |= dict.fromkeys(seen, dragged)
        for knot in range(len(self._logs)):
            # What was never seen stays beside its nearest neighbour that was: pulled along by one further off, past a
            # neighbour that stays, it would seem cheaper or dearer than anybody has seen.
            self._logs[knot] += moves[min(moves, key=lambda other: abs(other - knot))]

    def _fill(self, points: list[tuple[int, float]]) -> None:
        """Knots through these points; beyond them half as steep as rows alone, or as steep as the last two are."""
        self.known = True
        (first, first_s), (last, last_s) = points[0], points[-1]
        slope = 0.0
        if len(points) > 1:
            before, before_s = points[-2]
            slope = max(0.0, (last_s - before_s) / (last - before))
        for k in range((max(last, self._limit) - 1).bit_length() + 1):
            n = 1 << k
            if n <= first:
                time = first_s * math.sqrt(n / first)
            elif n >= last:
                time = last_s + slope * (n - last) if len(points) > 1 else last_s * math.sqrt(n / last)
            else:
                i = next(i for i, (rows, _) in enumerate(points) if rows >= n)
                (a, a_s), (b, b_s) = points[i - 1], points[i]
                time = a_s + (b_s - a_s) * (n - a) / (b - a)
            self._logs.append(math.log(time))
        self._counts = [0.0] * len(self._logs)

    def _reach(self, rows: int) -> None:
        """Knots on both sides of so many rows, as `_fill` would have them."""
        while 1 << (len(self._logs) - 1) < rows:
            last_s = math.exp(self._logs[-1])
            if len(self._logs) > 1:
                time = last_s + 2 * max(0.0, last_s - math.exp(self._logs[-2]))
            else:
                time = last_s * math.sqrt(2)
            self._logs.append(math.log(time))
            self._counts.append(0.0)

    def _read_back(self) -> None:
        blocks: list[tuple[float, float, int]] = []  # mean, weight, knots
        for value, count in zip(self._logs, self._counts, strict=True):
            mean, weight, knots = value, count + 0.01, 1
            while blocks and blocks[-1][0] > mean:
                other, other_weight, other_knots = blocks.pop()
                mean = (mean * weight + other * other_weight) / (weight + other_weight)
                weight, knots = weight + other_weight, knots + other_knots
            blocks.append((mean, weight, knots))
        self._times = [time for mean, _, knots in blocks for time in [math.exp(mean)] * knots]
        self.row_s = min(self.seconds(n) / n for n in _corners(self._limit))


def _between(times: list[float], rows: float) -> float:
    """Straight between the powers of two, and through the origin beyond the last."""
    left = int(rows).bit_length() - 1
    if left >= len(times) - 1:
        return times[-1] * rows / (1 << (len(times) - 1))
    low = 1 << left
    return times[left] + (times[left + 1] - times[left]) * (rows - low) / low


def _corners(rows: int) -> list[int]:
    """Where time per row may be least: on a straight piece that is at one of its ends."""
    powers = [1 << k for k in range(rows.bit_length())]
    return powers if powers[-1] == rows else [*powers, rows]
