"""The active version moves by compare-and-swap and comes back the way it went, also when its mover is killed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.artifacts import ArtifactStore
from cluster.durable import DurableFolder
from cluster.errors import ChecksumMismatch, ConfigError, RefConflict, VariantNotFound
from cluster.releases import Release, Releases
from tests.unit.cluster.store_processes import variant
from tests.unit.cluster.test_artifacts_concurrent import said, start


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def releases(store: ArtifactStore) -> Releases:
    return Releases(store)


@pytest.fixture
def ids(store: ArtifactStore) -> list[str]:
    return [store.put(variant("v", number=number), {"model.onnx": b"x"}).id for number in range(5)]


def test_looking_touches_nothing(store: ArtifactStore, releases: Releases) -> None:
    assert releases.active("m") is None
    assert releases.history("m") == []
    assert (releases.models(), releases.past_models()) == ({}, [])
    assert not store.root.exists()


def test_the_active_version_is_a_reference_that_everybody_can_read(
    store: ArtifactStore, releases: Releases, ids: list[str]
) -> None:
    release = releases.promote("m", ids[0])
    assert (release.variant_id, release.previous_id, release.kind) == (ids[0], None, "promote")
    assert store.get("active/m").id == ids[0]
    assert releases.models() == {"m": ids[0]}


def test_one_rollback_after_another_goes_further_back(releases: Releases, ids: list[str]) -> None:
    for each in ids[:3]:
        releases.promote("m", each)
    assert releases.target("m").variant_id == ids[1]
    assert [releases.rollback("m").variant_id for _ in range(2)] == [ids[1], ids[0]]
    with pytest.raises(ConfigError, match="no version before it"):
        releases.rollback("m")
    assert releases.active("m") == ids[0]


def test_a_promotion_after_a_rollback_starts_a_new_line(releases: Releases, ids: list[str]) -> None:
    a, b, c, d, _ = ids
    for each in (a, b, c):
        releases.promote("m", each)
    releases.rollback("m")  # b
    releases.promote("m", d)
    assert [releases.rollback("m").variant_id for _ in range(2)] == [b, a]  # never c again
    assert [release.variant_id for release in releases.history("m")] == [a, b, c, b, d, b, a]


@settings(max_examples=40, deadline=None)
@given(steps=st.lists(st.sampled_from([0, 1, 2, "back", "undone", "by hand"]), max_size=8))
def test_any_moves_act_like_a_stack(steps: list[int | str]) -> None:
    """Promote pushes, rollback pops, what is undone was never there, and whoever sets the reference by hand pushes."""
    with TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)  # no power cut here, and thousands of moves
        store = ArtifactStore(root)
        *ids, odd, by_hand = [store.put(variant("v", number=number), {}).id for number in range(5)]
        releases, stack = Releases(store), list[str]()
        for step in steps:
            if isinstance(step, int):
                releases.promote("m", ids[step])
                stack += [] if stack[-1:] == [ids[step]] else [ids[step]]
            elif step == "undone":
                releases.undo("m", releases.promote("m", odd))
            elif step == "by hand" and by_hand not in stack:
                store.set_ref("active/m", by_hand)
                stack.append(by_hand)
            elif step == "back" and len(stack) > 1:
                assert releases.rollback("m").variant_id == stack[-2]
                stack.pop()
            elif step == "back":
                with pytest.raises(ConfigError):
                    releases.rollback("m")
            assert releases.active("m") == (stack[-1] if stack else None), step
            chain = [stack[-2]] if len(stack) > 1 else []
            assert [releases.target("m").variant_id for _ in chain] == chain, step


def test_what_served_before_the_first_promotion_is_what_a_rollback_goes_back_to(
    releases: Releases, ids: list[str]
) -> None:
    release = releases.promote("m", ids[1], serving=ids[0])
    assert release.previous_id is None
    assert releases.rollback("m").variant_id == ids[0]


def test_the_first_promotion_can_be_undone_altogether(store: ArtifactStore, releases: Releases, ids: list[str]) -> None:
    releases.undo("m", releases.promote("m", ids[1], serving=ids[0]))
    assert releases.active("m") is None
    assert "active/m" not in store.refs()
    assert releases.history("m") == []


def test_promoting_what_is_active_is_no_move(releases: Releases, ids: list[str]) -> None:
    first = releases.promote("m", ids[0])
    assert releases.promote("m", ids[0]) == first
    assert releases.history("m") == [first]


def test_compare_and_swap(releases: Releases, ids: list[str]) -> None:
    with pytest.raises(RefConflict, match="active is None"):
        releases.promote("m", ids[0], expected=ids[1])
    releases.promote("m", ids[0], expected=None)
    with pytest.raises(RefConflict, match=ids[0]):
        releases.promote("m", ids[1], expected=None)
    releases.promote("m", ids[1], expected=ids[0])
    with pytest.raises(RefConflict, match="decide anew"):
        releases.rollback("m", expected=ids[0])
    assert [release.variant_id for release in releases.history("m")] == ids[:2]


def test_an_undo_that_comes_too_late_is_refused(releases: Releases, ids: list[str]) -> None:
    release = releases.promote("m", ids[0])
    releases.promote("m", ids[1])
    with pytest.raises(RefConflict, match="no longer the last"):
        releases.undo("m", release)
    assert releases.active("m") == ids[1]


@pytest.mark.parametrize("name", ["", "a/b", "../x", ".x", "a b", "x" * 101])
def test_names_that_could_leave_the_store_are_refused(name: str, releases: Releases, ids: list[str]) -> None:
    for call in (lambda: releases.promote(name, ids[0]), lambda: releases.active(name), lambda: releases.history(name)):
        with pytest.raises(ConfigError, match="not allowed"):
            call()
    with pytest.raises(ConfigError, match="not allowed"), releases.turn(name):
        pass


def test_a_variant_that_is_not_there_is_refused_and_nothing_moves(releases: Releases, ids: list[str]) -> None:
    releases.promote("m", ids[0])
    with pytest.raises(VariantNotFound):
        releases.promote("m", "0" * 16)
    assert releases.active("m") == ids[0]
    assert len(releases.history("m")) == 1


def test_a_rollback_to_what_is_gone_says_so(store: ArtifactStore, releases: Releases, ids: list[str]) -> None:
    releases.promote("m", ids[0])
    releases.promote("m", ids[1])
    store.manifest_path(ids[0]).unlink()
    with pytest.raises(VariantNotFound, match="no longer in"):
        releases.rollback("m")
    assert releases.active("m") == ids[1]


def test_old_moves_are_forgotten(
    releases: Releases, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.releases.KEPT_MOVES", 6)
    for number in range(10):
        releases.promote("m", ids[number % 2])
    assert [release.number for release in releases.history("m")] == [5, 6, 7, 8, 9, 10]
    for _ in range(3):  # a rollback is a move too
        releases.rollback("m")
    with pytest.raises(ConfigError, match="no version before it"):
        releases.rollback("m")


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"[]",
        lambda raw: json.dumps(json.loads(raw) | {"releases": []}).encode(),
    ],
)
def test_a_damaged_history_is_refused_and_names_the_way_out(
    damage: Callable[[bytes], bytes], store: ArtifactStore, releases: Releases, ids: list[str]
) -> None:
    releases.promote("m", ids[0])
    releases.promote("m", ids[1])
    path = store.root / "history" / "m.json"
    path.write_bytes(damage(path.read_bytes()))
    assert releases.active("m") == ids[1], "what is active is still to be known"
    with pytest.raises(ChecksumMismatch, match="delete it"):
        releases.rollback("m")
    path.unlink()
    assert releases.promote("m", ids[2]).before is not None
    assert releases.rollback("m").variant_id == ids[1]


# Killed between any two writes


class Killed(BaseException):
    pass


@pytest.mark.parametrize("survived", [0, 1])
@pytest.mark.parametrize("step", ["promote", "first", "rollback", "undo"])
def test_killed_between_two_writes_the_move_was_made_or_not(
    step: str, survived: int, store: ArtifactStore, releases: Releases, ids: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a, b, c, *_ = ids
    last = None
    if step != "first":
        for each in (a, b):
            last = releases.promote("m", each)
    before = (releases.active("m"), releases.history("m"))
    moves: dict[str, Callable[[], object]] = {
        "promote": lambda: releases.promote("m", c), "first": lambda: releases.promote("m", c, serving=a),
        "rollback": lambda: releases.rollback("m"), "undo": lambda: releases.undo("m", last) if last else None,
    }  # fmt: skip
    real, written = DurableFolder.write, list[Path]()

    def write(folder: DurableFolder, target: Path, data: bytes) -> None:
        if len(written) == survived:
            raise Killed
        real(folder, target, data)
        written.append(target)

    monkeypatch.setattr(DurableFolder, "write", write)
    with pytest.raises(Killed):
        moves[step]()
    monkeypatch.undo()
    again = Releases(store)
    if step == "undo" and survived:
        assert again.history("m") == before[1][:-1], "the reference is back, and so is the history"
        assert again.active("m") == a
    else:
        assert (again.active("m"), again.history("m")) == before
    released = again.promote("m", c)
    assert (released.variant_id, again.active("m")) == (c, c)
    if before[0] is not None:
        assert again.rollback("m").variant_id == (a if step == "undo" and survived else b)


def test_killed_movers_leave_a_usable_state(tmp_path: Path) -> None:
    """kill -9 at random moments, in a process of its own; after each, everything can be read and moved."""
    answer = said(start("kill_releases", tmp_path, 40, 5))
    assert answer["problems"] == []
    assert answer["moved"] > 3, "no mover lived long enough to move anything"


# Several at once


def test_of_several_that_promote_exactly_one_wins_each_round(tmp_path: Path, ids: list[str]) -> None:
    root = tmp_path / "store"
    answers = [said(process) for process in [start("promote", root, 12, seed) for seed in (1, 2, 3, 4)]]
    assert sum(answer["lost"] for answer in answers) > 0, "they never met, so nothing was proved"
    won = [win for answer in answers for win in answer["won"]]
    history = Releases(ArtifactStore(root)).history("m")
    assert len(won) == 4 * 12 == len(history), "every move that was told to be made is there, and no other"
    assert sorted(number for number, _ in won) == [release.number for release in history]
    by_number = dict(won)
    assert all(by_number[release.number] == release.variant_id for release in history)
    assert all(later.previous_id == earlier.variant_id for earlier, later in itertools.pairwise(history))


def test_one_at_a_time_has_the_turn(tmp_path: Path, ids: list[str]) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    for process in [start("turns", tmp_path / "store", 50, counter) for _ in range(3)]:
        said(process)
    assert counter.read_text() == "150"


def test_a_release_is_a_value() -> None:
    release = Release(number=1, variant_id="0" * 16, previous_id=None, before=None, kind="promote")
    assert Release.model_validate_json(release.model_dump_json()) == release
