"""How far a forecast of waiting may be trusted: by how often those let in by it were late.

A queue under overload is always as long as the forecast allows, so every request let in stands at the edge: with an
unbiased forecast half of them would be late. The factor by which a forecast is stretched is found from outcomes alone,
whatever makes the forecast wrong: a step up for each one that was late, a hundredth of that down for each that was not,
so that in the long run one in a hundred is late (adaptive conformal inference: Gibbs, Candès, NeurIPS 2021, with the
logarithm of the factor in place of the level).
"""

from __future__ import annotations

MISSES = 0.01
"""Of those let in, so many may be late."""
_STEP = 0.05
_MOST = 8.0


class Caution:
    """Of one class. `factor` is 1 while forecasts hold."""

    __slots__ = ("factor",)

    def __init__(self) -> None:
        self.factor = 1.0

    def missed(self) -> None:
        """One that was let in was late."""
        self.factor = min(_MOST, self.factor * (1 + _STEP * (1 - MISSES)))

    def kept(self) -> None:
        """One that was let in was in time."""
        if self.factor > 1.0:
            self.factor = max(1.0, self.factor * (1 - _STEP * MISSES))
