"""Processes that use one store at once, or are killed while they do.

    python -m tests.unit.cluster.store_processes ROLE ROOT ...

A process of its own that forks: forking the test runner, with the threads of whatever else it has imported, would not
be safe. Each role prints one line of JSON.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, RefConflict, VariantNotFound
from cluster.garbage import collect
from cluster.releases import Releases
from cluster.variants import Accuracy, Pass, TensorSpec, Variant


def variant(name: str, **params: Any) -> Variant:
    return Variant(
        name=name, family="cnn", format="onnx", passes=(Pass(name="made", params=params),),
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 2)),),
    )  # fmt: skip


def _write_forever(store: ArtifactStore, rng: random.Random) -> None:
    shared = b"shared by all" * 1000
    while True:
        files = {"model.onnx": rng.randbytes(rng.randint(0, 200_000)), "weights.bin": shared}
        stored = store.put(variant("killed/writer", seed=rng.random()), files)
        store.set_ref(rng.choice(["latest", "by/hand", "a/b/c"]), stored.id)


def kill(root: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Kill a writer at a random moment, look at the store, again and again; a new store every ten rounds."""
    rng = random.Random(seed)
    problems: list[str] = []
    written, half_written = 0, 0
    for number in range(rounds):
        store = ArtifactStore(root / str(number // 10))
        pid = os.fork()
        if pid == 0:
            _write_forever(store, random.Random(number))
        time.sleep(rng.uniform(0.0, 0.04))
        os.kill(pid, signal.SIGKILL)
        assert os.WIFSIGNALED(os.waitpid(pid, 0)[1])
        problems += store.verify()
        for each in store.list():
            for entry in each.files:
                store.read(each, entry.path)
        for variant_id in store.refs().values():
            store.get(variant_id)
        half_written += store.sweep(older_than_s=-1.0)
        written += len(store.list()) if number % 10 == 9 else 0
    return {"problems": problems, "written": written, "half_written": half_written}


def count(root: Path, times: int) -> dict[str, int]:
    """Raise a counter `times` times: the reference names a variant that holds the number, moved by compare-and-swap."""
    store = ArtifactStore(root)
    won, lost = 0, 0
    while won < times:
        now = store.ref("counter")
        number = store.get(now).passes[0].params["number"] if now else 0
        raised = store.put(variant("counter", number=number + 1), {"model.onnx": str(number + 1).encode()})
        try:
            store.set_ref("counter", raised.id, expected=now)
            won += 1
        except RefConflict:
            lost += 1
    return {"won": won, "lost": lost}


def write(root: Path, times: int, seed: int) -> dict[str, int]:
    """Put variants that every writer puts, and variants of one's own; move a name of one's own."""
    store = ArtifactStore(root)
    rng = random.Random(seed)
    for number in range(times):
        same = {"model.onnx": str(number).encode() * 20_000, "labels.txt": b"cat dog"}
        accuracy = Accuracy(value=rng.random(), correct=1, total=2, interval=(0, 1), dataset="d", runtime="torch")
        store.put(variant("same", number=number).model_copy(update={"accuracies": (accuracy,)}), same)
        own = store.put(variant(f"own/{seed}", number=number, seed=seed), same | {"extra.bin": rng.randbytes(5000)})
        store.set_ref(f"own/{seed}", own.id)
    return {"put": 2 * times}


def read(root: Path, until: Path) -> dict[str, int]:
    """Read all that is listed, over and over until the file `until` exists; whatever is half there raises."""
    store = ArtifactStore(root)
    read_count = 0
    while not until.exists():
        for each in store.list():
            for entry in each.files:
                assert len(store.read(each, entry.path)) == entry.size_bytes
            read_count += 1
        for variant_id in store.refs().values():
            store.get(variant_id)
        assert store.verify() == []
    return {"read": read_count}


def put_and_collect(root: Path, times: int, seed: int) -> dict[str, Any]:
    """Put variants whose bytes others put and collect too, and name half of them; whoever is named must stay whole."""
    store, rng, lost = ArtifactStore(root), random.Random(seed), list[str]()
    for number in range(times):
        shared = {"model.onnx": str(rng.randrange(4)).encode() * 20_000}
        stored = store.put(variant("v", number=number, seed=seed), shared)
        try:
            store.set_ref(f"own/{seed}/{number % 5}", stored.id)
        except VariantNotFound:
            continue  # collected before it was named
        for entry in store.get(f"own/{seed}/{number % 5}").files:
            if len(store.read(stored, entry.path)) != 20_000:
                lost.append(stored.id)
    return {"lost": lost}


def collect_often(root: Path, until: Path) -> dict[str, int]:
    """Collect over and over, and take nothing for too young, until the file `until` exists."""
    store, removed = ArtifactStore(root), 0
    while not until.exists():
        removed += len(collect(store, young_s=-1.0).variants)
    return {"removed": removed}


def _move_forever(store: ArtifactStore, ids: list[str], rng: random.Random) -> None:
    releases = Releases(store)
    while True:
        try:
            match rng.randrange(4):
                case 0:
                    releases.rollback("m")
                case 1:
                    releases.undo("m", releases.promote("m", rng.choice(ids)))
                case _:
                    releases.promote("m", rng.choice(ids))
        except (ConfigError, RefConflict):
            pass


def kill_releases(root: Path, rounds: int, seed: int) -> dict[str, Any]:
    """Kill who moves the active version at a random moment, look, and move it oneself, again and again."""
    rng = random.Random(seed)
    store = ArtifactStore(root)
    ids = [store.put(variant("v", number=number), {"model.onnx": b"x"}).id for number in range(6)]
    releases, problems, mine, moved = Releases(store), list[str](), "", 0
    for number in range(rounds):
        pid = os.fork()
        if pid == 0:
            _move_forever(store, ids, random.Random(number))
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        active, past = releases.active("m"), releases.history("m")
        if active is not None and past[-1].variant_id != active:
            problems.append(f"round {number}: active is {active}, the history ends with {past[-1]}")
        moved += active != mine
        mine = rng.choice([each for each in ids if each != active])
        releases.promote("m", mine)
        if releases.active("m") != mine or (active is not None and releases.target("m").variant_id != active):
            problems.append(f"round {number}: {active} -> {mine} is not what the history says")
    return {"problems": problems + store.verify(), "moved": moved}


def promote(root: Path, times: int, seed: int) -> dict[str, Any]:
    """Promote `times` times, each time only if nobody else did since one looked."""
    store = ArtifactStore(root)
    releases, rng, won, lost = Releases(store), random.Random(seed), list[tuple[int, str]](), 0
    ids = [each.id for each in store.list()]
    while len(won) < times:
        now = releases.active("m")
        try:
            release = releases.promote("m", rng.choice([each for each in ids if each != now]), expected=now)
            won.append((release.number, release.variant_id))
        except RefConflict:
            lost += 1
    return {"won": won, "lost": lost}


def turns(root: Path, times: int, counter: Path) -> dict[str, int]:
    """Read and write a file that nothing but the turn protects."""
    for _ in range(times):
        with Releases(ArtifactStore(root)).turn("m"):
            counter.write_text(str(int(counter.read_text()) + 1))
    return {"raised": times}


ROLES: dict[str, Callable[..., dict[str, Any]]] = {
    "kill": kill, "count": count, "write": write, "read": read, "kill_releases": kill_releases, "promote": promote,
    "turns": turns, "put_and_collect": put_and_collect, "collect": collect_often,
}  # fmt: skip

if __name__ == "__main__":
    role, root, *rest = sys.argv[1:]
    print(json.dumps(ROLES[role](Path(root), *(int(each) if each.isdigit() else Path(each) for each in rest))))
