"""A request -> an answer that is known already, or on its way; else the batcher. Sits between a front and the batcher,
on one event loop, without asyncio: `put(request)`, and `request.done(request, outcome)` exactly once.

Two gains from one key, the content of a request:

- **hit**: the same inputs were answered before; the answer is given inside `put`.
- **join**: the same inputs are with the batcher now. The request that went there leads, the others wait for its answer.

Who may join, and what becomes of those who did:

- A request joins a leader that the batcher will serve no later than itself: the leader's deadline is not after its own,
  and its priority is not behind. Otherwise it would be late, and nobody would notice; so it goes to the batcher itself
  and leads whoever comes next. (None, an infinite deadline, joins any; only those without a deadline join it.)
- The leader is answered, or the model fails on its content: all get that.
- The leader fails for reasons of its own (its deadline, a full queue, a quota): it gets that error, and each of the
  others is put again with its own deadline; the most urgent of them leads.
- The leader's client leaves: its request stays with the batcher on behalf of the others, and keeps its place. When the
  last of them leaves too, the batcher is told.

Bounded by `max_bytes`; the answer that was asked for least recently goes first. `models_changed` forgets all, and what
is in flight then is neither kept nor joined. Only for models whose answer is a function of their inputs: whoever wants
fresh randomness goes to the batcher directly.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError, DeadlineExceeded, InferenceFailed, InvalidRequest, SluiceError

Arrays = Mapping[str, NDArray[np.generic]]
Key = tuple[Any, ...]
"""The wish; name, dtype and shape of each input; at the end their numbers, or a hash of them."""
HASH_ABOVE = 2048
"""Numbers of so many bytes are a key themselves: exact, and 0.3 us for 784 bytes where BLAKE2b takes 1.2."""
MAX_INPUT_BYTES = 1 << 20
"""Hashing takes about 1 ms for each MiB, on the event loop: what is larger goes to the batcher unhashed."""
ENTRY_BYTES = 1024
ARRAY_BYTES = 256
"""What Python takes for an entry, and for each of its tensors beside the numbers; a test measures them."""
_log = logging.getLogger("ray.serve")


class Answer(Protocol):
    """What the batcher gives: the outputs, and which model made them."""

    @property
    def outputs(self) -> Arrays: ...

    @property
    def model(self) -> Any: ...


class Request(Protocol):
    """What a front puts. Told apart by identity; `done` is put aside while it leads, and put back before it is called.
    """

    inputs: Arrays
    timeout_s: float | None
    """From `put` on; what is left of it, where it is put again."""
    deadline: float
    """On the batcher's clock, infinite for none: set in `put`, by this cache and by the batcher."""
    priority: int
    """The smaller goes first; 0, no wish, last."""
    done: Callable[[Any, Any], None]
    """Called with the request and an Answer or a SluiceError, perhaps before `put` returns. Never after `cancel`."""


R = TypeVar("R", bound=Request)
R_contra = TypeVar("R_contra", bound=Request, contravariant=True)
A = TypeVar("A", bound=Answer)


class Batcher(Protocol[R_contra]):
    def put(self, request: R_contra) -> None:
        """Have it answered through its `done`, or raise."""

    def cancel(self, request: R_contra) -> None:
        """Nobody waits for it any more. Of a request that is not there: nothing."""

    def expired(self) -> DeadlineExceeded:
        """For a request whose time ran out while it waited for another's answer."""


@dataclass
class Counters:
    """Since the start: requests by the way they went, and answers put out by newer ones."""

    hits: int = 0
    joined: int = 0
    led: int = 0
    passed: int = 0
    """Too large to be hashed."""
    led_again: int = 0
    """Joined, and had to go to the batcher after all."""
    evicted: int = 0


class _Flight(Generic[R, A]):
    """A leader that is with the batcher, and those who wait for its answer."""

    __slots__ = ("cache", "done", "generation", "joiners", "key", "leader", "left", "over")

    def __init__(self, cache: ResponseCache[R, A], key: Key, leader: R, generation: int) -> None:
        self.cache = cache
        self.key = key
        self.leader: R | None = leader
        self.done = leader.done
        self.generation = generation
        self.joiners: dict[R, None] | None = None
        self.left = False  # the leader's client
        self.over = False

    def settle(self, request: R, outcome: A | SluiceError) -> None:
        """The leader's `done` while it leads."""
        if not self.over:
            self.cache._settle(self, request, outcome)


class ResponseCache(Generic[R, A]):
    """`answer` makes an Answer of outputs and model: what is kept must not lie in the memory of a whole batch. `wish`
    says what beside the inputs decides a request's answer: the version or accuracy class wanted, its tenant. `clock` is
    the batcher's."""

    def __init__(
        self, batcher: Batcher[R], answer: Callable[[dict[str, NDArray[np.generic]], Any], A], *, max_bytes: int,
        wish: Callable[[R], Hashable], max_input_bytes: int = MAX_INPUT_BYTES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        if max_bytes < 0:
            raise ConfigError(f"max_bytes={max_bytes} is below 0; 0 keeps no answer and only joins equal requests")
        self.max_bytes = max_bytes
        self.max_input_bytes = max_input_bytes
        self.counters = Counters()
        self.bytes = 0
        self._batcher = batcher
        self._answer = answer
        self._wish = wish
        self._clock = clock
        self._generation = 0
        self._kept: OrderedDict[Key, tuple[A, int]] = OrderedDict()
        self._flights: dict[Key, _Flight[R, A]] = {}  # by key, the one that may be joined
        self._flight_of: dict[R, _Flight[R, A]] = {}  # of whoever still waits
        self._again: deque[tuple[R, _Flight[R, A]]] = deque()
        self._putting_again = False
        # With a secret of this process: nobody can prepare two inputs of one hash.
        self._hash = blake2b(digest_size=16, key=os.urandom(16))

    def __len__(self) -> int:
        """Answers that are kept."""
        return len(self._kept)

    def put(self, request: R) -> None:
        """Answer it, let it join, or put it to the batcher. What the batcher raises reaches `done`."""
        key = self._key(request)
        if key is None:
            self.counters.passed += 1
            self._batcher.put(request)
            return
        kept = self._kept.get(key)
        if kept is not None:
            self._kept.move_to_end(key)
            self.counters.hits += 1
            request.done(request, kept[0])
            return
        request.deadline = math.inf if request.timeout_s is None else self._clock() + request.timeout_s
        flight = self._flights.get(key)
        if flight is not None and self._may_join(request, flight):
            self.counters.joined += 1
            self._join(request, flight)
        else:
            self.counters.led += 1
            self._lead(request, key)

    def cancel(self, request: R) -> None:
        """Its client left: `done` will not be called."""
        flight = self._flight_of.pop(request, None)
        if flight is None:
            self._batcher.cancel(request)  # it was too large to be hashed, or is answered
            return
        if flight.leader is request:
            flight.left = True
        elif flight.joiners:
            flight.joiners.pop(request, None)
        leader = flight.leader
        if flight.left and not flight.joiners and leader is not None:
            self._end(flight)
            self._batcher.cancel(leader)

    def models_changed(self) -> None:
        """Other models are resident than before: forget all answers."""
        self._generation += 1
        self._kept.clear()
        self._flights.clear()
        self.bytes = 0

    def forget(self, model: Any) -> None:
        """Forget what this model answered: after a time of pressure, the smaller one's."""
        for key in [key for key, (answer, _) in self._kept.items() if answer.model == model]:
            self.bytes -= self._kept.pop(key)[1]

    def _key(self, request: R) -> Key | None:
        """None for what is too large. Equal keys are equal requests."""
        inputs = request.inputs
        if len(inputs) != 1:
            return self._key_of_several(request)
        [(name, array)] = inputs.items()
        dtype, size = array.dtype, array.nbytes
        if dtype.hasobject:
            return self._key_of_several(request)
        if size > self.max_input_bytes:
            return None
        if size <= HASH_ABOVE:
            content = array.tobytes()
        else:
            hashed = self._hash.copy()
            hashed.update(np.ascontiguousarray(array))  # type: ignore[arg-type]
            content = hashed.digest()
        return (self._wish(request), name, dtype, array.shape, content)

    def _key_of_several(self, request: R) -> Key | None:
        hashed = self._hash.copy()
        key: list[Hashable] = [self._wish(request)]
        size = 0
        for name, array in sorted(request.inputs.items()):
            pieces = _pieces(array) if array.dtype.hasobject else [array.tobytes()]
            size += sum(map(len, pieces))
            if size > self.max_input_bytes:
                return None
            for piece in pieces:
                hashed.update(piece)
            key += (name, array.dtype, array.shape)
        return (*key, hashed.digest())

    def _may_join(self, request: R, flight: _Flight[R, A]) -> bool:
        leader = flight.leader
        return leader is not None and leader.deadline <= request.deadline and _level(leader) <= _level(request)

    def _join(self, request: R, flight: _Flight[R, A]) -> None:
        if flight.joiners is None:
            flight.joiners = {}
        flight.joiners[request] = None
        self._flight_of[request] = flight

    def _lead(self, request: R, key: Key) -> None:
        flight = _Flight(self, key, request, self._generation)
        self._flights[key] = self._flight_of[request] = flight
        request.done = flight.settle
        try:
            self._batcher.put(request)
        except SluiceError as error:
            flight.settle(request, error)
        except Exception as error:  # the others who wait here must not wait forever
            _log.exception("a request could not be put to the batcher")
            flight.settle(request, InferenceFailed(f"the batcher failed on the request: {type(error).__name__}"))

    def _end(self, flight: _Flight[R, A]) -> None:
        flight.over = True
        flight.leader = None  # its `done` may point back here: no cycle for the collector
        current = self._flights.pop(flight.key, None)
        if current is not flight and current is not None:
            self._flights[flight.key] = current

    def _settle(self, flight: _Flight[R, A], leader: R, outcome: A | SluiceError) -> None:
        """The batcher is done with a leader."""
        self._end(flight)
        leader.done = flight.done
        joiners = flight.joiners
        shared = True
        if not isinstance(outcome, SluiceError):
            if flight.generation == self._generation:
                self._keep(flight.key, outcome, len(leader.inputs))
        elif joiners:
            shared = isinstance(outcome, (InferenceFailed, InvalidRequest))  # what the content is to blame for
        if not flight.left:
            self._tell(leader, flight, outcome)
        if joiners and shared:
            for request in list(joiners):
                self._tell(request, flight, outcome)
        elif joiners:
            urgent = sorted(joiners, key=lambda request: (_level(request), request.deadline))
            self._again.extend((request, flight) for request in urgent)
            self._put_again()

    def _tell(self, request: R, flight: _Flight[R, A], outcome: A | SluiceError) -> None:
        # Another's `done` may have cancelled it a moment ago.
        if self._flight_of.pop(request, None) is not flight:
            return
        try:
            request.done(request, outcome)
        except Exception:  # one front's mistake must not cost the others their answer
            _log.exception("a request could not be answered")

    def _put_again(self) -> None:
        """A loop and no recursion: each of thousands may be refused inside `put`."""
        if self._putting_again:
            return
        self._putting_again = True
        try:
            while self._again:
                request, before = self._again.popleft()
                if self._flight_of.get(request) is not before:
                    continue  # its client left meanwhile
                kept, flight = self._kept.get(before.key), self._flights.get(before.key)
                if kept is not None:
                    self._tell(request, before, kept[0])
                elif flight is not None and self._may_join(request, flight):
                    self._join(request, flight)
                else:
                    self._lead_again(request, before)
        finally:
            self._putting_again = False

    def _lead_again(self, request: R, before: _Flight[R, A]) -> None:
        if request.timeout_s is not None:
            # The batcher counts from now on: only what is left.
            request.timeout_s = request.deadline - self._clock()
            if request.timeout_s <= 0:
                self._tell(request, before, self._batcher.expired())
                return
        self.counters.led_again += 1
        self._lead(request, before.key)

    def _keep(self, key: Key, answer: A, inputs: int) -> None:
        arrays = answer.outputs
        size = ENTRY_BYTES + ARRAY_BYTES * (inputs + len(arrays)) + len(key[-1])
        for array in arrays.values():
            size += array.nbytes if not array.dtype.hasobject else _text_bytes(array)
        if size > self.max_bytes:
            return
        outputs = {}
        for name, array in arrays.items():
            outputs[name] = own = array.copy()
            own.setflags(write=False)
        entry = (self._answer(outputs, answer.model), size)
        if self._kept.setdefault(key, entry) is not entry:
            return  # two may lead with one key
        self.bytes += size
        while self.bytes > self.max_bytes:
            self.counters.evicted += 1
            self.bytes -= self._kept.popitem(last=False)[1][1]


def _level(request: Request) -> float:
    return request.priority or math.inf


def _pieces(array: NDArray[np.generic]) -> list[bytes]:
    """The elements of a BYTES tensor, each behind its kind and length: ("ab", "c") is not ("a", "bc")."""
    pieces = []
    for element in array.ravel().tolist():
        is_text = isinstance(element, str)
        content = element.encode() if is_text else element
        pieces += [b"%b%d:" % (b"s" if is_text else b"b", len(content)), content]
    return pieces


def _text_bytes(array: NDArray[np.generic]) -> int:
    return sum(72 + 4 * len(element) for element in array.ravel().tolist())
