"""`sluice variants`: the lineage as a tree; promote, roll back and collect what nobody needs.

    what may be promoted -> the reference moves by compare-and-swap -> the deployment is told -> every replica answers
                                      ^--------------- put back if it refuses ---------------'
"""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text
from rich.tree import Tree

from cluster import local
from cluster.artifacts import ANYTHING, Anything, ArtifactStore, default_store
from cluster.control import actuator
from cluster.control.actuator import Deployed
from cluster.errors import ArtifactError, RefConflict
from cluster.garbage import Collected, collect
from cluster.releases import PREFIX, Release, Releases
from cluster.slo import AccuracyFloor
from cluster.variants import Variant
from tune_spaces.promotion import found, make_active, refuse_unfit, same_store, serving_of
from tune_spaces.report.lineage import Node, judged, tree
from tune_spaces.report.words import VERDICTS, accuracy_text, difference_text

_console = Console(soft_wrap=True)  # a message is one line, whoever reads it
_FLOOR = AccuracyFloor()
_WIDE = 10_000


def show(*, name: str | None, store: Path | None, as_json: bool) -> None:
    """Print the lineage of every variant, or of those that `name` names: a variant, or the first part of names.

    Raises VariantNotFound if there is none of that name.
    """
    artifacts = _store(store)
    names = _Names(artifacts)
    roots = [root for root in tree(artifacts.list()) if name is None or _is_named(root, name, artifacts, names)]
    if name is not None and not roots:
        artifacts.get(name)  # says which ones there are
    if as_json:
        print(json.dumps([_as_dict(root, names) for root in roots], indent=2))
    elif not roots:
        _console.print(f"no variants in {artifacts.root} yet; make some: sluice compress RUN")
    # A terminal wraps inside the tree; into a file or pipe each line goes whole.
    console = Console() if _console.is_terminal else Console(width=_WIDE)
    for root in () if as_json else roots:
        console.print(_branch(root, names, None))
    if roots and not as_json:
        figures = [accuracy for root in roots for variant in _all(root) for accuracy in variant.accuracies]
        told = dict.fromkeys(_FLOOR.of(accuracy) for accuracy in figures)
        _console.print(Text(f"floor: {'; '.join(told) or _FLOOR}"))


def promote(
    *, ref: str, model: str, expected: str | None, address: str | None, store: Path | None, dry_run: bool
) -> None:
    """Make a variant the active version of `model`, and with `address` the one that every replica there answers from.

    `expected`: id or name of what must be active now, "none" for nothing. Raises RefConflict if another is, ConfigError
    for a variant that cannot take the place, ClusterError if the deployment refuses it; then all is as it was.
    """
    artifacts = _store(store)
    releases, variant, believed = Releases(artifacts), artifacts.get(ref), _believed(artifacts, expected)
    with nullcontext() if dry_run else releases.turn(model):
        active = releases.active(model)
        if not isinstance(believed, Anything) and active != believed:
            raise RefConflict(f"{model}: active is {active}, not {believed}; look and decide anew")
        deployed = actuator.read(address, model) if address else None
        serving = serving_of(artifacts, deployed)
        refuse_unfit(artifacts, variant, serving or found(artifacts, active), deployed)

        def move() -> Release:
            return releases.promote(
                model, variant.id, expected=believed, serving=serving.id if serving is not None else None
            )

        _make(releases, model, variant, deployed, None if dry_run else move)


def rollback(*, model: str, address: str | None, store: Path | None, dry_run: bool) -> None:
    """Go back to the version before the active one; one rollback after another goes further back. Raises as `promote`
    does, and ConfigError if there is none."""
    artifacts = _store(store)
    releases = Releases(artifacts)
    with nullcontext() if dry_run else releases.turn(model):
        variant = artifacts.get(releases.target(model).variant_id)
        active = releases.active(model)
        deployed = actuator.read(address, model) if address else None
        refuse_unfit(artifacts, variant, serving_of(artifacts, deployed) or found(artifacts, active), deployed)

        def move() -> Release:
            return releases.rollback(model, expected=active)

        _make(releases, model, variant, deployed, None if dry_run else move)


def gc(*, store: Path | None, keep: int, dry_run: bool, as_json: bool, address: str | None = None) -> None:
    """Remove the variants that no name, release, lineage or running deployment needs: those of the clusters that Sluice
    started here, and of the one at `address`. Raises ClusterError if one of these does not say what it serves."""
    artifacts = _store(store)
    addresses = [record.dashboard_address for record in local.list_clusters()] + ([address] if address else [])
    here = [each for where in addresses for each in actuator.read_all(where) if same_store(artifacts, each)]
    served = [found(artifacts, ref) for each in here for ref in (each.variant, each.bound)]
    pinned = {variant.id for variant in served if variant is not None}
    collected = collect(artifacts, keep=keep, pinned=pinned, dry_run=dry_run)
    if as_json:
        print(json.dumps(_collected_as_dict(collected, dry_run), indent=2))
        return
    verb = "would remove" if dry_run else "removed"
    for variant in collected.variants:
        _console.print(Text(f"{verb} {variant.name} ({variant.id})"))
    _console.print(Text(
        f"{verb} {len(collected.variants)} variants, {len(collected.blobs)} files of theirs and "
        f"{len(collected.profiles)} folders of profiles: {collected.size_bytes:,} bytes"
    ))  # fmt: skip


def _make(
    releases: Releases, model: str, variant: Variant, deployed: Deployed | None, move: Callable[[], Release] | None
) -> None:
    """Do it, and say so; `move` None: only say what would happen."""
    before = releases.active(model) or "nothing"
    if move is None:
        also = f", on {deployed.num_replicas} replicas at {deployed.address} too" if deployed else ""
        print(f"would make {variant.name} ({variant.id}) the active version of {model} instead of {before}{also}")
        return
    answers = make_active(releases, model, variant, deployed, move)
    _console.print(Text(f"{model}: {variant.name} ({variant.id}) is active; before: {before}"))
    if deployed is not None:
        checked = f"asked {answers} times" if answers else "says Serve; no proxy can be reached from here"
        _console.print(Text(f"every replica at {deployed.address} answers from it ({checked})"))


def _store(path: Path | None) -> ArtifactStore:
    return ArtifactStore(path) if path else default_store()


def _believed(artifacts: ArtifactStore, expected: str | None) -> str | Anything | None:
    if expected is None:
        return ANYTHING
    return None if expected == "none" else artifacts.get(expected).id


# The tree


class _Names:
    """What points at a variant: names, and models whose active version it is."""

    def __init__(self, artifacts: ArtifactStore) -> None:
        self._refs = artifacts.refs()

    def of(self, variant: Variant) -> list[str]:
        return [name for name, id_ in self._refs.items() if id_ == variant.id and not name.startswith(PREFIX)]

    def active_for(self, variant: Variant) -> list[str]:
        marked = [name for name, id_ in self._refs.items() if id_ == variant.id and name.startswith(PREFIX)]
        return [name.removeprefix(PREFIX) for name in marked]


def _is_named(node: Node, name: str, artifacts: ArtifactStore, names: _Names) -> bool:
    """Is it of this lineage? An id, its beginning, a name, or the folder of a name."""
    variant = found(artifacts, name)
    if variant is not None:
        return any(each.id == variant.id for each in _all(node))
    return any(called.startswith(f"{name}/") for each in _all(node) for called in [each.name, *names.of(each)])


def _all(node: Node) -> list[Variant]:
    return [node.variant, *(variant for child in node.children for variant in _all(child))]


def _branch(node: Node, names: _Names, parent: Tree | None) -> Tree:
    label = Text("\n").join(_label(node.variant, names))
    made = Tree(label) if parent is None else parent.add(label)
    for child in node.children:
        _branch(child, names, made)
    return made


def _label(variant: Variant, names: _Names) -> list[Text]:
    """The variant's own line, and one for each runtime that it was measured in."""
    called, active = names.of(variant), names.active_for(variant)
    head = Text(variant.name, style="bold")
    head.append(f"  {variant.id}  {variant.format} {variant.precision}  {_graph_bytes(variant) / 1024:,.0f} KiB", "dim")
    head.append("" if variant.name in called else "  unnamed", "dim")
    head.append("".join(f"  also {name}" for name in called if name != variant.name))
    head.append("".join(f"  active: {model}" for model in active), "bold green")
    lines = [head]
    for accuracy, verdict in judged(variant, _FLOOR):
        to_root = f", to the trained model {difference_text(accuracy.to_root)}" if accuracy.to_root else ""
        lines.append(Text(f"{accuracy.runtime}: {accuracy_text(accuracy)}{to_root}, {VERDICTS[verdict]}"))
    return lines if variant.accuracies else [head, Text("never measured")]


def _graph_bytes(variant: Variant) -> int:
    with suppress(ArtifactError):
        return variant.model_file.size_bytes
    return variant.size_bytes


def _as_dict(node: Node, names: _Names) -> dict[str, Any]:
    variant = node.variant
    kept = {"id", "name", "parent_id", "format", "precision", "created_at"}
    return variant.model_dump(mode="json", include=kept) | {
        "names": names.of(variant),
        "active_for": names.active_for(variant),
        "graph_bytes": _graph_bytes(variant),
        "accuracies": [
            accuracy.model_dump(mode="json") | {"floor": verdict} for accuracy, verdict in judged(variant, _FLOOR)
        ],
        "children": [_as_dict(child, names) for child in node.children],
    }


def _collected_as_dict(collected: Collected, dry_run: bool) -> dict[str, Any]:
    return {
        "dry_run": dry_run,
        "variants": [{"id": variant.id, "name": variant.name} for variant in collected.variants],
        "blobs": len(collected.blobs),
        "profiles": len(collected.profiles),
        "size_bytes": collected.size_bytes,
    }
