"""Buckets: every series finds the smallest one that holds it, and nothing but padding is added to it."""

from __future__ import annotations

import doctest
import itertools
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cluster.errors import ConfigError, InvalidRequest
from cluster.variants import SequenceSpec, TensorSpec, Variant
from serve_apps import sequences
from serve_apps.sequences import SequenceBuckets, halvings, pad

WEEKS = SequenceSpec(multiple_of=24, shortest=24, longest=336)


@st.composite
def specs(draw: st.DrawFn) -> SequenceSpec:
    steps, longest = draw(st.integers(1, 30)), draw(st.integers(1, 200))
    shortest = draw(st.integers(1, longest))
    return SequenceSpec(multiple_of=steps, shortest=shortest * steps, longest=longest * steps)


def series(*lengths: int, rows: int | None = None) -> NDArray[np.float32]:
    made = np.full((len(lengths), rows or max(lengths), 2), np.nan, np.float32)
    for number, length in enumerate(lengths):
        made[number, :length] = np.arange(2 * length).reshape(length, 2)
    return made


def buckets(**changes: Any) -> SequenceBuckets:
    return SequenceBuckets("window", WEEKS.model_copy(update=changes))


def test_the_docstrings_example_is_true() -> None:
    assert doctest.testmod(sequences) == (0, 1)


@given(spec=specs(), data=st.data())
def test_a_series_goes_to_the_smallest_bucket_that_holds_it(spec: SequenceSpec, data: st.DataObject) -> None:
    taken = st.integers(spec.shortest // spec.multiple_of, spec.longest // spec.multiple_of)
    rows = data.draw(taken) * spec.multiple_of
    named = data.draw(st.none() | st.sets(taken.map(lambda steps: steps * spec.multiple_of)))
    chosen = None if named is None else [*named, spec.longest]
    made = SequenceBuckets("x", spec, chosen)
    bucket = made.bucket(rows)
    assert bucket in made.lengths
    assert bucket >= rows
    assert all(length < rows for length in made.lengths if length < bucket)
    assert made.bucket(bucket) == bucket
    assert list(made.lengths) == sorted(set(chosen if chosen is not None else made.lengths))


@given(spec=specs())
def test_without_a_choice_there_are_few_and_what_is_added_is_bounded(spec: SequenceSpec) -> None:
    lengths = halvings(spec)
    assert 1 <= len(lengths) <= 4
    assert lengths[-1] == spec.longest
    assert all(spec.takes(length) for length in lengths)
    for shorter, longer in itertools.pairwise(lengths):
        assert longer <= 2 * shorter


@given(spec=specs(), rows=st.integers(1, 7000))
def test_other_lengths_are_refused_longer_ones_too(spec: SequenceSpec, rows: int) -> None:
    fits = spec.shortest <= rows <= spec.longest and rows % spec.multiple_of == 0
    made = SequenceBuckets("x", spec)
    if fits:
        assert made.bucket(rows) >= rows
    else:
        with pytest.raises(InvalidRequest, match=rf"'x' has {rows} rows .*takes {spec.shortest} to {spec.longest}"):
            made.bucket(rows)


@given(rows=st.integers(1, 9), more=st.integers(0, 9), width=st.integers(1, 3), kind=st.sampled_from(["f4", "f8"]))
def test_padding_is_rows_of_nan_behind_what_was_there(rows: int, more: int, width: int, kind: str) -> None:
    x = np.random.default_rng(0).normal(size=(3, rows, width)).astype(kind)
    padded = pad(x, rows + more)
    assert (padded.shape, padded.dtype) == ((3, rows + more, width), x.dtype)
    np.testing.assert_array_equal(padded[:, :rows], x)
    assert np.isnan(padded[:, rows:]).all()
    assert (padded is x) == (more == 0)


def test_a_request_is_padded_to_its_bucket_and_so_finds_neighbours() -> None:
    made = buckets()
    assert made.lengths == (48, 96, 168, 336)
    shapes = [made.prepare(series(rows)).shape for rows in (24, 48, 72, 96, 120, 336)]
    assert shapes == [(1, bucket, 2) for bucket in (48, 48, 96, 96, 168, 336)]
    whole = series(336)
    assert made.prepare(whole) is whole, "nothing to add, nothing copied"


def test_series_of_one_request_may_differ_in_length() -> None:
    x = series(24, 96, 48)
    np.testing.assert_array_equal(buckets().prepare(x), x)
    with pytest.raises(InvalidRequest, match=r"series 1 has 30 rows before those of NaN; the model takes 24 to"):
        buckets().prepare(series(24, 30, 96))
    with pytest.raises(InvalidRequest, match="series 0 has 0 rows before those of NaN"):
        buckets().prepare(np.full((2, 48, 2), np.nan, np.float32))


@given(number=st.integers(0, 3), row=st.integers(0, 47), value=st.integers(0, 1))
@settings(max_examples=30)
def test_a_gap_is_refused_by_its_place(number: int, row: int, value: int) -> None:
    x = series(48, 48, 48, 48)
    x[number, row, value] = np.nan
    with pytest.raises(InvalidRequest, match=rf"'window', series {number}, row {row} has a NaN; fill gaps in"):
        buckets().prepare(x)


def test_infinity_is_a_number_and_a_row_of_nan_in_the_middle_is_a_gap() -> None:
    x = series(48)
    x[0, 3] = (np.inf, -np.inf)
    assert buckets().prepare(x) is x
    x[0, 7] = np.nan
    with pytest.raises(InvalidRequest, match="series 0, row 7 has a NaN"):
        buckets().prepare(x)


def test_lengths_that_a_variant_does_not_take_are_refused_with_the_way_out() -> None:
    with pytest.raises(ConfigError, match=r"sequence lengths \[50, 360\] are none of the variant's, 24 to 336, mul"):
        SequenceBuckets("x", WEEKS, [50, 336, 360])
    for lengths in ([48], []):
        with pytest.raises(ConfigError, match="leave series of up to 336 rows without a place; add 336"):
            SequenceBuckets("x", WEEKS, lengths)
    assert SequenceBuckets("x", WEEKS, [336, 24, 336]).lengths == (24, 336)


def test_a_variant_of_one_length_has_none() -> None:
    spec = TensorSpec(name="window", datatype="FP32", shape=(-1, -1, 2))
    variant = Variant(name="lstm/fp32", family="lstm", format="onnx", inputs=(spec,), outputs=(spec,), sequence=WEEKS)
    made = SequenceBuckets.of(variant, [168, 336])
    assert made is not None
    assert made.lengths == (168, 336)
    assert SequenceBuckets.of(variant.model_copy(update={"sequence": None})) is None
