"""Collecting takes what nobody can reach any more, all of that and nothing else; also beside writers, and if killed."""

from __future__ import annotations

import os
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.artifacts import ArtifactStore
from cluster.errors import ArtifactError, ChecksumMismatch, ConfigError, VariantNotFound
from cluster.garbage import Collected, collect
from cluster.profiles import Profile, ProfileStore
from cluster.releases import Releases
from cluster.runtimes import RuntimeConfig
from cluster.variants import Variant
from tests.unit.cluster.store_processes import variant
from tests.unit.cluster.test_artifacts_concurrent import said, start

OLD_S = 2 * 3600.0


def put(
    store: ArtifactStore, number: int, parent: Variant | None = None, files: dict[str, bytes] | None = None
) -> Variant:
    made = variant("v", number=number).model_copy(update={"parent_id": parent.id if parent else None})
    return store.put(made, files if files is not None else {"model.onnx": str(number).encode() * 100})


def profiled(store: ArtifactStore, variant_id: str) -> Path:
    profiles = ProfileStore(store.root / "profiles")
    profiles.put([
        Profile(
            variant_id=variant_id, runtime=RuntimeConfig(), batch_size=1, latency_p50_s=1,
            latency_p50_interval_s=(1, 1), latency_p90_s=1, latency_p99_s=1, repeats=1, throughput_rps=1,
            memory_bytes=1, hardware_key="k", hardware={},
        )
    ])  # fmt: skip
    return profiles.root / variant_id


def aged(store: ArtifactStore) -> ArtifactStore:
    """All that is there was written two hours ago."""
    then = time.time() - OLD_S
    for path in store.root.rglob("*"):
        os.utime(path, (then, then))
    return store


def files_of(store: ArtifactStore) -> dict[str, bytes]:
    """All but locks, which hold nothing."""
    return {
        str(path.relative_to(store.root)): path.read_bytes()
        for path in store.root.rglob("*") if path.is_file() and not path.name.startswith(".")
    }  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


def test_an_empty_store_and_none_at_all(store: ArtifactStore) -> None:
    assert collect(store) == Collected((), (), (), 0)
    assert not store.root.exists()


def test_what_nothing_names_goes_with_its_bytes_and_profiles(store: ArtifactStore) -> None:
    kept, gone = put(store, 1), put(store, 2)
    store.set_ref("kept", kept.id)
    kept_profile, gone_profile = profiled(store, kept.id), profiled(store, gone.id)
    before = sum(map(len, files_of(aged(store)).values()))
    collected = collect(store)
    assert [each.id for each in collected.variants] == [gone.id]
    assert (len(collected.blobs), collected.profiles) == (1, (gone_profile,))
    assert collected.size_bytes == before - sum(map(len, files_of(store).values()))
    with pytest.raises(VariantNotFound):
        store.get(gone.id)
    assert store.read(store.get("kept"), "model.onnx") == b"1" * 100
    assert kept_profile.is_dir()
    assert not gone_profile.exists()
    assert store.verify() == []


def test_bytes_that_a_kept_variant_shares_stay(store: ArtifactStore) -> None:
    kept = put(store, 1, files={"model.onnx": b"same"})
    put(store, 2, files={"model.onnx": b"same", "own.bin": b"own"})
    store.set_ref("kept", kept.id)
    assert [path.read_bytes() for path in collect(aged(store), dry_run=True).blobs] == [b"own"]
    collect(store)
    assert store.verify() == []


def test_a_kept_variant_keeps_what_it_was_made_from(store: ArtifactStore) -> None:
    root = put(store, 0)
    middle, other = put(store, 1, root), put(store, 2, root)
    leaf = put(store, 3, middle)
    store.set_ref("leaf", leaf.id)
    assert [each.id for each in collect(aged(store)).variants] == [other.id]
    assert store.get(store.get(leaf.parent_id or "").parent_id or "").id == root.id


def test_children_go_before_their_parents(store: ArtifactStore) -> None:
    root = put(store, 0)
    middle = put(store, 1, root)
    leaf = put(store, 2, middle)
    assert [each.id for each in collect(aged(store)).variants] == [leaf.id, middle.id, root.id]
    assert files_of(store) == {}


def test_what_is_young_stays_with_its_ancestors(store: ArtifactStore) -> None:
    root = put(store, 0)
    aged(store)
    young = put(store, 1, root)
    assert collect(store).variants == ()
    aged(store)
    assert {each.id for each in collect(store).variants} == {root.id, young.id}


def test_young_bytes_without_a_manifest_stay(store: ArtifactStore) -> None:
    """As a put leaves them that is still at it, or was killed."""
    gone = put(store, 1)
    store.manifest_path(gone.id).unlink()
    assert collect(store).blobs == ()
    assert len(collect(aged(store)).blobs) == 1
    assert files_of(store) == {}


@pytest.mark.parametrize(("keep", "left"), [(0, [5]), (1, [4, 5]), (2, [3, 4, 5]), (99, [0, 1, 2, 3, 4, 5])])
def test_the_last_releases_stay(store: ArtifactStore, keep: int, left: list[int]) -> None:
    """And that to which the next rollbacks would go."""
    made = [put(store, number) for number in range(6)]
    releases = Releases(store)
    for each in made:
        releases.promote("m", each.id)
    collect(aged(store), keep=keep)
    assert [number for number, each in enumerate(made) if store.manifest_path(each.id).exists()] == left


def test_what_a_rollback_would_go_back_to_stays_however_much_was_tried_since(store: ArtifactStore) -> None:
    first, second, *tried = [put(store, number) for number in range(6)]
    releases = Releases(store)
    releases.promote("m", first.id)
    releases.promote("m", second.id)
    for each in tried:
        releases.promote("m", each.id)
        releases.rollback("m")
    collect(aged(store), keep=1)
    assert releases.rollback("m").variant_id == first.id


def test_what_the_caller_pins_stays(store: ArtifactStore) -> None:
    pinned, gone = put(store, 1), put(store, 2)
    assert [each.id for each in collect(aged(store), pinned=[pinned.id]).variants] == [gone.id]


def test_a_dry_run_says_the_same_and_changes_nothing(store: ArtifactStore) -> None:
    store.set_ref("kept", put(store, 1).id)
    profiled(store, put(store, 2).id)
    before = files_of(aged(store))
    said = collect(store, dry_run=True)
    assert files_of(store) == before
    assert collect(store) == said
    assert collect(store) == Collected((), (), (), 0)


def test_a_negative_keep_is_refused(store: ArtifactStore) -> None:
    with pytest.raises(ConfigError, match="keep=-1"):
        collect(store, keep=-1)


@pytest.mark.parametrize("damaged", ["variants/*.json", "refs/kept", "history/m.json"])
def test_who_cannot_tell_what_is_needed_removes_nothing(store: ArtifactStore, damaged: str) -> None:
    kept = put(store, 1)
    put(store, 2)
    store.set_ref("kept", kept.id)
    Releases(store).promote("m", kept.id)
    next(store.root.glob(damaged)).write_bytes(b"{}")
    before = files_of(aged(store))
    with pytest.raises(ChecksumMismatch):
        collect(store)
    assert files_of(store) == before


@settings(max_examples=40, deadline=None)
@given(
    parents=st.lists(st.one_of(st.none(), st.integers(0, 8)), min_size=1, max_size=9),
    shared=st.lists(st.integers(0, 3), min_size=9, max_size=9),
    named=st.sets(st.integers(0, 8), max_size=3), promoted=st.lists(st.integers(0, 8), max_size=4),
    pinned=st.sets(st.integers(0, 8), max_size=1), keep=st.integers(0, 3),
)  # fmt: skip
def test_everything_reachable_stays_and_nothing_else(
    parents: list[int | None], shared: list[int], named: set[int], promoted: list[int], pinned: set[int], keep: int
) -> None:
    with TemporaryDirectory() as root, pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)  # no power cut here
        store, made = ArtifactStore(root), list[Variant]()
        for number, parent in enumerate(parents):
            blobs = {"model.onnx": b"%d" % shared[number], "own": b"own %d" % number}
            made.append(put(store, number, made[parent] if parent is not None and parent < number else None, blobs))
        for number in named & set(range(len(made))):
            store.set_ref(f"name/{number}", made[number].id)
        moves = [made[number].id for number in promoted if number < len(made)]
        for each in moves:
            Releases(store).promote("m", each)
        pins = [made[number].id for number in pinned if number < len(made)]
        # Said anew, as the docstring of garbage.py has it; without rollbacks the history is a line.
        line = [each for index, each in enumerate(moves) if moves[index - 1 : index] != [each]]
        reachable = {*store.refs().values(), *pins, *line[-keep - 1 :]}
        by_id = {each.id: each for each in made}
        while more := {by_id[id_].parent_id for id_ in reachable} - reachable - {None}:
            reachable |= {id_ for id_ in more if id_}

        collected = collect(aged(store), keep=keep, pinned=pins)

        assert {each.id for each in store.list()} == reachable
        assert {each.id for each in collected.variants} == by_id.keys() - reachable
        assert store.verify() == []
        left = {path.name for path in store.root.glob("objects/*/*")}
        assert left == {entry.sha256 for id_ in reachable for entry in by_id[id_].files}
        assert all(store.get(each.parent_id) for each in store.list() if each.parent_id)


class Killed(BaseException):
    pass


def test_killed_at_any_moment_what_is_left_is_whole_and_the_next_one_takes_the_rest(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = put(store, 0)
    store.set_ref("kept", kept.id)
    middle = put(store, 1, kept)
    for number in (2, 3):
        profiled(store, put(store, number, middle).id)
    aged(store)
    real, steps = Path.unlink, 0
    while True:
        done = 0

        def unlink(path: Path, missing_ok: bool = False) -> None:
            nonlocal done
            if done == 1:
                raise Killed
            real(path, missing_ok=missing_ok)
            done += 1

        with monkeypatch.context() as patch:
            patch.setattr(Path, "unlink", unlink)
            try:
                collect(store)
                break
            except Killed:
                steps += 1
        assert store.verify() == []
        assert all(store.get(each.parent_id) for each in store.list() if each.parent_id)
    assert steps >= 5, "three manifests and their bytes, one a round"
    assert [each.id for each in store.list()] == [kept.id]
    assert len([path for path in store.root.glob("objects/*/*") if path.is_file()]) == 1
    assert not list(store.root.glob("profiles/*"))


def test_a_disk_that_refuses_is_named(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, 1)

    def refuse(path: Path, missing_ok: bool = False) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(ArtifactError, match="Permission denied"):
        collect(aged(store))


def test_beside_writers_nothing_that_is_named_is_ever_lost(tmp_path: Path) -> None:
    """A collector that takes nothing for too young, and writers that put the very bytes which it is about to take."""
    root, done = tmp_path / "store", tmp_path / "done"
    ArtifactStore(root).put(variant("first"), {"model.onnx": b"first"})
    collectors = [start("collect", root, done)]
    lost = [said(process)["lost"] for process in [start("put_and_collect", root, 40, seed) for seed in (1, 2)]]
    done.touch()
    assert sum(said(process)["removed"] for process in collectors) > 5, "nothing was collected, so nothing was proved"
    assert lost == [[], []]
    assert ArtifactStore(root).verify() == []
