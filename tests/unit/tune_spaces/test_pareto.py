"""Non-dominated sets by their definition: on random outcomes, with unknown figures as the worst there is."""

from __future__ import annotations

import math
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from cluster.plans import Configuration
from cluster.runtimes import RuntimeConfig
from cluster.studies import Outcome
from tune_spaces.pareto import dominates, front, goodness, pareto

FEW = st.sampled_from([1.0, 2.0, 3.0])
"""So few values that ties and dominance are common."""


def outcome(rate: float | None, p99: float, accuracy: float, cost: float | None, batch: int = 1) -> Outcome:
    configuration = Configuration(
        variant_id="v", variant_name="v", runtime=RuntimeConfig(), max_batch_size=batch, max_queued_requests=64
    )
    return Outcome(
        configuration=configuration, accuracy=accuracy, trials=1, slo_rate_rps=rate, slo_rates_rps=(), max_rate_rps=9.0,
        latency_p50_s=p99 / 2, latency_p99_s=p99, attainment=1.0, core_s_per_million=cost, memory_bytes=None,
    )  # fmt: skip


outcomes = st.lists(
    st.builds(outcome, st.none() | FEW, FEW | st.just(math.inf), FEW, st.none() | FEW, st.integers(1, 8)), max_size=12
)


@given(outcomes)
def test_what_is_kept_is_exactly_what_nothing_beats(given_: list[Outcome]) -> None:
    kept = pareto(given_)
    for one in given_:
        better = [
            other
            for other in given_
            if goodness(other) != goodness(one)
            and all(a >= b for a, b in zip(goodness(other), goodness(one), strict=True))
        ]
        assert (one in kept) == (not better)


@given(outcomes)
def test_whatever_is_left_out_is_beaten_by_something_kept(given_: list[Outcome]) -> None:
    kept = pareto(given_)
    assert bool(kept) == bool(given_)
    for one in given_:
        assert one in kept or any(dominates(other, one) for other in kept)


@given(outcomes)
def test_the_order_stays_and_a_second_time_changes_nothing(given_: list[Outcome]) -> None:
    kept = pareto(given_)
    assert [one for one in given_ if one in kept] == kept
    assert pareto(kept) == kept


@given(outcomes, st.randoms())
def test_the_order_given_does_not_decide(given_: list[Outcome], random: object) -> None:
    shuffled = list(given_)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert sorted(map(goodness, pareto(shuffled))) == sorted(map(goodness, pareto(given_)))


def test_each_respect_counts_alone() -> None:
    base = outcome(2.0, 2.0, 2.0, 2.0)
    for better in (outcome(3.0, 2.0, 2.0, 2.0), outcome(2.0, 1.0, 2.0, 2.0), outcome(2.0, 2.0, 3.0, 2.0),
                   outcome(2.0, 2.0, 2.0, 1.0)):  # fmt: skip
        assert pareto([base, better]) == [better]


def test_of_errors_the_smaller_is_the_better() -> None:
    large, small = (replace(outcome(2.0, 2.0, error, 2.0), higher_is_better=False) for error in (0.4, 0.3))
    assert pareto([large, small]) == [small]
    assert dominates(small, large)


def test_unknown_is_worst_but_beats_nothing_away() -> None:
    known, unknown = outcome(1.0, 1.0, 1.0, 1.0), outcome(None, 1.0, 1.0, None)
    assert pareto([unknown, known]) == [known]
    fast = outcome(None, 0.5, 1.0, None)
    assert pareto([fast, known]) == [fast, known]


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), max_size=20))
def test_the_front_rises_and_nothing_lies_above_it(points: list[tuple[float, float]]) -> None:
    line = front(points)
    assert line == sorted(line)
    assert [y for _, y in line] == sorted({y for _, y in line})
    for x, y in points:
        assert any(a <= x and b >= y for a, b in line)
