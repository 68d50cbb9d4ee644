"""The store with several processes in it, and with writers that are killed: nothing half-written is ever to be seen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from cluster.artifacts import ArtifactStore
from cluster.errors import RefConflict
from tests.unit.cluster.store_processes import variant


def start(role: str, root: Path, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.unit.cluster.store_processes", role, str(root), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def said(process: subprocess.Popen[str]) -> dict[str, Any]:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    answer: dict[str, Any] = json.loads(out)
    return answer


def test_a_killed_writer_leaves_nothing_half_written(tmp_path: Path) -> None:
    answer = said(start("kill", tmp_path, 150, 3))
    assert answer["problems"] == []
    assert answer["written"] > 0, "no writer lived long enough to write anything"
    assert answer["half_written"] > 0, "no writer was killed while it wrote, so nothing was proved"


def test_no_successful_move_of_a_name_is_lost(tmp_path: Path) -> None:
    answers = [said(process) for process in [start("count", tmp_path, 15) for _ in range(4)]]
    assert [answer["won"] for answer in answers] == [15] * 4
    assert sum(answer["lost"] for answer in answers) > 0, "they never met, so nothing was proved"
    store = ArtifactStore(tmp_path)
    assert store.get("counter").passes[0].params["number"] == 60
    assert store.verify() == []


def test_readers_see_whole_variants_while_writers_write(tmp_path: Path) -> None:
    root, done = tmp_path / "store", tmp_path / "done"
    ArtifactStore(root).put(variant("first"), {"model.onnx": b"first"})
    readers = [start("read", root, done) for _ in range(2)]
    writers = [start("write", root, 25, seed) for seed in (1, 2, 3)]
    written = [said(process)["put"] for process in writers]
    done.touch()
    assert all(said(process)["read"] > 0 for process in readers)
    store = ArtifactStore(root)
    # 25 variants that all three put, 25 of each one's own, and the first.
    assert written == [50] * 3
    assert len(store.list()) == 25 + 3 * 25 + 1
    assert set(store.refs()) == {"own/1", "own/2", "own/3"}
    assert store.verify() == []
    assert list(root.glob("tmp/*")) == []


def test_threads_of_one_process_compare_and_swap_too(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    ids = [store.put(variant("v", number=number), {"model.onnx": b"x"}).id for number in range(8)]
    outcomes: list[str] = []
    barrier = threading.Barrier(len(ids))

    def claim(variant_id: str) -> None:
        barrier.wait()
        try:
            store.set_ref("only/once", variant_id, expected=None)
            outcomes.append(variant_id)
        except RefConflict:
            outcomes.append("conflict")

    threads = [threading.Thread(target=claim, args=(each,)) for each in ids]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = store.ref("only/once")
    assert sorted(outcomes) == sorted([winner, *["conflict"] * 7])


def test_listing_bears_with_variants_and_names_that_vanish(tmp_path: Path) -> None:
    """Nothing in Sluice deletes them, but people do."""
    store = ArtifactStore(tmp_path)
    stop = threading.Event()
    rounds: list[int] = []

    def come_and_go() -> None:
        number = 0
        while not stop.is_set():
            rounds.append(number)
            stored = store.put(variant("v", number=number % 20), {"model.onnx": b"x"})
            store.set_ref(f"names/{number % 7}", stored.id)
            for path in [*tmp_path.glob("refs/names/*")][:2]:
                path.unlink()
            for path in [*tmp_path.glob("variants/*")][:5]:
                path.unlink()
            number += 1

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        while len(rounds) < 100 and thread.is_alive():
            store.list()
            store.refs()
            store.verify()
        assert thread.is_alive(), "the other thread failed"
    finally:
        stop.set()
        thread.join()


def test_bytes_are_durable_before_the_manifest_that_names_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fsync and rename of a first `put`, in order: what a power cut could undo, and when."""
    events: list[tuple[str, Path]] = []
    real_fsync, real_replace = os.fsync, os.replace

    def fsync(descriptor: int) -> None:
        events.append(("fsync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        real_fsync(descriptor)

    def replace(source: Path, target: Path) -> None:
        assert ("fsync", source) in events, f"{source} was renamed before its bytes were safe"
        events.append(("rename", target))
        real_replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    root = tmp_path / "new" / "store"
    store = ArtifactStore(root)
    stored = store.put(variant("v"), {"model.onnx": b"graph", "labels.txt": b"cat"})
    store.set_ref("a/b", stored.id)

    def synced_after(target: Path) -> set[Path]:
        """Folders made safe between this rename and the next."""
        at = events.index(("rename", target))
        following = [index for index, (what, _) in enumerate(events) if what == "rename" and index > at]
        return {path for what, path in events[at : following[0] if following else None] if what == "fsync"}

    manifest = root / "variants" / f"{stored.id}.json"
    blobs = [root / "objects" / entry.sha256[:2] / entry.sha256 for entry in stored.files]
    renamed = [path for what, path in events if what == "rename"]
    assert renamed == [*blobs, manifest, root / "refs/a/b"]
    for target in renamed:
        folders = [parent for parent in target.parents if parent.is_relative_to(root)]
        assert set(folders) <= synced_after(target), f"{target} could vanish in a power cut"
    # The root and the folder above it were new too.
    before = {path for what, path in events[: events.index(("rename", blobs[0]))] if what == "fsync"}
    assert {tmp_path, tmp_path / "new"} <= before


def test_bytes_that_were_there_already_are_made_durable_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their writer may have been killed between its rename and its fsync."""
    store = ArtifactStore(tmp_path)
    store.put(variant("v", number=1), {"model.onnx": b"graph"})
    synced: list[str] = []
    real_fsync = os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        real_fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    second = store.put(variant("v", number=2), {"model.onnx": b"graph"})
    folder = tmp_path / "objects" / second.files[0].sha256[:2]
    assert {str(folder), str(folder.parent)} <= set(synced)


def test_a_full_disk_is_an_error_with_a_way_out_and_leaves_nothing(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the kernel ends the write in the middle either way."""
    code = (
        "import resource, sys\n"
        "from cluster.artifacts import ArtifactStore\n"
        "from cluster.errors import ArtifactError\n"
        "from tests.unit.cluster.store_processes import variant\n"
        "store = ArtifactStore(sys.argv[1])\n"
        "kept = store.put(variant('kept'), {'model.onnx': b'small'})\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))\n"
        "try:\n"
        "    store.put(variant('large'), {'model.onnx': bytes(1_000_000)})\n"
        "except ArtifactError as error:\n"
        "    print(error)\n"
        "assert store.verify() == [] and [v.id for v in store.list()] == [kept.id]\n"
        "assert not list(store.root.glob('tmp/*'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "cannot write" in done.stdout
    assert "has room" in done.stdout
