"""Thousands of cases, seeded, with right requests between, behind and beside them -> a tally.

    Campaign(Valid(subject, path), [("HAProxy", address), ("direct", address)], seed=1).run(10_000)

Three kinds of right requests watch: one behind every whole case on its own connection, a stream of them on connections
of their own all the while, and one of every form at the end. All are compared with the values that must come back.
Connections that send half a head and then nothing stand open from the first case to the last.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from tests.fuzz.bodies import BODIES, Generator
from tests.fuzz.frames import FRAMES
from tests.fuzz.valid import Request, Valid
from tests.fuzz.wire import PATIENCE_S, Case, Connection, Heard, ask

Places = Sequence[tuple[str, str]]
"""(name, host:port)"""
_SIDE_BY_SIDE = 8
_LORISES = 24
_WATCH_S = 0.02


@dataclass
class Tally:
    """What came of it."""

    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    """(place, kind)"""
    statuses: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(place, kind, outcome)"""
    faults: list[str] = field(default_factory=list)
    beside: int = 0
    """Right requests on connections of their own."""
    beside_s: list[float] = field(default_factory=list)
    behind: int = 0
    """Right requests on the connection of a case that was answered."""
    slowest: tuple[float, str] = (0.0, "")

    def count(self) -> int:
        """Cases so far."""
        return sum(self.sent.values())

    def note(self, place: str, case: Case, heard: Heard, *, told: str | None = None) -> None:
        """`told` is what came back where that is no HTTP."""
        self.sent[place, case.kind] += 1
        for outcome in outcomes(heard) if told is None else [told]:
            self.statuses[place, case.kind, outcome] += 1
        if case.whole and not heard.closed and not heard.fault:
            self.behind += 1
        if heard.took_s > self.slowest[0]:
            self.slowest = (heard.took_s, f"{place}, {case.kind}: {case.what}")
        if heard.fault:
            self.faults.append(f"{place}, {case.kind} [{case.what}]: {heard.fault}")


def outcomes(heard: Heard) -> list[str]:
    """One for each answer; `page` is what a proxy or a parser said in its own words."""
    if heard.answers:
        return [f"{a.status}" if a.status < 400 or a.is_ours else f"{a.status} page" for a in heard.answers]
    return ["closed" if heard.closed else "left"]


class Campaign:
    """One subject, one seed."""

    def __init__(self, valid: Valid, places: Places, *, seed: int, side_by_side: int = _SIDE_BY_SIDE) -> None:
        self._valid, self._places, self._seed = valid, places, seed
        self._side_by_side = side_by_side
        self.tally = Tally()
        self._kinds: dict[Generator, int] = BODIES | FRAMES
        if valid.subject.name != "pictures":
            self._kinds = {kind: n for kind, n in self._kinds.items() if kind.__name__ not in ("octets", "pictures")}

    def case(self, number: int) -> tuple[Case, Request]:
        """The case of that number and the right request behind it; the same ones for the same seed."""
        rng = random.Random(f"{self._seed}/{self._valid.subject.name}/{number}")
        [kind] = rng.choices(list(self._kinds), list(self._kinds.values()))
        return kind(self._valid, rng), self._valid.request(rng)

    async def run(self, count: int, *, start: int = 0, each: Callable[[int], None] = lambda done: None) -> None:
        """`each` is called every hundred cases."""
        numbers = itertools.count(start)
        done = asyncio.Event()
        watch = [asyncio.create_task(self._watch(*place, done)) for place in self._places]
        lorises = [await self._loris(address) for _, address in self._places for _ in range(_LORISES)]

        async def worker() -> None:
            for number in numbers:
                if number >= start + count:
                    return
                place, address = self._places[number % len(self._places)]
                case, behind = self.case(number)
                heard = await ask(address, case, behind.data, behind.check)
                self.tally.note(place, case, heard)
                if number % 100 == 99:
                    each(number + 1 - start)

        await asyncio.gather(*[worker() for _ in range(self._side_by_side)])
        done.set()
        await asyncio.gather(*watch)
        for loris in lorises:
            await loris.close()
        await self._every_form()

    async def _watch(self, place: str, address: str, done: asyncio.Event) -> None:
        """Right requests, each in its time, while everything else goes on."""
        rng = random.Random(self._seed)
        connection: Connection | None = None
        while not done.is_set():
            request = self._valid.request(rng)
            began = time.monotonic()
            try:
                async with asyncio.timeout(PATIENCE_S):
                    if connection is None or not connection.is_open or rng.random() < 0.02:
                        if connection is not None:
                            await connection.close()
                        connection = await Connection.to(address)
                    await connection.send(request.data)
                    answer = await connection.answer()
                wrong = "no answer" if answer is None else request.check(answer)
            except (OSError, TimeoutError, ValueError) as error:
                connection, wrong = None, f"{type(error).__name__} {error}"
            self.tally.beside += 1
            self.tally.beside_s.append(time.monotonic() - began)
            if wrong:
                self.tally.faults.append(f"{place}, a right request beside them: {wrong}")
            await asyncio.sleep(_WATCH_S)
        if connection is not None:
            await connection.close()

    async def _loris(self, address: str) -> Connection:
        connection = await Connection.to(address)
        await connection.send(b"POST " + self._valid.path.encode() + b" HTTP/1.1\r\nhost: fuzz\r\nx-")
        return connection

    async def _every_form(self) -> None:
        rng = random.Random(self._seed)
        for place, address in self._places:
            forms = ["json", "binary", "gzip", "deflate"]
            for form in forms + (["octets", "png"] if self._valid.subject.name == "pictures" else []):
                request = self._valid.of(form, rng)
                heard = await ask(address, Case("right", form, request.data), request.data, request.check)
                answer = heard.answers[0] if heard.answers else None
                wrong = heard.fault or ("no answer" if answer is None else request.check(answer))
                if wrong:
                    self.tally.faults.append(f"{place}, afterwards: {wrong}")
