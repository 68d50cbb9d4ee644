"""Who compresses the same trained CNN best in the same time: ours, or Olive, NNCF and torchao, each alone?

    python -m benchmarks.compression_peers --output docs/results/2026-01-31-compression-peers

Each tool gets the same seconds on one core, the trained model, its training pictures, and an environment of its own,
made first (benchmarks/peers). Its results, whatever ways it has, are then judged here alike: the whole test part in the
runtime that runs them, the paired difference to the trained model with the usual floor, the bytes of the file, and
speed on one core in rounds of all tools in turn. Best is who has the most samples per second while the floor holds.

ONNX files are measured by the code that measures ours; what our runtimes do not load (OpenVINO's own files, torch
programs) by benchmarks/peers/measure.py, in the environment that made it, by the same protocol.

Interrupted, the same command goes on with what it has; a tool whose results are there is not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from benchmarks import files
from benchmarks.peers import contest, environments
from benchmarks.peers.contest import OURS, Row
from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError, SluiceError
from cluster.hardware import fingerprint, version_of
from cluster.profiles import curves
from cluster.runtimes import RuntimeConfig, RuntimeName, runtimes_for
from cluster.slo import AccuracyFloor
from cluster.variants import Accuracy, Pass, Variant

_SAY = Console(stderr=True, soft_wrap=True).print
_PEERS = ("olive", "nncf", "torchao")
_BATCHES = (1, 4, 16, 64, 128)
_FLOOR = AccuracyFloor()
_VALIDATION = 0.05
_MEASURE_S = 300.0
"""The longest that judging or timing one result may take; torch compiles meanwhile."""
_LIBRARIES = ("torch", "onnx", "onnxruntime", "openvino", "torch-pruning", "numpy")


@dataclass(frozen=True)
class Trained:
    """What all begin with, and what all are compared with."""

    store: ArtifactStore
    root: Variant
    graph: Variant
    evidence: Any
    judge: Any
    work: Path
    """Below it all that is made: store, given, out/TOOL."""

    @property
    def pictures(self) -> Path:
        """The test part, which is not among what peers are given."""
        return self.work / "test.npz"


def trained(name: str, runs_dir: Path, work: Path) -> Trained:
    """The finished run's module and graph in a store of their own, and the files that peers are given."""
    from train_jobs import runs
    from train_jobs.compression.compress import build_variants
    from train_jobs.compression.spec import CompressSpec
    from train_jobs.compression.trained import of_finished
    from train_jobs.datasets import LabelledDataset
    from train_jobs.evaluate import evidence_of

    run = runs.load(name, runs_dir)
    dataset = run.config.task.load(run.config.dataset, notify=_SAY)
    assert isinstance(dataset, LabelledDataset)
    source = of_finished(run, dataset, runs_dir=runs_dir)
    store = ArtifactStore(work / "store")
    root, graph = build_variants(store, source, dataset, CompressSpec(), notify=_SAY)
    given = work / "given"
    given.mkdir(parents=True, exist_ok=True)
    (given / "model.onnx").write_bytes(store.read(graph, graph.model_file.path))
    weights: dict[str, Any] = {name: value.numpy() for name, value in run.model.state_dict().items()}
    np.savez(given / "weights.npz", **weights)
    order = np.random.default_rng(0).permutation(len(dataset.x_train))
    kept = int(len(order) * _VALIDATION)
    np.savez(
        given / "data.npz", x_train=dataset.x_train[order[kept:]], y_train=dataset.y_train[order[kept:]],
        x_validation=dataset.x_train[order[:kept]], y_validation=dataset.y_train[order[:kept]],
    )  # fmt: skip
    judge = source.subject_on(dataset).judge()
    model = Trained(store, root, graph, evidence_of(store, root, judge, RuntimeConfig(name="torch")), judge, work)
    np.savez(model.pictures, x=dataset.x_test, y=dataset.y_test)
    return model


def run_tool(tool: str, given: argparse.Namespace, work: Path, folder: Path) -> list[Row]:
    """The ways that a tool had time for, each with its file or its error. Its output is kept in its folder's log."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "made.json").unlink(missing_ok=True)
    started = time.time()
    if tool == OURS:
        job = {"store": str(work / "store"), "runs_dir": str(given.runs_dir), "name": given.name, "out": str(folder),
               "spec": "benchmarks/specs/cnn.yaml", "variants": given.ours.split(","), "started": started}  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.peers.ours", json.dumps(job)]
        variables = {**os.environ, "OMP_NUM_THREADS": "1"}
    else:
        script = str(environments.HERE / f"{tool}_peer.py")
        command = [str(environments.python(given.venvs, tool)), script, str(work / "given"), str(folder), str(started),
                   str(given.seconds)]  # fmt: skip
        variables = environments.variables(given.venvs, tool)
    with (folder / "log.txt").open("w") as log:
        try:
            done = subprocess.run(["taskset", "-c", str(given.core), *command], env=variables, stdout=log,
                                  stderr=subprocess.STDOUT, timeout=given.seconds, check=False)  # fmt: skip
            ended = "" if done.returncode == 0 else f"ended with code {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"still at it when the {given.seconds:.0f} s were over"
    made = folder / "made.json"
    ways: list[Row] = json.loads(made.read_text()) if made.exists() else []
    ways = [way for way in ways if way["at_s"] <= given.seconds]
    if ended.startswith("ended"):
        lines = (folder / "log.txt").read_text(errors="replace").strip().splitlines() or ["no message"]
        ended += f": {_plain(lines[-1], given)}"
    if ended:
        ways.append({"name": "the next one", "does": "after those that are told", "error": ended, "seconds": 0.0})
    return ways


def _plain(words: str, given: argparse.Namespace) -> str:
    """An error on one line, without the paths of one machine."""
    for path, name in ((given.venvs.absolute(), "VENVS"), (Path.cwd(), "."), (Path.home(), "~")):
        words = words.replace(str(path), name)
    return " ".join(words.split())[:250]


def judged(tool: str, way: Row, folder: Path, model: Trained, given: argparse.Namespace) -> list[Row]:
    """A row for each runtime that runs it. Raises SluiceError if none does."""
    common = {key: way[key] for key in ("name", "does", "seconds", "at_s")} | {"tool": tool}
    if "variant" in way:
        variant = model.store.get(way["variant"])
        return [common | _figures(a, variant) for a in variant.accuracies]
    path = folder / way["file"]
    if path.suffix == ".onnx":
        variant = _stored(tool, way, path, model)
        return [common | _figures(a, variant) for a in variant.accuracies]
    found = _measured(tool, path, model, given, answers=True, batch_sizes=(max(_BATCHES),))
    evidence = np.asarray(found["answers"]) == np.load(model.pictures)["y"]
    runtime = "torch, compiled" if path.suffix == ".pt2" else "openvino"
    accuracy = model.judge.accuracy(evidence, runtime=runtime, root=(model.root.id, model.evidence))
    # OpenVINO keeps a graph and its weights in two files.
    size = sum(p.stat().st_size for p in path.parent.iterdir() if p.stem == path.stem and p.is_file())
    return [common | _figures(accuracy, None) | {"file": way["file"], "size_bytes": size}]


def _figures(accuracy: Accuracy, variant: Variant | None) -> Row:
    assert accuracy.to_root is not None
    row: Row = {
        "rounds": {},  # each row's own: a dict that rows share would show one runtime's speed as the other's
        "runtime": accuracy.runtime, "value": accuracy.value, "interval": accuracy.interval,
        "to_root": accuracy.to_root.model_dump(mode="json"), "verdict": _FLOOR.verdict(accuracy),
    }  # fmt: skip
    return row if variant is None else row | {"variant": variant.id, "size_bytes": variant.size_bytes}


def _stored(tool: str, way: Row, path: Path, model: Trained) -> Variant:
    """A peer's ONNX file as a variant like ours, judged in every runtime that takes it."""
    from train_jobs.evaluate import evidence_of

    graph = model.graph
    variant = Variant(
        name=f"{tool}/{way['name']}", family=graph.family, parent_id=graph.id, format="onnx", precision="int8",
        passes=(Pass(name=f"peer_{tool}", params={"way": way["name"]}),), inputs=graph.inputs, outputs=graph.outputs,
        labels=graph.labels, preprocessing=graph.preprocessing,
    )  # fmt: skip
    contents = {"model.onnx": path.read_bytes()}
    stored = model.store.put(variant, contents)
    accuracies, errors = [], []
    for runtime in runtimes_for("onnx"):
        try:
            evidence = evidence_of(model.store, stored, model.judge, RuntimeConfig(name=runtime))
        except SluiceError as error:
            errors.append(f"{runtime}: {' '.join(str(error).split())[:200]}")
            continue
        accuracies.append(model.judge.accuracy(evidence, runtime=runtime, root=(model.root.id, model.evidence)))
    if not accuracies:
        raise ConfigError("; ".join(errors))
    return model.store.put(stored.model_copy(update={"accuracies": tuple(accuracies)}), contents)


def _measured(
    tool: str, path: Path, model: Trained, given: argparse.Namespace, *, answers: bool, batch_sizes: Sequence[int]
) -> dict[str, Any]:
    """What measure.py says of a file, in the environment that made it. Raises ConfigError with its last words."""
    job = {"model": str(path.absolute()), "pictures": str(model.pictures.absolute()), "core": given.core,
           "batch_sizes": list(batch_sizes), "answers": answers}  # fmt: skip
    command = [str(environments.python(given.venvs, tool)), str(environments.HERE / "measure.py"), json.dumps(job)]
    try:
        done = subprocess.run(command, env=environments.variables(given.venvs, tool), capture_output=True, text=True,
                              timeout=_MEASURE_S, check=False)  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ConfigError(f"not measured within {_MEASURE_S:.0f} s") from error
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ConfigError(f"measuring it failed: {_plain(words, given)}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def timed(row: Row, model: Trained, given: argparse.Namespace) -> Row:
    """One round of one row."""
    from tune_spaces.profiler import profile

    if "variant" in row:
        name: RuntimeName = row["runtime"]
        job = (model.store.get(row["variant"]), RuntimeConfig(name=name))
        (curve,) = curves(profile(model.store, [job], batch_sizes=_BATCHES, cpus=[given.core], fresh=True))
        return {"latency_s": curve.points[0].latency_p50_s, "throughput_rps": curve.best.throughput_rps,
                "best_batch": curve.best.batch_size}  # fmt: skip
    path = model.work / "out" / row["tool"] / row["file"]
    found = _measured(row["tool"], path, model, given, answers=False, batch_sizes=_BATCHES)["profiles"]
    best = max(found, key=lambda p: p["throughput_rps"])
    return {"latency_s": found[0]["latency_s"], "throughput_rps": best["throughput_rps"],
            "best_batch": best["batch_size"]}  # fmt: skip


def one_tool(tool: str, model: Trained, given: argparse.Namespace, work: Path) -> Row:
    """All of a tool but its speed: versions, ways, judged rows."""
    told: Row = {"versions": {}, "ways": [], "rows": [], "error": ""}
    _SAY(f"{tool}: its environment")
    try:
        told["versions"] = (
            {each: version_of(each) for each in _LIBRARIES} if tool == OURS
            else environments.make(given.venvs, tool, reuse_torch=given.reuse_torch)
        )  # fmt: skip
    except ConfigError as error:
        return told | {"error": f"does not install: {_plain(str(error), given)}"}
    _SAY(f"{tool}: {given.seconds:.0f} s on core {given.core}")
    folder = work / "out" / tool
    told["ways"] = run_tool(tool, given, work, folder)
    for way in told["ways"]:
        if "error" in way:
            _SAY(f"{tool}, {way['name']}: {way['error']}")
            continue
        try:
            rows = judged(tool, way, folder, model, given)
        except SluiceError as error:
            way["error"] = f"made, but cannot be judged: {error}"
            _SAY(f"{tool}, {way['name']}: {way['error']}")
            continue
        told["rows"] += rows
        for row in rows:
            _SAY(f"{tool}, {row['name']} on {row['runtime']}: {row['value']:.4f}, {row['verdict']}, "
                 f"{row['size_bytes']:,} bytes, made in {row['seconds']:.0f} s")  # fmt: skip
    return told


def measure_rounds(done: Row, model: Trained, given: argparse.Namespace, path: Path) -> None:
    """Fill in the rounds: the first of every row whose floor holds, the others of those that may be best."""
    rows = [row for told in done["tools"].values() for row in told["rows"]]
    for number in range(given.rounds):
        able = [r for r in rows if r["verdict"] == "holds" and "not_timed" not in r]
        chosen = able if number == 0 else contest.contenders(able, [*done["tools"]])
        now = [row for row in chosen if str(number) not in row["rounds"]]
        if now:
            done.setdefault("load", {})[str(number)] = os.getloadavg()[0]
        _SAY(f"round {number + 1} of {given.rounds}: {len(now)} results")
        for row in now:
            try:
                row["rounds"][str(number)] = timed(row, model, given)
            except SluiceError as error:
                row["not_timed"] = str(error)
                done["tools"][row["tool"]]["ways"].append(
                    {"name": row["name"], "does": f"timed on {row['runtime']}", "error": str(error)}
                )
            files.write(path, json.dumps(done, indent=1))


def report(done: Row, given: argparse.Namespace) -> str:
    """The markdown."""
    rows = [row for told in done["tools"].values() for row in told["rows"]]
    versions = [f"- {tool}: {', '.join(f'{n} {v}' for n, v in told['versions'].items())}"
                for tool, told in done["tools"].items()]  # fmt: skip
    return "\n".join([
        "# Compression against peers", "", f"`{done['command']}`, {done['date']}, on {fingerprint()}.", "",
        f"The same trained model ({given.name}), {given.seconds:.0f} s on one core for each tool, an environment of "
        f"its own for each. One core, one thread, batches of {', '.join(map(str, _BATCHES))}; a process for each "
        f"result and round, tools in turn, up to {given.rounds} rounds, medians. The floor: at most half a point below "
        "the trained model on the same 10,000 test pictures, one-sided 95%. Only what holds it is timed.", "",
        f"Load of the machine when each round began: {', '.join(f'{load:.1f}' for load in done['load'].values())}. "
        "Above 1 something else was running: long batches are then interrupted and short ones are not, so whoever is "
        "best in large batches looks slower than it is, and no ranking holds.", "",
        "## Who is best", "", "`ours to it`: our fastest against that tool's fastest, round by round, median; above 1 "
        "ours is faster. `its size to ours`: above 1 ours is smaller.", "",
        *contest.summary(rows, done["tools"]), "## Everything", "", *contest.everything(rows),
        "## What did not work", "", *contest.failures(done["tools"]), "", "## Versions", "", *versions, "",
    ])  # fmt: skip


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's first lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="cnn_fashion_mnist", help="a finished run of the CNN")
    parser.add_argument("--output", type=Path, default=Path("docs/results/compression-peers"))
    parser.add_argument("--runs-dir", type=Path, default=Path("runs/training"))
    parser.add_argument("--venvs", type=Path, default=Path("runs/peers"), help="environments, and all that is made")
    parser.add_argument("--tools", default=",".join((OURS, *_PEERS)))
    parser.add_argument("--ours", default="int8,low-rank-int8,lower-rank-int8,qat", help="of benchmarks/specs, in turn")
    parser.add_argument("--seconds", type=float, default=180.0, help="for each tool")
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--install-only", action="store_true", help="make the environments, and stop")
    parser.add_argument("--reuse-torch", action="store_true", help="peers see this environment's packages: to develop")
    given = parser.parse_args(argv)
    tools = given.tools.split(",")
    if given.install_only:
        for tool in [tool for tool in tools if tool != OURS]:
            _SAY(f"{tool}: {environments.make(given.venvs, tool, reuse_torch=given.reuse_torch)}")
        return
    path = given.output / "compression_peers.json"
    command = f"python -m benchmarks.compression_peers --output {given.output} --seconds {given.seconds:.0f}"
    settings = {"name": given.name, "seconds": given.seconds, "core": given.core}
    done: Row = json.loads(path.read_text()) if path.exists() else {
        "command": command, "date": time.strftime("%F"), "machine": fingerprint(), "settings": settings, "tools": {}
    }  # fmt: skip
    if done["settings"] != settings:
        raise ConfigError(f"{path} has results of {done['settings']}, not of {settings}; give another --output")
    # Results are of one output folder: two of them do not share files.
    work = given.venvs / "work" / hashlib.sha256(str(given.output.absolute()).encode()).hexdigest()[:8]
    model = trained(given.name, given.runs_dir, work)
    for tool in tools:
        if tool not in done["tools"]:
            done["tools"][tool] = one_tool(tool, model, given, work)
            files.write(path, json.dumps(done, indent=1))
    measure_rounds(done, model, given, path)
    files.write(given.output / "README.md", report(done, given))
    _SAY(f"wrote {given.output}")


if __name__ == "__main__":
    main()
