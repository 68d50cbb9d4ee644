"""A profile is found again for exactly what it was measured of; a curve's best, knee and times are its points'."""

from __future__ import annotations

import itertools
import json
import math
import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cluster.errors import ArtifactError, ConfigError
from cluster.profiles import Curve, Profile, ProfileStore, curves
from cluster.runtimes.base import RuntimeConfig

HERE = "a machine"


def profile(batch_size: int, throughput_rps: float, **fields: Any) -> Profile:
    middle = batch_size / throughput_rps
    usual: dict[str, Any] = {
        "variant_id": "0" * 16, "runtime": RuntimeConfig(), "batch_size": batch_size, "latency_p50_s": middle,
        "latency_p50_interval_s": (0.9 * middle, 1.1 * middle), "latency_p90_s": 1.2 * middle,
        "latency_p99_s": 2 * middle, "repeats": 30, "throughput_rps": throughput_rps, "memory_bytes": 1 << 20,
        "hardware_key": HERE, "hardware": {"cpu": "this one"},
    }  # fmt: skip
    return Profile.model_validate(usual | fields)


def curve(points: dict[int, float]) -> Curve:
    """Throughput by batch size."""
    return Curve(tuple(profile(size, rate) for size, rate in sorted(points.items())))


sizes = st.lists(st.sampled_from([1, 2, 4, 8, 16, 32, 64, 128, 256]), min_size=1, max_size=9, unique=True).map(sorted)


@st.composite
def any_curve(draw: st.DrawFn) -> Curve:
    return curve({size: draw(st.floats(1, 1e6)) for size in draw(sizes)})


@st.composite
def growing_times(draw: st.DrawFn) -> Curve:
    """Whose larger batches take longer."""
    chosen = draw(sizes)
    steps = draw(st.lists(st.floats(1e-5, 1.0), min_size=len(chosen), max_size=len(chosen)))
    return curve({size: size / total for size, total in zip(chosen, itertools.accumulate(steps), strict=True)})


# The value


@pytest.mark.parametrize(
    "wrong",
    [
        *({name: 0} for name in ("batch_size", "latency_p50_s", "latency_p90_s", "latency_p99_s", "throughput_rps")),
        {"repeats": 0},
        {"memory_bytes": -1},
        {"latency_p50_s": math.inf},
        {"latency_p50_interval_s": (1.0,)},
        {"latency_p95_s": 0.1},
    ],
    ids=lambda value: next(iter(value)),
)
def test_what_cannot_be_measured_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Profile.model_validate(profile(8, 100.0).model_dump() | wrong)
    assert str(caught.value.errors()[0]["loc"][0]) in wrong


def test_a_trip_through_json_changes_nothing() -> None:
    made = profile(8, 12_345.678)
    assert Profile.model_validate_json(made.model_dump_json()) == made
    with pytest.raises(ValidationError, match="frozen"):
        made.batch_size = 9


# Best and knee


@given(made=any_curve())
def test_the_best_is_the_highest_throughput_and_of_equals_the_smallest_batch(made: Curve) -> None:
    highest = max(p.throughput_rps for p in made.points)
    assert made.best == next(p for p in made.points if p.throughput_rps == highest)


@pytest.mark.parametrize(
    ("points", "knee"),
    [
        # By hand, x and y of each from 0 to 1: y - x of batch sizes 1, 2, 4, 8, 16 with x = 0, .25, .5, .75, 1.
        ({1: 0.1, 2: 60, 4: 90, 8: 98, 16: 100}, 4),  # y = 0, .60, .90, .98, 1: 0, .35, .40, .23, 0
        ({1: 100, 2: 180, 4: 190, 8: 195, 16: 200}, 2),  # y = 0, .80, .90, .95, 1: 0, .55, .40, .20, 0
        ({1: 100, 2: 110, 4: 130, 8: 190, 16: 200}, 8),  # y = 0, .10, .30, .90, 1: 0, -.15, -.20, .15, 0
        ({1: 100, 2: 200, 4: 300, 8: 400, 16: 500}, 16),  # a straight line: every doubling pays alike
        ({1: 100, 2: 101, 4: 110, 8: 200, 16: 500}, 16),  # hangs below its chord: the largest pays most
        ({1: 100, 2: 175, 4: 200, 8: 275, 16: 300}, 2),  # y = 0, .375, .5, .875, 1: 0, .125, 0, .125, 0: the first
        # What comes after the best counts for nothing: without it, the first row again.
        ({1: 0.1, 2: 60, 4: 90, 8: 98, 16: 100, 32: 40, 64: 40}, 4),
        # Batch sizes that are not powers of two: x = 0, log2(3)/log2(9) = .5, 1; y = 0, .7, 1.
        ({1: 0.1, 3: 70, 9: 100}, 3),
        ({1: 500, 2: 400, 4: 300}, 1),  # falls at once
        ({8: 100}, 8),
        ({1: 100, 2: 100, 4: 100}, 1),
    ],
)
def test_the_knee_is_as_computed_by_hand(points: dict[int, float], knee: int) -> None:
    assert curve(points).knee.batch_size == knee


@given(made=any_curve(), doublings=st.integers(-20, 20), larger=st.integers(1, 64))
def test_the_knee_does_not_depend_on_the_units(made: Curve, doublings: int, larger: int) -> None:
    """Neither of throughput nor of batch size. (Powers of two, which round nothing: a tie stays a tie.)"""
    scaled = [profile(p.batch_size * larger, p.throughput_rps * 2.0**doublings) for p in made.points]
    assert Curve(tuple(scaled)).knee.batch_size == made.knee.batch_size * larger


@given(made=any_curve())
def test_the_knee_is_no_larger_than_the_best(made: Curve) -> None:
    assert made.points[0].batch_size <= made.knee.batch_size <= made.best.batch_size
    assert made.knee in made.points


# Times between the points


@given(made=any_curve())
def test_at_its_points_a_curve_takes_what_was_measured(made: Curve) -> None:
    for point in made.points:
        assert made.seconds(point.batch_size) == pytest.approx(point.latency_p50_s)


def test_between_two_points_time_is_interpolated_and_beyond_them_goes_at_the_last_rate() -> None:
    made = curve({2: 2 / 0.010, 4: 4 / 0.014, 8: 8 / 0.030})
    assert made.seconds(1) == made.seconds(0.5) == 0.010
    assert made.seconds(3) == pytest.approx(0.012)
    assert made.seconds(5) == pytest.approx(0.018)
    assert made.seconds(7.5) == pytest.approx(0.028)
    assert made.seconds(16) == pytest.approx(0.060)
    assert made.seconds(12) == pytest.approx(0.045)


@given(made=growing_times(), ends=st.tuples(st.floats(0.5, 600), st.floats(0.5, 600)))
def test_where_the_points_grow_so_does_what_lies_between(made: Curve, ends: tuple[float, float]) -> None:
    low, high = sorted(ends)
    assert made.seconds(low) <= made.seconds(high) * (1 + 1e-12)


@given(made=any_curve(), rows=st.floats(0.5, 600))
def test_between_two_points_lies_between_their_times(made: Curve, rows: float) -> None:
    for low, high in itertools.pairwise(made.points):
        if low.batch_size <= rows <= high.batch_size:
            least, most = sorted((low.latency_p50_s, high.latency_p50_s))
            assert least * (1 - 1e-12) <= made.seconds(rows) <= most * (1 + 1e-12)


# From profiles to curves


@given(order=st.permutations(range(12)))
def test_curves_are_grouped_and_sorted_whatever_order_the_profiles_came_in(order: list[int]) -> None:
    two = RuntimeConfig(threads=2)
    made = [
        profile(size, 100.0 * size, variant_id=variant * 16, runtime=runtime)
        for variant in "ab" for runtime in (RuntimeConfig(), two) for size in (1, 4, 16)
    ]  # fmt: skip
    found = curves(made[i] for i in order)
    assert {(c.variant_id[0], c.runtime.threads) for c in found} == {("a", 1), ("a", 2), ("b", 1), ("b", 2)}
    assert all([p.batch_size for p in c.points] == [1, 4, 16] for c in found)
    assert (found[0].variant_id, found[0].runtime) == (made[order[0]].variant_id, made[order[0]].runtime)
    assert curves([]) == []


def test_of_two_profiles_of_one_batch_size_the_later_counts() -> None:
    (found,) = curves([profile(4, 100.0), profile(1, 50.0), profile(4, 120.0)])
    assert [p.throughput_rps for p in found.points] == [50.0, 120.0]


def test_profiles_of_several_machines_do_not_compare() -> None:
    with pytest.raises(ConfigError, match=r"several machines \(\['a machine', 'another'\]\).*pass those of one"):
        curves([profile(1, 100.0), profile(2, 150.0, hardware_key="another")])


# The store


def found_in(store: ProfileStore, made: Profile) -> Profile | None:
    return store.get(made.variant_id, made.runtime, made.batch_size, made.hardware_key)


def test_what_was_put_is_found_by_content_and_hardware_and_nothing_else(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path / "profiles")
    assert not (tmp_path / "profiles").exists(), "creating the object touches nothing"
    made = profile(8, 100.0)
    assert found_in(store, made) is None
    others = [
        {"variant_id": "1" * 16}, {"batch_size": 16}, {"hardware_key": "another machine"},
        *({"runtime": RuntimeConfig.model_validate(fields)} for fields in (
            {"threads": 2}, {"streams": 2}, {"inter_op_threads": 2}, {"name": "openvino"},
        )),
    ]  # fmt: skip
    store.put([made])
    assert found_in(ProfileStore(tmp_path / "profiles"), made) == made
    different = [made.model_copy(update=change) for change in others]
    assert [found_in(store, each) for each in different] == [None] * len(others)
    store.put(different)
    assert [found_in(store, each) for each in [made, *different]] == [made, *different]


def test_what_is_put_again_replaces_what_was_there(tmp_path: Path) -> None:
    store = ProfileStore(tmp_path)
    store.put([profile(8, 100.0), profile(16, 120.0)])
    store.put([profile(8, 130.0)])
    assert found_in(store, profile(8, 1.0)) == profile(8, 130.0)
    assert found_in(store, profile(16, 1.0)) == profile(16, 120.0)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"\xff\xfe", b"[]", b'{"schema_version": 2}', b"0" * 5000], ids=lambda c: repr(c[:12])
)
def test_a_damaged_file_counts_as_none_and_is_written_anew(tmp_path: Path, content: bytes) -> None:
    store, made = ProfileStore(tmp_path), profile(8, 100.0)
    store.put([made])
    (path,) = tmp_path.rglob("*.json")
    path.write_bytes(content)
    assert found_in(store, made) is None
    store.put([made])
    assert found_in(store, made) == made


@given(cut=st.integers(0, 400))
def test_half_a_file_counts_as_none(cut: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    root = tmp_path_factory.mktemp("profiles")
    store, made = ProfileStore(root), profile(8, 100.0)
    store.put([made])
    (path,) = root.rglob("*.json")
    path.write_bytes(path.read_bytes()[:cut])
    assert found_in(store, made) is None


def test_a_disk_that_refuses_is_said_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"cannot write .*see that there is room and permission"):
        ProfileStore(tmp_path / "file").put([profile(8, 100.0)])


def test_a_write_that_fails_leaves_nothing_behind(tmp_path: Path) -> None:
    store, made = ProfileStore(tmp_path), profile(8, 100.0)
    store.put([made])
    (path,) = tmp_path.rglob("*.json")
    path.unlink()
    path.mkdir()  # a folder cannot be replaced by a file
    with pytest.raises(ArtifactError, match="cannot write"):
        store.put([made])
    assert list(tmp_path.rglob(".*")) == []


def _put_often(root: str, rate: float) -> None:
    store = ProfileStore(Path(root))
    for _ in range(100):
        store.put([profile(8, rate, hardware={"note": "x" * 20_000})])


def test_of_concurrent_writers_one_wins_and_no_reader_sees_half(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    rates = [100.0, 200.0, 300.0]
    writers = [context.Process(target=_put_often, args=(str(tmp_path), rate)) for rate in rates]
    store = ProfileStore(tmp_path)
    store.put([profile(8, 100.0)])
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        there = found_in(store, profile(8, 1.0))
        assert there is not None, "half a file was seen"
        seen.add(there.throughput_rps)
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen <= set(rates)
    (path,) = tmp_path.rglob("*.json")
    assert json.loads(path.read_text())["throughput_rps"] in rates
    assert list(tmp_path.rglob(".*")) == []
