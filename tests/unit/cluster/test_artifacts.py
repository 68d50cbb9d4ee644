"""One process and the store: what is put comes back, what was changed on disk is refused, and names move only as asked.

Several processes, and ones that are killed: test_artifacts_concurrent.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.artifacts import ArtifactStore, default_store
from cluster.errors import ArtifactError, ChecksumMismatch, ConfigError, RefConflict, VariantNotFound
from cluster.variants import NAME, SCHEMA_VERSION, Accuracy, Variant
from tests.unit.cluster.store_processes import variant

BAD_NAMES = ["", ".", "..", "../x", "a/../b", "/etc/passwd", "a//b", "a/", ".hidden", "a/.b", "a\n", "a\0b", "a b", "é",
             "a/b/c/d/e/f", "x" * 101, "a\\b", "~x", "-x"]  # fmt: skip


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def stored(store: ArtifactStore) -> Variant:
    return store.put(variant("cnn/fp32"), {"model.onnx": b"the graph", "labels.txt": b"cat dog"})


def blob_of(store: ArtifactStore, stored: Variant, path: str) -> Path:
    digest = next(entry.sha256 for entry in stored.files if entry.path == path)
    return store.root / "objects" / digest[:2] / digest


def manifest_of(store: ArtifactStore, stored: Variant) -> Path:
    return store.root / "variants" / f"{stored.id}.json"


# What is put comes back


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(files=st.dictionaries(st.from_regex(NAME[1:-1], fullmatch=True), st.binary(max_size=200), max_size=4))
def test_whatever_is_put_comes_back(tmp_path: Path, files: dict[str, bytes]) -> None:
    store = ArtifactStore(tmp_path)
    stored = store.put(variant("any"), files)
    again = store.get(stored.id)
    assert again == stored
    assert {entry.path: store.read(again, entry.path) for entry in again.files} == files
    assert stored.size_bytes == sum(map(len, files.values()))


def test_equal_content_is_one_variant_and_one_blob(store: ArtifactStore) -> None:
    first = store.put(variant("first"), {"model.onnx": b"same", "copy.onnx": b"same"})
    second = store.put(variant("second"), {"copy.onnx": b"same", "model.onnx": b"same"})
    assert first.id == second.id
    assert [each.name for each in store.list()] == ["second"], "what is said about the content is said anew"
    assert len([path for path in store.root.glob("objects/*/*") if path.is_file()]) == 1


def test_other_content_is_another_variant(store: ArtifactStore, stored: Variant) -> None:
    other = store.put(variant("cnn/fp32"), {"model.onnx": b"the graph.", "labels.txt": b"cat dog"})
    assert other.id != stored.id
    assert {each.id for each in store.list()} == {stored.id, other.id}


def test_accuracy_may_be_added_later(store: ArtifactStore, stored: Variant) -> None:
    accuracy = Accuracy(value=0.9, correct=9, total=10, interval=(0.6, 0.99), dataset="digits", runtime="onnxruntime")
    files = {"model.onnx": b"the graph", "labels.txt": b"cat dog"}
    assert store.put(stored.model_copy(update={"accuracies": (accuracy,)}), files).id == stored.id
    assert store.get(stored.id).accuracy == accuracy


def test_the_list_is_oldest_first(store: ArtifactStore) -> None:
    made = [
        variant("v", number=number).model_copy(update={"created_at": f"2026-01-0{day}T00:00:00+00:00"})
        for number, day in enumerate([3, 1, 2])
    ]
    for each in made:
        store.put(each, {})
    assert [each.passes[0].params["number"] for each in store.list()] == [1, 2, 0]


def test_looking_touches_nothing(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "nowhere")
    assert (store.list(), store.refs(), store.verify(), store.sweep(), store.ref("x")) == ([], {}, [], 0, None)
    with pytest.raises(VariantNotFound, match="none yet"):
        store.get("x")
    assert list(tmp_path.iterdir()) == []


def test_a_relative_root_stays_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = ArtifactStore("store")
    monkeypatch.chdir("/")
    assert store.root == tmp_path / "store"


def test_the_default_store_is_the_environments_or_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_STORE", str(tmp_path))
    assert default_store().root == tmp_path
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SLUICE_STORE", "")
    assert default_store().root == tmp_path / ".local/share/sluice/store"
    monkeypatch.delenv("SLUICE_STORE")
    assert default_store().root == tmp_path / ".local/share/sluice/store"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_could_leave_the_store_are_refused(name: str, store: ArtifactStore, stored: Variant) -> None:
    before = sorted(store.root.parent.rglob("*"))
    with pytest.raises(ConfigError, match="not allowed"):
        store.put(variant("v", number=1), {"model.onnx": b"x", name: b"x"})
    with pytest.raises(ConfigError, match="not allowed"):
        store.set_ref(name, stored.id)
    with pytest.raises(VariantNotFound):
        store.get(name)
    with pytest.raises(VariantNotFound):
        store.read(stored, name)
    with pytest.raises(VariantNotFound):
        store.set_ref("fine", name)
    assert sorted(store.root.parent.rglob("*")) == before


# What was changed on disk is refused


@pytest.mark.parametrize("position", [0, 4, -1])
def test_a_flipped_byte_is_found_and_putting_it_again_heals(
    store: ArtifactStore, stored: Variant, position: int
) -> None:
    blob = blob_of(store, stored, "model.onnx")
    data = bytearray(blob.read_bytes())
    data[position] ^= 1
    blob.write_bytes(data)
    with pytest.raises(ChecksumMismatch, match="make the variant again"):
        store.read(stored, "model.onnx")
    assert [str(blob) in problem for problem in store.verify()] == [True]
    assert store.read(stored, "labels.txt") == b"cat dog"

    store.put(variant("cnn/fp32"), {"model.onnx": b"the graph", "labels.txt": b"cat dog"})
    assert store.read(stored, "model.onnx") == b"the graph"
    assert store.verify() == []


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(b""), Path.unlink], ids=["cut", "gone"])
def test_bytes_that_are_not_there_are_found(
    store: ArtifactStore, stored: Variant, change: Callable[[Path], object]
) -> None:
    change(blob_of(store, stored, "model.onnx"))
    with pytest.raises(ChecksumMismatch, match="again"):
        store.read(stored, "model.onnx")
    assert len(store.verify()) == 1


def edit(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    def edited(raw: bytes) -> bytes:
        data = json.loads(raw)
        change(data)
        return json.dumps(data).encode()

    return edited


@pytest.mark.parametrize(
    "change",
    [
        edit(lambda m: m.update(family="lstm")),
        edit(lambda m: m.update(name="other")),
        edit(lambda m: m.update(accuracies=[{"value": 1.0}])),
        edit(lambda m: m["provenance"].update(by="me")),
        edit(lambda m: m["files"][0].update(sha256="0" * 64)),
        edit(lambda m: m["files"].clear()),
        edit(lambda m: m.update(id="0" * 16)),
        edit(lambda m: m.update(surprise=1)),
        edit(lambda m: m.pop("id")),
        edit(lambda m: m.pop("checksum")),
        edit(lambda m: m.update(checksum="0" * 64)),
        edit(lambda m: m.pop("schema_version")),
        lambda raw: raw[: len(raw) // 2],
        lambda raw: b"",
        lambda raw: b"[]",
        lambda raw: b"null",
        lambda raw: b"\xff\xfe",
    ],
)
def test_a_manifest_that_was_edited_is_refused(
    store: ArtifactStore, stored: Variant, change: Callable[[bytes], bytes]
) -> None:
    path = manifest_of(store, stored)
    path.write_bytes(change(path.read_bytes()))
    for look in (lambda: store.get(stored.id), store.list):
        with pytest.raises(ChecksumMismatch, match="delete it and make it again") as caught:
            look()
        assert str(path) in str(caught.value)
    assert len(store.verify()) == 1


def test_a_manifest_under_another_id_is_refused(store: ArtifactStore, stored: Variant) -> None:
    path = manifest_of(store, stored)
    path.rename(path.with_name("0123456789abcdef.json"))
    with pytest.raises(ChecksumMismatch, match=f"hashes to {stored.id}"):
        store.get("0123456789abcdef")


def test_a_manifest_of_a_later_sluice_is_not_guessed_at(store: ArtifactStore) -> None:
    later = store.put(variant("later").model_copy(update={"schema_version": SCHEMA_VERSION + 1}), {})
    with pytest.raises(ConfigError, match=f"schema_version {SCHEMA_VERSION + 1}; this Sluice reads {SCHEMA_VERSION}"):
        store.get(later.id)
    assert len(store.verify()) == 1


def test_a_file_that_the_variant_lacks(store: ArtifactStore, stored: Variant) -> None:
    with pytest.raises(VariantNotFound, match=r"it has \['labels.txt', 'model.onnx'\]"):
        store.read(stored, "model.pt2")


def test_a_store_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ArtifactError, match="is writable and has room"):
        ArtifactStore(tmp_path / "file").put(variant("v"), {"model.onnx": b"x"})


# Finding


def test_get_by_name_id_and_prefix(store: ArtifactStore, stored: Variant) -> None:
    store.set_ref("cnn/fp32", stored.id)
    assert [store.get(ref) for ref in ("cnn/fp32", stored.id, stored.id[:6], stored.id[:15])] == [stored] * 4
    for unknown in (stored.id[:5], stored.id + "0", "0" * 16, "cnn", "fp32", "*", "?" * 6, "cnn/*"):
        with pytest.raises(VariantNotFound, match="named ones: cnn/fp32"):
            store.get(unknown)


def test_an_ambiguous_prefix_names_the_candidates(store: ArtifactStore) -> None:
    seen: dict[str, Variant] = {}
    for number in range(200_000):  # a birthday search: about 5,000 suffice for 6 hex digits
        one = variant("v", number=number)
        if (other := seen.setdefault(one.id[:6], one)) is not one:
            break
    ids = sorted(store.put(each, {}).id for each in (one, other))  # no files: what was hashed is what is stored
    assert ids[0][:6] == ids[1][:6]
    with pytest.raises(VariantNotFound, match=f"ambiguous: {ids[0]}, {ids[1]}; give more digits"):
        store.get(ids[0][:6])
    assert store.get(ids[0]).id == ids[0]


# Names


def test_a_name_moves_only_from_where_it_is_expected(store: ArtifactStore, stored: Variant) -> None:
    other = store.put(variant("other"), {"model.onnx": b"other"})
    store.set_ref("best", stored.id, expected=None)
    with pytest.raises(RefConflict, match=f"points at {stored.id}, not at None"):
        store.set_ref("best", other.id, expected=None)
    with pytest.raises(RefConflict, match=f"points at {stored.id}, not at {other.id}"):
        store.set_ref("best", other.id, expected=other.id)
    assert store.ref("best") == stored.id
    store.set_ref("best", other.id, expected=stored.id)
    assert store.ref("best") == other.id
    store.set_ref("best", stored.id)
    assert store.refs() == {"best": stored.id}
    with pytest.raises(RefConflict, match="points at None"):
        store.set_ref("new", stored.id, expected=stored.id)
    assert store.ref("new") is None


@pytest.mark.parametrize("missing", ["0" * 16, "", "x", "../variants/x"])
def test_a_name_cannot_point_at_nothing(store: ArtifactStore, stored: Variant, missing: str) -> None:
    with pytest.raises(VariantNotFound, match="no such variant"):
        store.set_ref("best", missing)
    assert store.refs() == {}


@pytest.mark.parametrize("name", ["facade", "0123456789abcdef", "123456"])
def test_a_name_that_reads_like_an_id_is_refused(store: ArtifactStore, stored: Variant, name: str) -> None:
    with pytest.raises(ConfigError, match="taken for a variant's id"):
        store.set_ref(name, stored.id)


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a"), ("a", "a/b/c"), ("a/b/c", "a/b")])
def test_a_name_cannot_be_a_folder_of_another(store: ArtifactStore, stored: Variant, first: str, second: str) -> None:
    store.set_ref(first, stored.id)
    for expected in ({}, {"expected": None}):
        with pytest.raises(ConfigError, match="choose another"):
            store.set_ref(second, stored.id, **expected)
    assert store.refs() == {first: stored.id}
    assert store.ref(second) is None
    assert list(store.root.glob("tmp/*")) == []


@pytest.mark.parametrize("content", [b"", b"\n", b"nonsense", b"../../etc/passwd", b"\xff\xff", b"0" * 15])
def test_a_damaged_name_is_found_and_setting_it_anew_heals(
    store: ArtifactStore, stored: Variant, content: bytes
) -> None:
    store.set_ref("best", stored.id)
    (store.root / "refs/best").write_bytes(content)
    for look in (lambda: store.ref("best"), store.refs, lambda: store.get("best"),
                 lambda: store.set_ref("best", stored.id, expected=stored.id)):  # fmt: skip
        with pytest.raises(ChecksumMismatch, match="is no variant id"):
            look()
    assert len(store.verify()) == 1
    store.set_ref("best", stored.id)
    assert store.get("best") == stored


def test_a_name_whose_variant_is_gone(store: ArtifactStore, stored: Variant) -> None:
    store.set_ref("best", stored.id)
    manifest_of(store, stored).unlink()
    with pytest.raises(VariantNotFound, match=f"'best' points at variant {stored.id}, which is not in"):
        store.get("best")
    assert store.verify() == [f"'best' points at {stored.id}, which does not exist"]


def test_files_that_are_no_names_of_ours_are_passed_over(store: ArtifactStore, stored: Variant) -> None:
    store.set_ref("best", stored.id)
    (store.root / "refs/.DS_Store").write_bytes(b"\0")
    (store.root / "variants/notes.txt").write_text("mine")
    assert store.refs() == {"best": stored.id}
    assert store.list() == [stored]
    assert store.verify() == []


# Sweeping


def test_sweeping_takes_only_what_is_old(store: ArtifactStore, stored: Variant) -> None:
    old, young, folder = (store.root / "tmp" / name for name in ("1-old", "2-young", "folder"))
    old.write_bytes(b"half")
    young.write_bytes(b"half")
    folder.mkdir()
    for path in (old, folder):
        os.utime(path, (time.time() - 7200,) * 2)
    assert store.sweep() == 1
    assert (old.exists(), young.exists(), folder.exists()) == (False, True, True)
    assert store.sweep(older_than_s=-1.0) == 1


def test_putting_sweeps(store: ArtifactStore, stored: Variant) -> None:
    left = store.root / "tmp" / "1-left"
    left.write_bytes(b"half")
    os.utime(left, (time.time() - 7200,) * 2)
    store.put(variant("next", number=1), {})
    assert not left.exists()


def test_the_store_loads_neither_torch_nor_numpy() -> None:
    code = "import sys, cluster.artifacts; print(sorted({'torch', 'numpy', 'ray', 'pickle'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in done.stdout
    assert "numpy" not in done.stdout
