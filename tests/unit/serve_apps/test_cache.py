"""Hits and joins: who gets whose answer, who must go to the batcher after all, and what is kept."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from cluster.errors import ConfigError, DeadlineExceeded, InferenceFailed, NotReady, Overloaded, SluiceError
from serve_apps.cache import HASH_ABOVE, ResponseCache
from tests.unit.serve_apps.cached import Answer, ManualBatcher, Request, cache_of, of


@pytest.fixture
def batcher() -> ManualBatcher:
    return ManualBatcher()


@pytest.fixture
def cache(batcher: ManualBatcher) -> ResponseCache[Request, Answer]:
    return cache_of(batcher, max_bytes=1 << 20)


Cache = ResponseCache[Request, Answer]


def put(cache: Cache, *requests: Request) -> None:
    for request in requests:
        cache.put(request)


def values(request: Request) -> int:
    return int(request.answer.outputs["y"][0, 0])


def test_what_was_answered_before_is_answered_at_once(cache: Cache, batcher: ManualBatcher) -> None:
    first, other, again = of(4), of(5), of(4)
    put(cache, first, other)
    for request in list(batcher.waiting):
        batcher.answer(request)
    put(cache, again)
    assert (values(first), values(other), values(again)) == (40, 50, 40)
    assert (batcher.puts, cache.counters.hits, cache.counters.led) == (2, 1, 2)


def test_equal_requests_share_what_is_on_its_way(cache: Cache, batcher: ManualBatcher) -> None:
    requests = [of(4) for _ in range(5)]
    put(cache, *requests)
    assert list(batcher.waiting) == [requests[0]]
    batcher.answer(requests[0])
    assert [values(request) for request in requests] == [40] * 5
    assert cache.counters.joined == 4


@pytest.mark.parametrize(
    ("leader", "later", "joins"),
    [
        ({"timeout_s": 5.0}, {"timeout_s": 5.0}, True),
        ({"timeout_s": 5.0}, {"timeout_s": 9.0}, True),
        ({"timeout_s": 5.0}, {}, True),
        ({"timeout_s": 5.0}, {"timeout_s": 4.0}, False),
        ({}, {"timeout_s": 4.0}, False),
        ({"priority": 2}, {"priority": 3}, True),
        ({"priority": 2}, {"priority": 1}, False),
        ({"priority": 2}, {"priority": 0}, True),
        ({"priority": 0}, {"priority": 9}, False),
        ({"priority": 1, "timeout_s": 5.0}, {"priority": 2, "timeout_s": 4.0}, False),
    ],
)  # fmt: skip
def test_only_who_would_be_served_no_sooner_joins(
    cache: Cache, batcher: ManualBatcher, leader: dict[str, Any], later: dict[str, Any], joins: bool
) -> None:
    first, second = of(1, **leader), of(1, **later)
    put(cache, first, second)
    assert list(batcher.waiting) == [first] if joins else [first, second]
    third = of(1, priority=0)
    put(cache, third)
    assert third not in batcher.waiting, "it joins whoever leads now"
    batcher.answer(first if joins else second)
    assert values(third) == 10


def test_an_older_leader_s_end_leaves_the_newer_one_to_be_joined(cache: Cache, batcher: ManualBatcher) -> None:
    older, newer, third = of(1, timeout_s=9.0), of(1, timeout_s=5.0), of(1)
    put(cache, older, newer)
    batcher.fail(older, Overloaded("full"))
    put(cache, third)
    assert list(batcher.waiting) == [newer]
    batcher.answer(newer)
    assert values(third) == 10


def test_a_leader_that_is_late_leaves_its_place_to_the_most_urgent(cache: Cache, batcher: ManualBatcher) -> None:
    leader, patient, urgent, low = (of(1, timeout_s=d, priority=p) for d, p in ((1.0, 1), (9.0, 1), (5.0, 1), (3.0, 2)))
    put(cache, leader, patient, urgent, low)
    assert list(batcher.waiting) == [leader]
    batcher.advance(2)
    assert isinstance(leader.error, DeadlineExceeded)
    assert list(batcher.waiting) == [urgent, low], "`low` would be late behind `urgent`"
    batcher.answer(low)
    assert not patient.outcomes
    batcher.answer(urgent)
    assert (values(patient), values(urgent), values(low)) == (10, 10, 10)


def test_who_is_out_of_time_when_its_leader_fails_is_told_what_the_batcher_tells(
    cache: Cache, batcher: ManualBatcher
) -> None:
    leader, joined = of(1, timeout_s=1.0), of(1, timeout_s=2.0)
    put(cache, leader, joined)
    batcher.now = 3.0  # the batcher looked late
    batcher.fail(leader, DeadlineExceeded("too late"))
    assert "told so by the batcher" in str(joined.error)
    assert not batcher.waiting


def test_a_leader_whose_client_leaves_stays_for_the_others(cache: Cache, batcher: ManualBatcher) -> None:
    leader, second, third = of(1), of(1), of(1)
    put(cache, leader, second, third)
    cache.cancel(leader)
    cache.cancel(second)
    assert list(batcher.waiting) == [leader]
    batcher.answer(leader)
    assert values(third) == 10
    assert leader.outcomes == second.outcomes == []


def test_when_all_have_left_the_batcher_is_told(cache: Cache, batcher: ManualBatcher) -> None:
    leader, second = of(1), of(1)
    put(cache, leader, second)
    cache.cancel(leader)
    cache.cancel(second)
    assert not batcher.waiting
    late = leader.done  # a batcher may still settle what it was told to drop
    late(leader, Answer({"y": np.array([[99]])}, 0))
    assert leader.outcomes == second.outcomes == []
    fresh = of(1)
    put(cache, fresh)
    batcher.answer(fresh)
    assert values(fresh) == 10


@pytest.mark.parametrize("error", [InferenceFailed("NaN")])
def test_what_the_content_is_to_blame_for_is_everybody_s(
    cache: Cache, batcher: ManualBatcher, error: SluiceError
) -> None:
    leader, second = of(1), of(1)
    put(cache, leader, second)
    batcher.fail(leader, error)
    assert leader.error is error
    assert second.error is error
    put(cache, of(1))
    assert batcher.puts == 2, "a failure is not kept"


@pytest.mark.parametrize("error", [Overloaded("full"), DeadlineExceeded("late"), NotReady("closing")])
def test_what_is_the_leader_s_own_is_not_the_others(cache: Cache, batcher: ManualBatcher, error: SluiceError) -> None:
    leader, second, third = of(1), of(1), of(1)
    put(cache, leader, second, third)
    batcher.next_ones = [error]
    batcher.fail(leader, error)
    assert leader.error is error
    assert second.error is error, "it was refused itself"
    assert list(batcher.waiting) == [third]
    batcher.answer(third)
    assert values(third) == 10


def test_thousands_refused_one_by_one_do_not_nest(cache: Cache, batcher: ManualBatcher) -> None:
    leader, *others = requests = [of(1) for _ in range(5000)]
    put(cache, *requests)
    batcher.next_ones = [Overloaded("full") for _ in others]
    batcher.fail(leader, Overloaded("full"))
    assert all(isinstance(request.error, Overloaded) for request in requests)


def test_a_mistake_of_the_batcher_is_answered(cache: Cache, batcher: ManualBatcher) -> None:
    batcher.next_ones = [KeyError("x")]  # type: ignore[list-item]
    request = of(1)
    put(cache, request)
    with pytest.raises(InferenceFailed, match="KeyError"):
        raise request.error


def test_a_front_s_mistake_costs_no_other_its_answer(cache: Cache, batcher: ManualBatcher) -> None:
    def fails(request: Request) -> None:
        raise OSError("the connection is gone")

    leader, second, third = of(1, then=fails), of(1, then=fails), of(1)
    put(cache, leader, second, third)
    batcher.answer(leader)
    assert values(third) == 10


def test_who_is_cancelled_while_others_are_told_gets_nothing(cache: Cache, batcher: ManualBatcher) -> None:
    third = of(1)
    leader, second = of(1), of(1, then=lambda request: cache.cancel(third))
    put(cache, leader, second, third)
    batcher.answer(leader)
    assert values(second) == 10
    assert third.outcomes == []


def test_other_models_forget_all_and_nobody_joins_the_old_one(cache: Cache, batcher: ManualBatcher) -> None:
    known, on_its_way = of(1), of(2)
    put(cache, known)
    batcher.answer(known)
    put(cache, on_its_way)
    batcher.model = 1
    cache.models_changed()
    assert (len(cache), cache.bytes) == (0, 0)
    again, joined = of(1), of(2)
    put(cache, again, joined)
    batcher.answer(on_its_way)
    assert values(on_its_way) == 20
    late = of(2)
    put(cache, late)
    assert late not in batcher.waiting, "it joins who asked after the change"
    for request in list(batcher.waiting):
        batcher.answer(request)
    assert (values(again), values(joined), values(late)) == (11, 21, 21)


def test_one_model_s_answers_can_be_forgotten(cache: Cache, batcher: ManualBatcher) -> None:
    for model in (0, 1):
        batcher.model = model
        request = of(model)
        put(cache, request)
        batcher.answer(request)
    one = cache.bytes // 2
    cache.forget(1)
    assert (len(cache), cache.bytes) == (1, one)
    put(cache, of(0), of(1))
    assert cache.counters.hits == 1


def test_the_least_recently_asked_goes_first(batcher: ManualBatcher) -> None:
    batcher.at_once = True
    one: Cache = cache_of(batcher, max_bytes=1 << 20)
    put(one, of(0))
    cache: Cache = cache_of(batcher, max_bytes=3 * one.bytes)
    put(cache, of(1), of(2), of(3), of(1), of(4))
    assert (len(cache), cache.bytes, cache.counters.evicted) == (3, 3 * one.bytes, 1)
    before = batcher.puts
    put(cache, of(1), of(3), of(4))
    assert batcher.puts == before
    put(cache, of(2))
    assert batcher.puts == before + 1


def test_no_bytes_keep_nothing_and_still_join(batcher: ManualBatcher) -> None:
    cache: Cache = cache_of(batcher, max_bytes=0)
    first, second = of(1), of(1)
    put(cache, first, second)
    batcher.answer(first)
    put(cache, of(1))
    assert (values(second), batcher.puts, len(cache)) == (10, 2, 0)
    with pytest.raises(ConfigError, match="max_bytes=-1 is below 0"):
        cache_of(batcher, max_bytes=-1)


def test_what_is_too_large_to_hash_goes_straight_to_the_batcher(batcher: ManualBatcher) -> None:
    cache: Cache = cache_of(batcher, max_bytes=1 << 20, max_input_bytes=3)
    first, second, gone = of(1), of(1), of(1)
    put(cache, first, second, gone)
    cache.cancel(gone)
    assert list(batcher.waiting) == [first, second]
    batcher.answer(first)
    assert (values(first), cache.counters.passed, len(cache)) == (10, 3, 0)


def test_what_is_kept_is_its_own_memory_and_cannot_be_changed(cache: Cache, batcher: ManualBatcher) -> None:
    first, again = of(1), of(1)
    put(cache, first)
    batcher.answer(first)
    batch = first.answer.outputs["y"].base
    assert batch is not None
    batch[:] = 0
    put(cache, again)
    assert values(again) == 10
    assert again.answer.outputs["y"].base is None
    with pytest.raises(ValueError, match="read-only"):
        again.answer.outputs["y"][:] = 7  # type: ignore[index]


def test_the_bytes_that_are_told_are_the_bytes_that_are_taken(batcher: ManualBatcher) -> None:
    batcher.at_once = True
    cache: Cache = cache_of(batcher, max_bytes=1 << 30)
    put(cache, of(-1))
    gc.collect()
    tracemalloc.start()
    before = cache.bytes
    for number in range(2000):
        cache.put(of(number))
    batcher.failed.clear()
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert 0.3 * (cache.bytes - before) < taken <= cache.bytes - before


def inputs_of(*tensors: np.ndarray) -> dict[str, np.ndarray]:
    return {f"x{number}": tensor for number, tensor in enumerate(tensors)}


DIFFERENT = [
    inputs_of(np.zeros((1, 4), np.uint8)), inputs_of(np.zeros((2, 2), np.uint8)), inputs_of(np.zeros((1, 4), np.int8)),
    {"y": np.zeros((1, 4), np.uint8)}, inputs_of(np.zeros((1, 2), np.uint8), np.zeros((1, 2), np.uint8)),
    inputs_of(np.zeros((1, 1), np.uint8), np.zeros((1, 3), np.uint8)),
    *(inputs_of(np.full((1, HASH_ABOVE + more), fill, np.uint8)) for more in (0, 1, 2) for fill in (0, 1)),
    inputs_of(np.array([["ab", "c"]], object)), inputs_of(np.array([["a", "bc"]], object)),
    inputs_of(np.array([[b"ab", b"c"]], object)), inputs_of(np.array([["ab1:c", ""]], object)),
]  # fmt: skip


def test_other_names_kinds_shapes_and_wishes_are_other_requests(cache: Cache, batcher: ManualBatcher) -> None:
    requests = [Request(inputs, wish=wish) for inputs in DIFFERENT for wish in (None, "best", "fast")]
    put(cache, *requests)
    assert len(batcher.waiting) == len(requests)
    put(cache, *(Request(dict(reversed(r.inputs.items())), wish=r.wish) for r in requests))
    assert len(batcher.waiting) == len(requests)


KINDS = st.sampled_from(["u1", "f4", "i8", "?"])


@given(KINDS.flatmap(lambda kind: arrays(kind, array_shapes(max_dims=3, max_side=3))))
def test_how_equal_numbers_lie_in_memory_makes_no_difference(array: np.ndarray) -> None:
    batcher = ManualBatcher()
    cache: Cache = cache_of(batcher, max_bytes=0)
    spread = np.zeros((*array.shape, 2), array.dtype)
    spread[..., 0] = array
    put(cache, *(Request({"x": each}) for each in (array, np.asfortranarray(array), spread[..., 0])))
    assert len(batcher.waiting) == 1
    other = array.copy()
    other.view(np.uint8).reshape(-1)[-1] ^= 1
    put(cache, Request({"x": other}))
    assert len(batcher.waiting) == 2


def test_no_request_is_kept_alive(cache: Cache, batcher: ManualBatcher) -> None:
    gc.disable()
    try:
        leader, joined, gone = of(1), of(1), of(2)
        alive = [weakref.ref(request) for request in (leader, joined, gone)]
        put(cache, leader, joined, gone)
        batcher.answer(leader)
        cache.cancel(gone)
        for request in (leader, joined, gone):
            del request.done, request.then
        del leader, joined, gone, request
        assert [ref() for ref in alive] == [None] * 3
    finally:
        gc.enable()
