"""Steps down under pressure, up when it is calm, and does not flap."""

from __future__ import annotations

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.control.accuracy import Level, Pressure, step
from cluster.scheduling import AccuracyPolicy

POLICY = AccuracyPolicy(target_delay_s=0.05, step_down_at=1.0, step_up_at=0.3, hold_s=1.0, busy_at=0.85)


def steps(pressures: list[Pressure], *, every_s: float, levels: int, state: Level | None = None) -> list[Level]:
    state, states = state or Level(), []
    for number, pressure in enumerate(pressures):
        state = step(pressure, state, number * every_s, policy=POLICY, levels=levels)
        states.append(state)
    return states


class Load:
    """A queue that grows and shrinks as the present level's speed has it: seconds of work come at `rate` of what the
    most accurate model can do, and each level is `gain` times as fast as the one above it."""

    def __init__(self, rate: float, gain: float, forecast: float = 1.0) -> None:
        self.rate, self.gain, self.forecast = rate, gain, forecast
        self.work = 0.0  # in seconds of level 0

    def run(self, seconds: float, levels: int, state: Level, start: float = 0.0, every_s: float = 0.01) -> list[Level]:
        states = []
        for number in range(int(seconds / every_s)):
            speed = self.gain**state.level
            self.work = max(0.0, self.work + (self.rate - speed) * every_s)
            above = min(1.0, self.rate / speed) * self.gain * self.forecast if state.level else 0.0
            pressure = Pressure(self.work / speed, above)
            state = step(pressure, state, start + number * every_s, policy=POLICY, levels=levels)
            states.append(state)
        return states


@given(delay=st.floats(0.0501, 10), levels=st.integers(2, 4), every_s=st.floats(0.001, 0.2))
def test_it_is_at_the_fastest_within_a_target_time_per_step(delay: float, levels: int, every_s: float) -> None:
    batches = int((levels - 1) * 0.05 / every_s) + 2 * levels
    states = steps([Pressure(delay, 1.0)] * batches, every_s=every_s, levels=levels)
    assert states[0].level == 1, "the first step is made at once"
    assert states[-1].level == levels - 1
    assert all(b.level - a.level in (0, 1) for a, b in itertools.pairwise(states))


@given(levels=st.integers(2, 4))
def test_it_comes_back_when_it_is_calm(levels: int) -> None:
    calm = [Pressure(0.0, 0.1)] * 1000
    states = steps(calm, every_s=0.01, levels=levels, state=Level(levels - 1))
    assert states[-1].level == 0
    assert states[98].level == levels - 1, "not before hold_s"
    assert all(a.level - b.level in (0, 1) for a, b in itertools.pairwise(states))


@given(delay=st.floats(0, 1), busy=st.floats(0, 2), levels=st.integers(1, 3), start=st.integers(0, 2))
def test_under_constant_observations_it_only_goes_one_way(delay: float, busy: float, levels: int, start: int) -> None:
    states = steps([Pressure(delay, busy)] * 500, every_s=0.02, levels=levels, state=Level(min(start, levels - 1)))
    moves = {b.level - a.level for a, b in itertools.pairwise(states)} - {0}
    assert len(moves) <= 1
    assert all(0 <= state.level < levels for state in states)


def test_a_fast_variant_is_kept_while_the_accurate_one_could_not_bear_the_load() -> None:
    between = [Pressure(0.0, 0.95)] * 1000
    assert steps(between, every_s=0.01, levels=2, state=Level(1))[-1].level == 1


@settings(deadline=None, max_examples=40)
@given(rate=st.floats(0.05, 8.0), gain=st.floats(1.3, 5.0), levels=st.integers(2, 4))
def test_under_constant_load_it_settles(rate: float, gain: float, levels: int) -> None:
    states = Load(rate, gain).run(120.0, levels, Level())
    half = [state.level for state in states[len(states) // 2 :]]
    changes = sum(a != b for a, b in itertools.pairwise(half))
    assert changes <= 2, f"{changes} changes in the second minute"


@settings(deadline=None, max_examples=15)
@given(rate=st.floats(1.05, 1.9))
def test_however_wrong_the_forecast_it_flaps_ever_less(rate: float) -> None:
    """It says that the accurate variant would be idle, each time."""
    states = [state.level for state in Load(rate, 2.0, forecast=0.1).run(240.0, 2, Level())]
    ups = [i for i, (a, b) in enumerate(itertools.pairwise(states)) if b < a]
    assert ups, "it tries"
    assert len(ups) <= 9, f"{len(ups)} times in four minutes"


def test_it_follows_a_load_that_comes_and_goes() -> None:
    load, state = Load(1.5, 2.0), Level()
    state = load.run(10.0, 2, state)[-1]
    assert state.level == 1
    load.rate = 0.3
    state = load.run(10.0, 2, state, start=10.0)[-1]
    assert state.level == 0


def test_fewer_variants_than_before_are_no_trouble() -> None:
    assert step(Pressure(0.0, 0.0), Level(3), 0.0, policy=POLICY, levels=2).level == 1
