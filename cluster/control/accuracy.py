"""Predicted wait -> how many steps below the most accurate variant to serve. Pure.

Down as soon as the wait is above its bound, one step per target time, for each step needs a moment to show. Up after
it has been calm for a while, and only to a variant that the present load leaves some room: a wait that is short because
of the fast variant is no reason to leave it. Each step up that has to be taken back doubles the calm that the next one
needs, so that a load between two variants makes the step rarer and rarer, however wrong the forecast is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from cluster.scheduling import AccuracyPolicy

_MOST_PATIENCE = 64.0


class Pressure(NamedTuple):
    """What is seen when a batch forms."""

    delay_s: float
    """How long a request that comes now would wait."""
    busy_above: float
    """Part of their time that the executors would be busy if this load were served one step more accurately."""


@dataclass(frozen=True)
class Level:
    """`level` 0 is the most accurate variant. Times are None until there is one."""

    level: int = 0
    down_at: float | None = None
    up_at: float | None = None
    calm_since: float | None = None
    patience: float = 1.0
    """How many times `hold_s` it must be calm."""


def step(pressure: Pressure, state: Level, now: float, *, policy: AccuracyPolicy, levels: int) -> Level:
    """The level to serve at from now on; `levels` variants are there."""
    if state.level >= levels:
        state = replace(state, level=levels - 1)
    if pressure.delay_s > policy.step_down_at * policy.target_delay_s:
        return _under_pressure(replace(state, calm_since=None), now, policy, levels)
    if pressure.delay_s > policy.step_up_at * policy.target_delay_s or pressure.busy_above > policy.busy_at:
        return state if state.calm_since is None else replace(state, calm_since=None)
    if state.calm_since is None:
        return replace(state, calm_since=now)
    if state.level == 0:
        long_ago = state.up_at is not None and now - state.up_at > 2 * _hold_s(state, policy)
        return replace(state, patience=1.0, up_at=None) if long_ago else state
    if now - state.calm_since < _hold_s(state, policy):
        return state
    return replace(state, level=state.level - 1, up_at=now, calm_since=now)


def _under_pressure(state: Level, now: float, policy: AccuracyPolicy, levels: int) -> Level:
    just_stepped = state.down_at is not None and now - state.down_at < policy.target_delay_s
    if state.level >= levels - 1 or just_stepped:
        return state
    taken_back = state.up_at is not None and now - state.up_at <= 2 * _hold_s(state, policy)
    patience = min(_MOST_PATIENCE, state.patience * 2) if taken_back else state.patience
    return replace(state, level=state.level + 1, down_at=now, patience=patience)


def _hold_s(state: Level, policy: AccuracyPolicy) -> float:
    return policy.hold_s * state.patience
