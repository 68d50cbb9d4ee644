"""Whatever makes forecasts wrong: of those let in three in a hundred are late in the long run; calm brings trust."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.control.admission import MISSES, Caution


@pytest.mark.parametrize(("bias", "noise"), [(1.0, 0.3), (1.5, 0.2), (0.7, 0.5)])
def test_three_in_a_hundred_are_late_in_the_long_run(bias: float, noise: float) -> None:
    """Let in at the edge: as under overload, where the queue is as long as the forecast allows."""
    caution, generator, late = Caution(), random.Random(1), []
    for number in range(40_000):
        took = bias * generator.lognormvariate(0, noise) / caution.factor  # of the time that there was
        late.append(took > 1)
        caution.missed(0.2 * number) if late[-1] else caution.kept()
    assert sum(late[20_000:]) / 20_000 == pytest.approx(MISSES, abs=0.004)


@given(outcomes=st.lists(st.booleans(), max_size=500), gap_s=st.floats(0, 1))
def test_it_never_makes_a_forecast_shorter_and_ends_somewhere(outcomes: list[bool], gap_s: float) -> None:
    caution = Caution()
    for number, late in enumerate(outcomes):
        before = caution.factor
        caution.missed(number * gap_s) if late else caution.kept()
        assert 1.0 <= caution.factor <= 2.5
        assert caution.factor >= before if late else caution.factor <= before


def test_those_that_are_late_together_are_one_event() -> None:
    once, together, apart = Caution(), Caution(), Caution()
    once.missed(5.0)
    for number in range(30):
        together.missed(5.0 + 0.003 * number)
        apart.missed(5.0 + 0.11 * number)
    assert together.factor == once.factor > 1.0
    assert apart.factor > 2.0


def test_a_calm_time_brings_trust_back() -> None:
    caution = Caution()
    for second in range(100):
        caution.missed(float(second))
    assert caution.factor == 2.5
    for _ in range(5000):
        caution.kept()
    assert caution.factor == 1.0
