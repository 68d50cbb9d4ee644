"""How far a forecast of waiting may be trusted: by how often those let in by it were late.

A queue under overload is always as long as the forecast allows, so every request let in stands at the edge: with an
unbiased forecast half of them would be late. The factor by which a forecast is stretched is found from outcomes alone,
whatever makes the forecast wrong: a step up for one that was late, a part of that down for each that was not, so that
in the long run three in a hundred are late (adaptive conformal inference: Gibbs, Candès, NeurIPS 2021, with the
logarithm of the factor in place of the level). Those that are late together, for a pause of the machine say, are one
event and one step: else a tenth of a second would have a class refused for ten.
"""

from __future__ import annotations

import math

MISSES = 0.03
"""Of those let in, so many may be late."""
_STEP = 0.05
_MOST = 2.5
"""What a noisy machine makes late is late at any factor; to refuse nearly all for it would help nobody."""
_TOGETHER_S = 0.1


class Caution:
    """Of one class. `factor` is 1 while forecasts hold."""

    __slots__ = ("_stepped_at", "factor")

    def __init__(self) -> None:
        self.factor = 1.0
        self._stepped_at = -math.inf

    def missed(self, now: float) -> None:
        """One that was let in was late."""
        if now - self._stepped_at >= _TOGETHER_S:
            self._stepped_at = now
            self.factor = min(_MOST, self.factor * (1 + _STEP * (1 - MISSES)))

    def kept(self) -> None:
        """One that was let in was in time."""
        if self.factor > 1.0:
            self.factor = max(1.0, self.factor * (1 - _STEP * MISSES))
