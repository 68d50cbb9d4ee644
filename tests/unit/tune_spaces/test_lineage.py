"""`sluice variants` without a cluster: the tree, its JSON, what promote and rollback say and refuse, gc. With one:
tests/integration/test_promote.py."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cluster.artifacts import ArtifactStore
from cluster.errors import ClusterError, ConfigError, RefConflict, VariantNotFound
from cluster.releases import Releases
from cluster.slo import AccuracyFloor
from cluster.variants import TensorSpec, Variant
from tests.unit.tune_spaces.report import made
from tune_spaces import lineage

Lines = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def _no_clusters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_STATE", str(tmp_path / "clusters"))


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "store")


@pytest.fixture
def variants(store: ArtifactStore) -> dict[str, Variant]:
    """A model's variants, stored, named as compress names them."""
    stored: dict[str, Variant] = {}
    parents = {"fp32": "fp32-torch", "int8": "fp32", "bf16": "fp32", "pruned": "fp32-torch", "pruned-int8": "pruned"}
    for short, variant in made.variants("m").items():
        parent = stored[parents[short]].id if short in parents else None
        path = variant.files[0].path
        stored[short] = store.put(variant.model_copy(update={"parent_id": parent}), {path: short.encode() * 1024})
        store.set_ref(stored[short].name, stored[short].id)
    return stored


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    return lambda: capsys.readouterr().out.splitlines()


def show(store: ArtifactStore, name: str | None = None, *, as_json: bool = False) -> None:
    lineage.show(name=name, store=store.root, as_json=as_json)


def promote(store: ArtifactStore, ref: str, **changes: Any) -> None:
    given = {"model": "classifier", "expected": None, "address": None, "dry_run": False} | changes
    lineage.promote(ref=ref, store=store.root, **given)


def rollback(store: ArtifactStore, *, dry_run: bool = False) -> None:
    lineage.rollback(model="classifier", address=None, store=store.root, dry_run=dry_run)


def depth(line: str) -> int:
    """How far in the tree it is: each level is drawn four wide."""
    return next(index for index, character in enumerate(line) if character not in "│├└─ ") // 4


def test_a_store_without_variants_says_what_to_do(store: ArtifactStore, lines: Lines) -> None:
    show(store)
    assert lines() == [f"no variants in {store.root} yet; make some: sluice compress RUN"]
    show(store, as_json=True)
    assert lines() == ["[]"]


def test_the_tree_has_children_below_their_parents(
    store: ArtifactStore, variants: dict[str, Variant], lines: Lines
) -> None:
    show(store)
    shown = lines()
    heads = {v.name: next(line for line in shown if v.id in line) for v in variants.values()}
    assert {name: depth(line) for name, line in heads.items()} == {
        "m/fp32-torch": 0, "m/fp32": 1, "m/int8": 2, "m/bf16": 2, "m/pruned": 1, "m/pruned-int8": 2,
    }  # fmt: skip
    at = {name: shown.index(line) for name, line in heads.items()}
    assert at["m/fp32"] < at["m/int8"] < at["m/pruned"] < at["m/pruned-int8"]
    assert at["m/fp32"] < at["m/bf16"] < at["m/pruned"]
    assert all(f"{v.format} {v.precision}" in heads[v.name] for v in variants.values())
    assert "4 KiB" in heads["m/int8"]
    assert shown[-1] == f"floor: {AccuracyFloor()}"


def test_each_node_tells_its_accuracy_in_every_runtime_and_the_verdict(
    store: ArtifactStore, variants: dict[str, Variant], lines: Lines
) -> None:
    store.put(variants["int8"].model_copy(update={"accuracies": ()}), {"model.onnx": b"int8" * 1024})
    show(store)
    shown = lines()

    def below(short: str) -> list[str]:
        at = next(index for index, line in enumerate(shown) if variants[short].id in line)
        return [line.lstrip("│ ") for line in shown[at + 1 : at + 3]]

    assert below("fp32-torch")[0] == "torch: 0.9161 [0.9105, 0.9214], holds"
    assert below("pruned-int8")[0].startswith("onnxruntime: 0.9071 [")
    assert "to the trained model -0.0090 [" in below("pruned-int8")[0]
    assert below("pruned-int8")[0].endswith("fails")
    assert below("pruned")[1].startswith("openvino: ")
    assert below("bf16")[0].endswith("holds")
    assert below("int8")[0] == "never measured"


def test_a_model_with_an_error_has_its_own_floor(
    store: ArtifactStore, variants: dict[str, Variant], lines: Lines
) -> None:
    forecaster = made.by_error(made.report(folder="f")).variants
    stored: Variant | None = None
    for variant in forecaster[:2]:
        update = {"parent_id": stored.id if stored else None, "family": "lstm"}
        stored = store.put(variant.model_copy(update=update), {variant.files[0].path: b"f" * 1024})
        store.set_ref(stored.name, stored.id)
    show(store, "f")
    shown = lines()
    assert shown[-1] == "floor: at most 5% above the trained model's error"
    assert any("onnxruntime: mse 0.0839 [" in line and "to the trained model +0.00% [" in line for line in shown)
    show(store)
    both = lines()[-1].removeprefix("floor: ").split("; ")
    assert sorted(both) == [str(AccuracyFloor()), "at most 5% above the trained model's error"]


def test_names_and_the_active_version_are_marked(
    store: ArtifactStore, variants: dict[str, Variant], lines: Lines
) -> None:
    store.set_ref("best/so-far", variants["int8"].id)
    unnamed = store.put(variants["bf16"].model_copy(update={"preprocessing": "x"}), {"model.onnx": b"x"})
    promote(store, "m/int8", model="shop")
    lines()
    show(store)
    shown = lines()
    marked = next(line for line in shown if variants["int8"].id in line)
    assert marked.endswith("also best/so-far  active: shop")
    assert next(line for line in shown if unnamed.id in line).endswith("unnamed")
    assert sum("active:" in line or "unnamed" in line for line in shown) == 2


def test_one_model_only(store: ArtifactStore, variants: dict[str, Variant], lines: Lines) -> None:
    other = store.put(variants["fp32-torch"].model_copy(update={"name": "m2/fp32-torch", "family": "x"}), {})
    for name in ("m", "m/int8", variants["bf16"].id, variants["bf16"].id[:8]):
        show(store, name)
        text = "\n".join(lines())
        assert all(v.id in text for v in variants.values()), name
        assert other.id not in text
    show(store, "m2")
    assert other.id in lines()[0]
    with pytest.raises(VariantNotFound, match="no variant 'nobody'"):
        show(store, "nobody")


def test_json_says_what_the_tree_shows(store: ArtifactStore, variants: dict[str, Variant], lines: Lines) -> None:
    promote(store, "m/int8")
    lines()
    show(store, as_json=True)
    [root] = json.loads("\n".join(lines()))
    assert root["id"] == variants["fp32-torch"].id
    fp32 = next(child for child in root["children"] if child["name"] == "m/fp32")
    int8 = next(child for child in fp32["children"] if child["name"] == "m/int8")
    assert int8["parent_id"] == fp32["id"]
    assert (int8["names"], int8["active_for"], int8["graph_bytes"]) == (["m/int8"], ["classifier"], 4096)
    assert [accuracy["runtime"] for accuracy in int8["accuracies"]] == ["onnxruntime", "openvino"]
    assert {accuracy["floor"] for accuracy in int8["accuracies"]} == {"holds"}


def test_a_variant_without_its_parent_is_shown_all_the_same(
    store: ArtifactStore, variants: dict[str, Variant], lines: Lines
) -> None:
    store.manifest_path(variants["fp32"].id).unlink()
    show(store, variants["int8"].id)
    assert any(variants["int8"].id in line and depth(line) == 0 for line in lines())


# Promote and roll back, nobody serving


def test_promote_and_roll_back_say_what_they_did(
    store: ArtifactStore, variants: dict[str, Variant], lines: Lines
) -> None:
    fp32, int8 = variants["fp32"].id, variants["int8"].id
    promote(store, "m/fp32")
    assert lines() == [f"classifier: m/fp32 ({fp32}) is active; before: nothing"]
    promote(store, int8[:8], expected="m/fp32")
    assert lines() == [f"classifier: m/int8 ({int8}) is active; before: {fp32}"]
    rollback(store)
    assert lines() == [f"classifier: m/fp32 ({fp32}) is active; before: {int8}"]
    assert Releases(store).active("classifier") == fp32


def test_dry_runs_change_nothing(store: ArtifactStore, variants: dict[str, Variant], lines: Lines) -> None:
    def content() -> dict[Path, bytes]:
        return {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}

    promote(store, "m/fp32")
    promote(store, "m/int8")
    before = content()
    lines()
    promote(store, "m/bf16", dry_run=True)
    rollback(store, dry_run=True)
    lineage.gc(store=store.root, keep=5, dry_run=True, as_json=False)
    said = lines()
    assert said[0].startswith(f"would make m/bf16 ({variants['bf16'].id}) the active version of classifier")
    assert said[1].startswith(f"would make m/fp32 ({variants['fp32'].id})")
    assert said[2].startswith("would remove 0 variants")
    assert content() == before


def test_compare_and_swap(store: ArtifactStore, variants: dict[str, Variant]) -> None:
    promote(store, "m/fp32", expected="none")
    for expected in ("none", "m/int8"):
        with pytest.raises(RefConflict, match=f"active is {variants['fp32'].id}"):
            promote(store, "m/bf16", expected=expected)
    with pytest.raises(VariantNotFound):
        promote(store, "m/bf16", expected="m/nobody")
    assert Releases(store).active("classifier") == variants["fp32"].id


def test_a_variant_that_cannot_take_the_place_is_refused(store: ArtifactStore, variants: dict[str, Variant]) -> None:
    promote(store, "m/fp32")
    spec = TensorSpec(name="picture", datatype="UINT8", shape=(-1, 1, 28, 28))
    other = store.put(variants["fp32"].model_copy(update={"inputs": (spec,)}), {})
    unmeasured = store.put(variants["fp32"].model_copy(update={"preprocessing": "?", "accuracies": ()}), {})
    with pytest.raises(ConfigError, match=r"other inputs or outputs than m/fp32.*--model"):
        promote(store, other.id)
    with pytest.raises(ConfigError, match="never measured"):
        promote(store, unmeasured.id)
    with pytest.raises(ConfigError, match="model name 'a/b'"):
        promote(store, "m/int8", model="a/b")
    assert Releases(store).active("classifier") == variants["fp32"].id
    promote(store, other.id, model="pictures")


def test_nothing_to_roll_back_to(store: ArtifactStore, variants: dict[str, Variant]) -> None:
    with pytest.raises(ConfigError, match="active is nothing"):
        rollback(store)
    promote(store, "m/fp32")
    with pytest.raises(ConfigError, match="no version before it"):
        rollback(store)


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "http://", "nonsense"])
def test_a_dashboard_that_does_not_answer_moves_nothing(
    address: str, store: ArtifactStore, variants: dict[str, Variant]
) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        with pytest.raises(ClusterError, match="does not answer"):
            promote(store, "m/fp32", address=address.format(port=closed.getsockname()[1]))
    assert Releases(store).active("classifier") is None


# gc


def test_gc_says_what_it_removed(store: ArtifactStore, variants: dict[str, Variant], lines: Lines) -> None:
    gone = store.put(variants["bf16"].model_copy(update={"preprocessing": "old"}), {"model.onnx": b"old" * 100})
    then = time.time() - 7200
    for path in store.root.rglob("*"):
        os.utime(path, (then, then))
    size = store.manifest_path(gone.id).stat().st_size + 300
    lineage.gc(store=store.root, keep=5, dry_run=True, as_json=True)
    assert json.loads("\n".join(lines())) == {
        "dry_run": True, "variants": [{"id": gone.id, "name": "m/bf16"}], "blobs": 1, "profiles": 0,
        "size_bytes": size,
    }  # fmt: skip
    lineage.gc(store=store.root, keep=5, dry_run=False, as_json=False)
    assert lines() == [
        f"removed m/bf16 ({gone.id})",
        f"removed 1 variants, 1 files of theirs and 0 folders of profiles: {size:,} bytes",
    ]
    assert {v.id for v in store.list()} == {v.id for v in variants.values()}


def test_gc_keeps_what_a_rollback_needs(store: ArtifactStore, variants: dict[str, Variant], lines: Lines) -> None:
    promote(store, "m/bf16")
    promote(store, "m/int8")
    for name in store.refs():
        if not name.startswith("active/"):
            (store.root / "refs" / name).unlink()
    then = time.time() - 7200
    for path in store.root.rglob("*"):
        os.utime(path, (then, then))
    lineage.gc(store=store.root, keep=1, dry_run=False, as_json=False)
    assert {v.id for v in store.list()} == {variants[short].id for short in ("int8", "bf16", "fp32", "fp32-torch")}
    rollback(store)
