"""Scheduling: who is served first, how much is kept for whom, and what is given up under pressure.

    classes:                       # from the highest to the lowest; `priority` 1 is the first of them
      - {name: high, weight: 16, share: 0.3, slots: 64}
      - {name: normal, weight: 4}
      - {name: low, weight: 1, accuracy: fast}
    late: "503"
    tenants: {acme: {rate_rps: 200, burst: 50}}
    accuracy: {target_delay_s: 0.02}

It travels in `user_config`, so it changes without a restart. serve_apps/batcher.py obeys it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cluster.errors import ConfigError

AccuracyWish = Literal["best", "balanced", "fast"]
"""best: only the most accurate variant; fast: only the fastest; balanced: the most accurate that pressure permits."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class PriorityClass(_Strict):
    """Requests that wait in one queue. Between classes the executor's time is shared by weight: twice the weight, twice
    the time, while both have work; what one does not use goes to the others."""

    name: str = Field(min_length=1)
    weight: float = Field(default=1.0, gt=0)
    share: float = Field(default=0.0, ge=0, le=1)
    """Of the executor's time, kept for this class while it has work, whatever the weights say."""
    slots: int = Field(default=0, ge=0)
    """Of `max_queued_requests`, places that only this class may fill."""
    streams: int = Field(default=0, ge=0)
    """Executor threads that serve only this class."""
    max_wait_s: float | None = Field(default=1.0, gt=0)
    """Floor against starvation: when its oldest request has waited longer, that one goes next, at most once in this
    time; and where forecasts refuse all that come, one is let in, and goes next. None: weights alone decide."""
    accuracy: AccuracyWish = "balanced"
    """Where the request says nothing."""


class Quota(_Strict):
    """A token bucket: `burst` requests at once, `rate_rps` in the long run."""

    rate_rps: float = Field(gt=0)
    burst: float = Field(ge=1)


class AccuracyPolicy(_Strict):
    """When requests that allow it are answered by a less accurate, faster variant."""

    target_delay_s: float = Field(default=0.025, gt=0)
    """The predicted wait that is still no pressure."""
    step_down_at: float = Field(default=1.0, gt=0)
    """One step to a faster variant when the wait is above this part of the target."""
    step_up_at: float = Field(default=0.3, ge=0)
    """One step back when it has been below this part for `hold_s`."""
    hold_s: float = Field(default=1.0, ge=0)
    """Calm must last this long; twice as long after each step back that had to be taken back."""
    busy_at: float = Field(default=0.85, gt=0, le=1)
    """No step back to a variant that would keep the executors busier than this part of the time."""

    @model_validator(mode="after")
    def _apart(self) -> AccuracyPolicy:
        if self.step_up_at >= self.step_down_at:
            raise ValueError(
                f"step_up_at={self.step_up_at} is not below step_down_at={self.step_down_at}; without a gap between "
                "them the variant would change at each batch"
            )
        return self


DEFAULT_CLASSES = (
    PriorityClass(name="high", weight=32),
    PriorityClass(name="normal", weight=4),
    PriorityClass(name="low", weight=1),
)


class Scheduling(_Strict):
    """All of it; a field left out keeps its default."""

    classes: tuple[PriorityClass, ...] = Field(default=DEFAULT_CLASSES, min_length=1)
    """From the highest to the lowest: priority n of a request is the n-th, and beyond the last the last."""
    default_class: str = "normal"
    """Of a request with priority 0, which is no wish."""
    late: Literal["503", "408"] = "503"
    """How a request is refused that would not be done in its time: 503 says when to try again, 408 that its timeout is
    too short."""
    quota: Quota | None = None
    """Of each tenant that `tenants` does not name; requests that name no tenant share one. None: no bound."""
    tenants: dict[str, Quota] = Field(default_factory=dict)
    max_tenants: int = Field(default=10_000, ge=1)
    """Tenants remembered at once; who has been silent longest is forgotten first, and starts with a full bucket."""
    accuracy: AccuracyPolicy = AccuracyPolicy()

    @model_validator(mode="after")
    def _consistent(self) -> Scheduling:
        names = [each.name for each in self.classes]
        if len(set(names)) < len(names):
            raise ValueError(f"classes {names}: two have the same name; give each its own")
        if self.default_class not in names:
            raise ValueError(f"default_class={self.default_class!r} is none of the classes {names}; name one of them")
        share = sum(each.share for each in self.classes)
        if share > 1:
            raise ValueError(f"the shares of the classes add up to {share:g}; keep them at 1 or below")
        return self

    def refuse_misfits(self, *, streams: int, places: int) -> None:
        """Raise ConfigError if it keeps more for single classes than there is, or all there is."""
        own = sum(each.streams for each in self.classes)
        if own and own >= streams:
            raise ConfigError(
                f"{own} streams are kept for single classes and there are {streams}; leave one to all of them, or give "
                "the runtime more streams"
            )
        slots = sum(each.slots for each in self.classes)
        if slots >= places:
            raise ConfigError(
                f"{slots} slots are kept for single classes of max_queued_requests={places}; leave places to all of "
                "them"
            )

    def rank(self, priority: int) -> int:
        """Place of a request's class in `classes`."""
        if priority <= 0:
            return [each.name for each in self.classes].index(self.default_class)
        return min(priority, len(self.classes)) - 1

    @property
    def portions(self) -> tuple[float, ...]:
        """What each class gets of the executor's time when all have work; they add up to 1. Shares first, the rest by
        weight: with fewer classes at work all portions grow, so that no share is undercut."""
        rest = 1 - sum(each.share for each in self.classes)
        total = sum(each.weight for each in self.classes)
        return tuple(max(each.share + rest * each.weight / total, 1e-6) for each in self.classes)
