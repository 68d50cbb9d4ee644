"""How fast do we serve, beside Mosec, LitServe, BentoML and stock Ray Serve? By benchmarks/PROTOCOL.md.

    python -m benchmarks.serving --output docs/results/2026-01-31-serving
    python -m benchmarks.serving --only ours,mosec --connections 1,64 --seconds 5 --rounds 1 --phases closed

Works: the int8 CNN of 28x28 pictures as raw bytes, and a ResNet-18 of 224x224 that come as JPEG. Phases:

closed    wrk at so many connections: answers a second, p50, p99; beside the bare runtime on one core
paced     the highest fixed rate with p99 within 50 ms, and within 25 ms, by h2load
slo       the highest Poisson rate with p99 within 50 ms, and within 25 ms, by our own open-loop generator
deadline  ours against @serve.batch and against BentoML's adaptive batching, at equal rates under Poisson, bursty and
          traced arrivals: the share answered rightly within the deadline

Servers run one at a time, on the first cores, the client on the last one; rounds go over all of them in turn. Peers
get environments of their own, made at the first run and kept. Interrupted, the same command goes on.
"""

from __future__ import annotations

import argparse
import math
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from benchmarks import files
from benchmarks.peers import environments
from benchmarks.serving import phases, report
from benchmarks.serving.cells import Cells
from benchmarks.serving.contestants import DEFAULT, PEERS, Contestant, Running, Setting, check, contestant_named
from benchmarks.serving.phases import ARRIVALS, Lengths, Place
from benchmarks.serving.works import WORKS, Work, work_named
from cluster.artifacts import ArtifactStore, default_store
from cluster.errors import ConfigError, SluiceError
from cluster.hardware import fingerprint, version_of
from cluster.load import RateTrace
from cluster.runtimes import runtimes_for
from cluster.runtimes.user_cache import user_cache
from tune_spaces.stages import Cores
from tune_spaces.training import default_runs_dir, terminated

_SAY = Console(stderr=True, soft_wrap=True, highlight=False).print
PHASES = ("closed", "paced", "slo", "deadline")
_OURS = "ours"
_BATCHING = (_OURS, "ray-batch", "bentoml")
"""Whose deadlines are compared, ours with each of the others."""
_BOUNDS_S = (0.050, 0.025)
_DEADLINE_S = 0.050
_TIMES_ALONE = 4.0
"""The ResNet's deadline, as a multiple of what one picture takes the bare runtime."""
_FOLDERS = ("--store", "--runs-dir", "--venvs", "--trace")
_LIBRARIES = ("ray", "onnxruntime", "openvino", "numpy", "uvloop", "httptools")


class Benchmark:
    """One run: its works, servers and rounds, and where the figures go."""

    def __init__(self, given: argparse.Namespace, works: list[Work], cells: Cells, place: Place) -> None:
        self._given, self._works, self._cells, self._place = given, works, cells, place
        self._servers = [contestant_named(name) for name in given.only]
        self._setting = Setting(given.venvs, place.server_cores)

    def run(self) -> None:
        """All that is asked for and not there yet."""
        for number in range(self._given.rounds):
            self._alone(number)
            for work in self._works:
                turn = number % len(self._servers)
                for server in self._servers[turn:] + self._servers[:turn]:
                    self._visit(work, server, number)
        if "deadline" in self._given.phases:
            for work in self._works:
                self._deadlines(work)

    def _alone(self, number: int) -> None:
        """The client and the bare runtimes, once in each round."""
        if "slo" in self._given.phases and f"client/{number}" not in self._cells:
            self._cells.put(f"client/{number}", phases.client(self._place))
        for work in self._works if self._given.kernel else []:
            for name in runtimes_for(work.variant.format):
                key = f"{work.name}/kernel/{name}/{number}"
                if key not in self._cells:
                    cell = phases.kernel(work, name, self._place)
                    self._cells.put(key, cell)
                    _SAY(f"round {number + 1}, {work.name}: {name} alone {cell['rate_rps']:,.0f} pictures/s in batches "
                         f"of {cell['best_batch']}, {cell['latency_s'] * 1e3:.2f} ms for one")  # fmt: skip

    def _visit(self, work: Work, server: Contestant, number: int) -> None:
        """One server of one work: whatever is missing of this round."""
        wanted = self._closed_keys(work, server, number) | self._slo_keys(work, server, number)
        wanted |= self._paced_keys(work, server, number)
        if not wanted - set(self._cells.cells):
            return
        label = f"round {number + 1} of {self._given.rounds}, {work.name}, {server.name}"
        _SAY(label)
        try:
            with server.start(work, self._setting) as running:
                self._cells.note("speaks", f"{work.name}/{server.name}", running.speaks)
                phases.warm(running, self._place)
                self._closed(work, server, number, running)
                self._paced(work, server, number, running)
                self._slo(work, server, number, running)
                check(running, work)
            self._cells.document.get("failures", {}).pop(label, None)
        except SluiceError as error:
            self._failed(label, error)

    def _failed(self, label: str, error: SluiceError) -> None:
        """The others go on; the same command tries it again."""
        _SAY(f"{label}: {error}")
        told = str(error)
        for path, name in ((self._given.venvs.absolute(), "VENVS"), (Path.cwd(), "."), (Path.home(), "~")):
            told = told.replace(str(path), name)
        self._cells.note("failures", label, " ".join(told.split())[:400])

    def _closed_keys(self, work: Work, server: Contestant, number: int) -> set[str]:
        if "closed" not in self._given.phases:
            return set()
        return {f"{work.name}/{server.name}/closed/{c}/{number}" for c in self._given.connections}

    def _slo_keys(self, work: Work, server: Contestant, number: int) -> set[str]:
        if "slo" not in self._given.phases:
            return set()
        return {f"{work.name}/{server.name}/slo/{bound * 1e3:g}ms/{number + 1}" for bound in _BOUNDS_S}

    def _paced_keys(self, work: Work, server: Contestant, number: int) -> set[str]:
        if "paced" not in self._given.phases:
            return set()
        return {f"{work.name}/{server.name}/paced/{bound * 1e3:g}ms/{number}" for bound in _BOUNDS_S}

    def _closed(self, work: Work, server: Contestant, number: int, running: Running) -> None:
        for connections in self._given.connections if "closed" in self._given.phases else []:
            key = f"{work.name}/{server.name}/closed/{connections}/{number}"
            if key in self._cells:
                continue
            cell = phases.closed(running, connections, self._place)
            self._cells.put(key, cell)
            batch = f", {cell['mean_batch']:.1f} in a batch" if cell["mean_batch"] else ""
            _SAY(f"  {connections} connections: {cell['rate_rps']:,.0f} req/s, p50 {cell['p50_s'] * 1e3:.2f} ms, p99 "
                 f"{cell['p99_s'] * 1e3:.2f} ms{batch}; {cell['failed']} failed; others used "
                 f"{cell['others_share']:.0%} of its cores")  # fmt: skip

    def _paced(self, work: Work, server: Contestant, number: int, running: Running) -> None:
        if not self._paced_keys(work, server, number) - set(self._cells.cells):
            return
        prefix = f"{work.name}/{server.name}"
        for bound_s, cell in phases.paced(running, _BOUNDS_S, self._most(prefix), self._place).items():
            self._cells.put(f"{prefix}/paced/{bound_s * 1e3:g}ms/{number}", cell)
            _SAY(f"  fixed rate, p99 within {bound_s * 1e3:g} ms: {cell['rate_rps']:,.0f} req/s")

    def _most(self, prefix: str) -> float:
        """Its closed-loop maximum. Raises ConfigError if there is none yet."""
        most = self._cells.best(f"{prefix}/closed", "rate_rps")
        if not most > 0:
            raise ConfigError(f"{prefix} has no closed-loop figure to start from; run the phase `closed` first")
        return most

    def _slo(self, work: Work, server: Contestant, number: int, running: Running) -> None:
        prefix = f"{work.name}/{server.name}"
        for bound_s in _BOUNDS_S if "slo" in self._given.phases else ():
            label, seed = f"{bound_s * 1e3:g}ms", number + 1
            if f"{prefix}/slo/{label}/{seed}" in self._cells:
                continue
            most = self._most(prefix)
            near = self._cells.median(f"{prefix}/slo/{label}", "rate_rps")
            cell = phases.slo(running, bound_s, seed, near if near > 0 else None, most, self._place,
                              self._cells.cells[f"client/{number}"]["rate_rps"])  # fmt: skip
            self._cells.put(f"{prefix}/slo/{label}/{seed}", cell)
            told = "can't tell" if cell["rate_rps"] is None else f"{cell['rate_rps']:,.0f} req/s"
            _SAY(f"  p99 within {label}: {told}")

    def _deadlines(self, work: Work) -> None:
        """Ours against each of the others that form batches, at rates that both are asked for."""
        servers = [server for server in self._servers if server.name.partition(":")[0] in _BATCHING]
        rivals = [server.name for server in servers if server.name != _OURS]
        if not rivals or len(rivals) == len(servers):
            _SAY(f"{work.name}: deadlines compare {_OURS} with {' and '.join(_BATCHING[1:])}; --only leaves no pair")
            return
        trace = phases.read_trace(phases.trace_file(self._given.trace))
        deadline_s = self._cells.fixed(f"{work.name}/deadline_s", lambda: self._deadline_of(work))
        rates = {rival: self._rate_of_pair(work, rival) for rival in rivals}
        for number in range(self._given.rounds):
            for server in servers:
                missing: dict[str, NDArray[np.float64]] = {}
                for rival in rivals if server.name == _OURS else [server.name]:
                    prefix = f"{work.name}/{server.name}/deadline/{rival}"
                    missing |= {
                        key: times for key, times in self._loads(prefix, rates[rival], number + 1, trace).items()
                        if key not in self._cells
                    }  # fmt: skip
                if missing:
                    label = f"deadlines {number + 1} of {self._given.rounds}, {work.name}, {server.name}"
                    self._keep(label, work, server, missing, deadline_s)

    def _rate_of_pair(self, work: Work, rival: str) -> float:
        rate: float = self._cells.fixed(
            f"{work.name}/{rival}/smaller_maximum_rps",
            lambda: phases.smaller_maximum(self._cells, work.name, [_OURS, rival]),
        )
        return rate

    def _loads(self, prefix: str, rate: float, seed: int, trace: RateTrace | None) -> dict[str, NDArray[np.float64]]:
        """Arrivals by the cell that they are for; the same for both of a pair."""
        window_s = self._place.lengths.deadline_s + self._place.lengths.warmup_s
        return {
            f"{prefix}/{kind}/{share:g}/{seed}": phases.arrivals(kind, rate * share, window_s, seed, trace)
            for kind in ARRIVALS if kind != "trace" or trace is not None
            for share in self._given.shares
        }  # fmt: skip

    def _keep(
        self, label: str, work: Work, server: Contestant, loads: dict[str, NDArray[np.float64]], deadline_s: float
    ) -> None:
        """One server under all of its loads. Who can be told of the deadline is told."""
        _SAY(label)
        setting = replace(self._setting, max_latency_s=deadline_s, deadline_s=deadline_s)
        try:
            with server.start(work, setting) as running:
                phases.warm(running, self._place)
                for key, times in loads.items():
                    cell = phases.deadline(running, times, deadline_s, self._place)
                    self._cells.put(key, cell)
                    batch = f", {cell['mean_batch']:.1f} in a batch" if cell["mean_batch"] else ""
                    _SAY(f"  {key.partition('/deadline/')[2]}: {cell['attainment']:.2%} in time{batch}")
            self._cells.document.get("failures", {}).pop(label, None)
        except SluiceError as error:
            self._failed(label, error)

    def _deadline_of(self, work: Work) -> float:
        if not work.jpeg:
            return _DEADLINE_S
        alone = self._cells.median(f"{work.name}/kernel/onnxruntime", "latency_s")
        if math.isnan(alone):
            raise ConfigError(f"{work.name}'s deadline follows the bare runtime; run it without --no-kernel")
        return _TIMES_ALONE * alone


def versions(venvs: Path, names: Sequence[str]) -> dict[str, Any]:
    """Of what is compared; peers' environments are made where they are missing."""
    told: dict[str, Any] = {"this project's": {name: version_of(name) for name in _LIBRARIES}}
    for name in dict.fromkeys(each.partition(":")[0] for each in names):
        if name in PEERS:
            _SAY(f"{name}: its environment")
            told[name] = environments.make(venvs, name)
    return told


def _numbers(text: str) -> list[int]:
    return [int(each) for each in text.split(",") if each]


def _words(text: str) -> list[str]:
    return [each.strip() for each in text.split(",") if each.strip()]


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.serving", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, default=Path("docs/results") / f"{time.strftime('%F')}-serving")
    parser.add_argument("--only", type=_words, default=list(DEFAULT), help="servers; NAME:2 has two workers")
    parser.add_argument("--works", type=_words, default=list(WORKS))
    parser.add_argument("--phases", type=_words, default=list(PHASES))
    parser.add_argument("--connections", type=_numbers, default=[1, 16, 64, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=10, help="of each closed loop")
    parser.add_argument("--slo-seconds", type=float, default=20.0, help="of each step of a search")
    parser.add_argument("--deadline-seconds", type=float, default=20.0)
    parser.add_argument("--warmup-seconds", type=float, default=3.0)
    parser.add_argument("--shares", type=lambda text: [float(each) for each in text.split(",")],
                        default=[0.5, 0.8, 0.95, 1.2], help="of the smaller maximum, for deadlines")  # fmt: skip
    parser.add_argument("--trace", type=Path, help="CSV of rates to replay [default: one in $SLUICE_DATA_DIR]")
    parser.add_argument("--server-cores", type=_numbers, help="[default: all but the last]")
    parser.add_argument("--client-cores", type=_numbers, help="[default: the last]")
    parser.add_argument("--whole-machine", action="store_true", help="pin neither servers nor client")
    parser.add_argument("--no-kernel", dest="kernel", action="store_false", help="leave out the bare runtimes")
    parser.add_argument("--store", type=Path, help="[default: $SLUICE_STORE or the user's]")
    parser.add_argument("--runs-dir", type=Path, default=default_runs_dir())
    parser.add_argument("--venvs", type=Path, help="the peers' environments [default: in the user's cache]")
    parser.add_argument("--again-noisy", action="store_true",
                        help="measure again what others disturbed, and what could not be told")  # fmt: skip
    parser.add_argument("--install-only", action="store_true", help="make the environments, and stop")
    given = parser.parse_args(argv)
    given.venvs = given.venvs or user_cache("serving-peers")
    for name, chosen, known in (("--works", given.works, WORKS), ("--phases", given.phases, PHASES)):
        if wrong := [each for each in chosen if each not in known]:
            raise ConfigError(f"{name} {','.join(wrong)} is unknown; there are {', '.join(known)}")
    for each in given.only:
        contestant_named(each)
    return given


def _said(argv: Sequence[str]) -> list[str]:
    """The command line without what is one machine's own: its folders."""
    return [word for before, word in zip(["", *argv], argv, strict=False)
            if word.partition("=")[0] not in _FOLDERS and before not in _FOLDERS]  # fmt: skip


def place_of(given: argparse.Namespace) -> Place:
    """Who gets which cores."""
    lengths = Lengths(given.seconds, given.slo_seconds, given.deadline_seconds, given.warmup_seconds)
    cores = Cores.split()
    server, client = (given.server_cores or cores.server), (given.client_cores or cores.client)
    return Place([], [], lengths, _SAY) if given.whole_machine else Place(server, client, lengths, _SAY)


def main(argv: Sequence[str] | None = None) -> None:
    """See the module's first lines."""
    given = arguments(argv)
    told = versions(given.venvs, given.only)
    if given.install_only:
        return
    signal.signal(signal.SIGTERM, terminated)
    place = place_of(given)
    store = ArtifactStore(given.store) if given.store else default_store()
    works = [work_named(name, store, given.runs_dir, _SAY) for name in given.works]
    facts = {
        "command": f"python -m benchmarks.serving {' '.join(_said(sys.argv[1:] if argv is None else argv))}".strip(),
        "date": time.strftime("%F"), "machine": fingerprint(), "versions": told,
    }  # fmt: skip
    settings = {
        "server_cores": place.server_cores, "client_cores": place.client_cores, "closed_s": given.seconds,
        "slo_s": given.slo_seconds, "deadline_s": given.deadline_seconds,
    }  # fmt: skip
    cells = Cells(given.output, facts, settings)
    cells.document["versions"].update(told)
    if given.again_noisy:
        _SAY(f"{cells.forget_noisy()} cells are measured again")
    for work in works:
        cells.note("works", work.name, {"does": work.does, "variant": work.variant.id, "exact": work.exact})
    try:
        Benchmark(given, works, cells, place).run()
    finally:
        files.write(given.output / "serving.md", report.markdown(cells))
        _SAY(f"wrote {given.output}/serving.md and serving.json")


if __name__ == "__main__":
    try:
        main()
    except SluiceError as error:
        _SAY(f"benchmarks.serving: {error}")
        sys.exit(2)
    except KeyboardInterrupt:
        _SAY("benchmarks.serving: interrupted; what it started is ended, and the same command goes on")
        sys.exit(130)
