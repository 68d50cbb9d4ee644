"""Series of any length -> a handful of shapes: each is padded to the next bucket; those of one bucket share batches.

Padding is rows of NaN at the end, which the graph takes for "not there" (Variant.sequence): neither it nor the
neighbours in a batch change an answer, so a bucket is a matter of speed alone. More buckets mean less padding and fewer
neighbours. A padded array has its bucket's shape, which is all that the batcher goes by.

A series longer than the variant was trained on is refused: the graph would answer, and nobody has measured how well.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError, InvalidRequest
from cluster.variants import SequenceSpec, Variant

Series = NDArray[np.generic]
"""(B, L, ...) floats."""
_HALVINGS = 4
"""Buckets where nobody names others: the longest, a half, a quarter and an eighth of it. Up to twice the rows are
computed, for shapes that are few enough to warm up."""


class SequenceBuckets:
    """The lengths to which one input's series are padded.

    >>> SequenceBuckets("window", SequenceSpec(multiple_of=24, shortest=24, longest=336)).lengths
    (48, 96, 168, 336)
    """

    def __init__(self, name: str, spec: SequenceSpec, lengths: Sequence[int] | None = None) -> None:
        """`name` is the input's. Raises ConfigError for `lengths` that the variant does not take, or that leave out its
        longest."""
        self._name, self._spec = name, spec
        self.lengths = tuple(sorted(set(lengths))) if lengths is not None else halvings(spec)
        """From the shortest to the longest."""
        if wrong := [length for length in self.lengths if not spec.takes(length)]:
            raise ConfigError(f"sequence lengths {wrong} are none of the variant's, {_told(spec)}; name others")
        if self.lengths[-1:] != (spec.longest,):
            raise ConfigError(
                f"sequence lengths {list(self.lengths)} leave series of up to {spec.longest} rows without a place; add "
                f"{spec.longest}"
            )

    @classmethod
    def of(cls, variant: Variant, lengths: Sequence[int] | None = None) -> SequenceBuckets | None:
        """Those of a variant; None if it takes one length only."""
        return cls(variant.inputs[0].name, variant.sequence, lengths) if variant.sequence is not None else None

    def bucket(self, rows: int) -> int:
        """The length that series of so many rows are padded to. Raises InvalidRequest for rows that are not taken."""
        if not self._spec.takes(rows):
            raise InvalidRequest(f"input {self._name!r} has {rows} rows a series; the model takes {_told(self._spec)}")
        return self.lengths[bisect.bisect_left(self.lengths, rows)]

    def prepare(self, series: Series) -> Series:
        """As the graph gets it: padded to its bucket, or itself if it has that length.

        Series of one request may differ in length as well: those that are shorter end in rows of NaN. Raises
        InvalidRequest for a length that is not taken, and for NaN anywhere else.
        """
        length = self.bucket(series.shape[1])
        self._refuse_gaps(series)
        return pad(series, length)

    def _refuse_gaps(self, series: Series) -> None:
        if not np.isnan(series.min()):  # which is NaN if anything is: the quickest look
            return
        missing: NDArray[np.bool_] = np.isnan(series).reshape(*series.shape[:2], -1)
        for number, values in enumerate(missing):
            there = np.flatnonzero(~values.all(1))
            length = int(there[-1]) + 1 if len(there) else 0
            inside = values[:length].any(1)
            if inside.any():
                raise InvalidRequest(
                    f"input {self._name!r}, series {number}, row {int(np.argmax(inside))} has a NaN; fill gaps in: NaN "
                    "stands for rows beyond a series' end, and there a whole row has it"
                )
            if not self._spec.takes(length):
                raise InvalidRequest(
                    f"input {self._name!r}, series {number} has {length} rows before those of NaN; the model takes "
                    f"{_told(self._spec)}"
                )


def halvings(spec: SequenceSpec) -> tuple[int, ...]:
    """Buckets for a variant, from the shortest to the longest."""
    steps = spec.multiple_of
    halved = (-(-spec.longest // (steps * 2**k)) * steps for k in range(_HALVINGS))
    return tuple(sorted({max(length, spec.shortest) for length in halved}))


def pad(series: Series, length: int) -> Series:
    """With rows of NaN at the end, up to `length`; itself if it has as many."""
    rows = series.shape[1]
    if rows == length:
        return series
    padded = np.full((len(series), length, *series.shape[2:]), np.nan, series.dtype)
    padded[:, :rows] = series
    return padded


def _told(spec: SequenceSpec) -> str:
    steps = f", multiples of {spec.multiple_of}" if spec.multiple_of > 1 else ""
    return f"{spec.shortest} to {spec.longest}{steps}"
