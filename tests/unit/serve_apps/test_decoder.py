"""Each body is answered once, on the loop, whatever its work does; a full queue refuses; who left costs nothing."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable

import numpy as np
import pytest

from cluster.errors import ConfigError, InferenceFailed, InvalidRequest, NotReady, Overloaded
from serve_apps.decoder import Decoder, Outcome
from serve_apps.images import from_picture, picture_input
from tests.unit.serve_apps.photographs import encoded, photograph
from tests.unit.serve_apps.test_images import COLOUR

Array = np.ndarray


def as_bytes(body: bytes) -> Array:
    return np.frombuffer(body, np.uint8)


class Gate:
    """Work that waits to be let through."""

    def __init__(self) -> None:
        self.begun = threading.Semaphore(0)
        self.open = threading.Event()
        self.bodies: list[bytes] = []

    def __call__(self, body: bytes) -> Array:
        self.bodies.append(body)
        self.begun.release()
        assert self.open.wait(20)
        return as_bytes(body)


def test_a_picture_is_decoded_off_the_loop() -> None:
    body = encoded(photograph(0, (90, 60)))
    wanted = picture_input([COLOUR])
    threads: list[str] = []

    def work(body: bytes) -> Array:
        threads.append(threading.current_thread().name)
        return from_picture(body, wanted)

    async def run() -> Array:
        decoder = Decoder()
        tensor = await decoder.decode(body, work)
        assert decoder.waiting == 0
        decoder.close()
        return tensor

    np.testing.assert_array_equal(asyncio.run(run()), from_picture(body, wanted))
    assert threads == ["decoder-0"]


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (InvalidRequest("no picture"), InvalidRequest, "no picture"),
        (MemoryError("all of it"), InferenceFailed, "decoding the body failed: MemoryError: all of it"),
        (SystemExit(3), InferenceFailed, "SystemExit"),
        (asyncio.CancelledError(), InferenceFailed, "CancelledError"),
    ],
)
def test_what_work_raises_reaches_its_own_request_and_the_thread_goes_on(
    error: BaseException, kind: type[Exception], told: str
) -> None:
    def fails(body: bytes) -> Array:
        raise error

    async def run() -> None:
        decoder = Decoder()
        with pytest.raises(kind, match=told):
            await decoder.decode(b"a", fails)
        assert (await decoder.decode(b"\7", as_bytes)).tolist() == [7]
        decoder.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("bounds", "taken"), [({"max_waiting": 3}, 3), ({"max_waiting_bytes": 25}, 2), ({"max_waiting_bytes": 5}, 1)]
)
def test_what_does_not_fit_is_refused_at_once(bounds: dict[str, int], taken: int) -> None:
    async def run() -> None:
        decoder, gate = Decoder(**bounds), Gate()
        outcomes: list[Outcome] = []
        for _ in range(taken):
            decoder.submit(b"x" * 10, gate, outcomes.append)
        with pytest.raises(Overloaded, match=rf"{taken} pictures of {10 * taken} bytes wait.*try again in 1 s") as full:
            decoder.submit(b"x" * 10, gate, outcomes.append)
        assert full.value.retry_after_s == 1
        gate.open.set()
        await until(lambda: len(outcomes) == taken)
        assert decoder.waiting == 0
        assert (await decoder.decode(b"x" * 30, gate)).size == 30, "alone, any size is taken"
        decoder.close()

    asyncio.run(run())


def test_who_left_is_neither_decoded_nor_answered() -> None:
    async def run() -> None:
        decoder, gate = Decoder(), Gate()
        outcomes: list[Outcome] = []
        decoder.submit(b"first", gate, outcomes.append)
        assert gate.begun.acquire(timeout=20)
        left = asyncio.create_task(decoder.decode(b"second", gate))
        gone = decoder.submit(b"third", gate, outcomes.append)
        await asyncio.sleep(0)
        left.cancel()
        gone.cancel()
        last = asyncio.create_task(decoder.decode(b"last", gate))
        await asyncio.sleep(0)
        gate.open.set()
        assert (await last).tobytes() == b"last"
        assert left.cancelled()
        assert gate.bodies == [b"first", b"last"]
        assert [bytes(outcome) for outcome in outcomes if isinstance(outcome, np.ndarray)] == [b"first"]
        assert decoder.waiting == 0
        decoder.close()

    asyncio.run(run())


def test_closing_answers_what_waits_and_ends_the_threads() -> None:
    async def run() -> None:
        decoder, gate = Decoder(threads=2), Gate()
        outcomes: list[Outcome] = []
        for number in range(4):
            decoder.submit(b"%d" % number, gate, outcomes.append)
        assert gate.begun.acquire(timeout=20)
        assert gate.begun.acquire(timeout=20)
        names = {thread.name: thread for thread in threading.enumerate() if thread.name.startswith("decoder-")}
        assert len(names) == 2
        decoder.close()
        decoder.close()
        gate.open.set()
        await until(lambda: len(outcomes) == 4)
        assert sum(isinstance(outcome, NotReady) for outcome in outcomes) == 2
        for thread in names.values():
            thread.join(20)
            assert not thread.is_alive()
        with pytest.raises(NotReady, match="shutting down"):
            decoder.submit(b"", gate, outcomes.append)

    asyncio.run(run())


def test_a_loop_that_is_gone_ends_the_threads() -> None:
    gate, before = Gate(), set(threading.enumerate())

    async def run() -> threading.Thread:
        Decoder().submit(b"x", gate, lambda outcome: None)
        assert gate.begun.acquire(timeout=20)
        return next(each for each in set(threading.enumerate()) - before if each.name == "decoder-0")

    thread = asyncio.run(run())
    gate.open.set()
    thread.join(20)
    assert not thread.is_alive()


@pytest.mark.parametrize("name", ["threads", "max_waiting", "max_waiting_bytes"])
def test_a_bound_below_one_is_refused(name: str) -> None:
    async def run() -> None:
        with pytest.raises(ConfigError, match=f"{name}=0 is below 1"):
            Decoder(**{name: 0})

    asyncio.run(run())


async def until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never came true")
