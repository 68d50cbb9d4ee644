"""Seeds -> draws from the standard normal, the same to the last bit on every machine: what a generator is given.

    seed, place -> SplitMix64's mixing -> 32 even bits -> the normal distribution's quantile

No library's generator is used, for none promises its normal draws for the next version, and no logarithm or exponential
of the processor's or the C library's, which differ in their last bits: only sums, products, quotients and square roots
in double precision, which IEEE 754 rounds in one way. Number k of a seed does not depend on how many are drawn, nor on
what else is drawn with it.

Mixing: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 16 (Stafford's
variant 13). Quantile: Wichura, "Algorithm AS 241: The Percentage Points of the Normal Distribution", Applied Statistics
37(3), 1988, PPND16, whose third range 32 bits never reach.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]
_GAMMA = np.uint64(0x9E3779B97F4A7C15)
_CENTRE = (
    (2.50908092873012267e3, 3.34305755835881281e4, 6.72657709270087009e4, 4.59219539315498715e4, 1.37316937655094611e4,
     1.97159095030655144e3, 1.33141667891784377e2, 3.38713287279636661e0),
    (5.22649527885285456e3, 2.87290857357219427e4, 3.93078958000927106e4, 2.12137943015865959e4, 5.39419602142475111e3,
     6.87187007492057908e2, 4.23133307016009113e1, 1.0),
)  # fmt: skip
_TAIL = (
    (7.74545014278341407e-4, 2.27238449892691845e-2, 2.41780725177450612e-1, 1.27045825245236838e0,
     3.64784832476320461e0, 5.76949722146069141e0, 4.63033784615654530e0, 1.42343711074968358e0),
    (1.05075007164441685e-9, 5.47593808499534495e-4, 1.51986665636164572e-2, 1.48103976427480075e-1,
     6.89767334985100005e-1, 1.67638483018380385e0, 2.05319162663775882e0, 1.0),
)  # fmt: skip
_LN2 = 0.6931471805599453
_SQRT_HALF = 0.7071067811865476


def of_seeds(seeds: NDArray[np.integer], size: int) -> NDArray[np.float32]:
    """float32 (B, size) for integers (B,), row by row.

    >>> of_seeds(np.array([7, 8]), 3).round(3).tolist() == of_seeds(np.array([7, 8]), 9)[:, :3].round(3).tolist()
    True
    """
    states_B = _mixed(seeds.astype(np.int64).view(np.uint64))
    places_Z = np.arange(1, size + 1, dtype=np.uint64) * _GAMMA
    bits_BZ = _mixed(states_B[:, None] + places_Z) >> np.uint64(32)
    # In the middle of its step, so never 0 nor 1.
    made: NDArray[np.float32] = _quantile((bits_BZ.astype(np.float64) + 0.5) * 2.0**-32).astype(np.float32)
    return made


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
    return mixed


def _quantile(p: Doubles) -> Doubles:
    """Of the standard normal, at p within 2^-33 of 0 and 1 at most."""
    q = p - 0.5
    r = 0.180625 - q * q
    centre = _ratio(_CENTRE, r) * q
    tail = _ratio(_TAIL, np.sqrt(-_log(np.minimum(p, 1.0 - p))) - 1.6)
    made: Doubles = np.where(np.abs(q) <= 0.425, centre, np.where(q < 0, -tail, tail))
    return made


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], r: Doubles) -> Doubles:
    above, below = (_horner(each, r) for each in coefficients)
    made: Doubles = above / below
    return made


def _horner(coefficients: tuple[float, ...], r: Doubles) -> Doubles:
    made = np.full_like(r, coefficients[0])
    for coefficient in coefficients[1:]:
        made = made * r + coefficient  # two roundings: numpy fuses nothing
    return made


def _log(x: Doubles) -> Doubles:
    """Of positive numbers, to about one unit in the last place: 2 artanh((m - 1) / (m + 1)) of what is left beside the
    power of two."""
    m, power = np.frexp(x)
    small = m < _SQRT_HALF
    m, power = np.where(small, m * 2.0, m), np.where(small, power - 1, power)
    s = (m - 1.0) / (m + 1.0)
    series = _horner(tuple(1.0 / k for k in range(23, 0, -2)), s * s)
    made: Doubles = power * _LN2 + 2.0 * s * series
    return made
