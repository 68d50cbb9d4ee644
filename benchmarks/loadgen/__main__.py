"""MLPerf LoadGen as the load source: how many pictures a second, with p99 within a bound, by its own judgement.

    python -m benchmarks.loadgen --output docs/results/2026-01-31-mlperf-loadgen.md
    python -m benchmarks.loadgen --seconds 600      # as long as an official run must be at least

LoadGen's scenarios, against the int8 CNN as `sluice serve` deploys it: AccuracyOnly over the whole test set, then
Server (Poisson arrivals; the highest target whose run is VALID, by bisection, and a longer run at that target),
SingleStream, and Offline. Server and Ray on the first cores, LoadGen and its client on the last one; LoadGen against a
server that answers at once says what the client itself is worth.
"""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from benchmarks import files
from benchmarks.loadgen import report
from benchmarks.loadgen.runs import PEER, Ran, Setting, run
from benchmarks.peers import environments
from benchmarks.serving import contestants
from benchmarks.serving.works import work_named
from cluster.artifacts import ArtifactStore, default_store
from cluster.errors import SluiceError
from cluster.load.null_server import null_server
from cluster.runtimes.user_cache import user_cache
from tune_spaces.stages import Cores
from tune_spaces.training import default_runs_dir

_SAY = Console(stderr=True, soft_wrap=True, highlight=False).print
_STEPS = 6
_FOLDERS = {"--store", "--runs-dir", "--venvs"}
_PATH = f"/v2/models/{contestants.MODEL_NAME}/infer"


def highest(setting: Setting, address: str, seconds: float, low: float, high: float) -> tuple[float, list[Ran]]:
    """(the highest target found whose run is VALID, 0 if none, all runs), by bisection."""
    runs: list[Ran] = []
    best = 0.0
    for _ in range(_STEPS):
        target = float(round((low + high) / 2))
        runs.append(_told(run(setting, address, qps=target, seconds=seconds)))
        if runs[-1].valid:
            low = best = target
        else:
            high = target
    return best, runs


def _told(ran: Ran) -> Ran:
    p99 = ran.ms("99.00 percentile latency (ns)")
    told = "" if p99 is None else f", p99 {p99:.2f} ms"
    right = "" if ran.accuracy is None else f", accuracy {ran.accuracy:.4f} of {ran.answered}"
    _SAY(f"  {ran.scenario} {ran.mode} at {ran.qps:,.0f}/s: {ran.figures.get('Result is', 'done')}{told}{right}; "
         f"{ran.refused} refused; client {ran.client_share:.0%} of a core")  # fmt: skip
    return ran


def measure(given: argparse.Namespace) -> report.Found:
    """All of it."""
    from train_jobs import datasets

    cores = Cores.split()
    work = work_named("cnn", ArtifactStore(given.store or default_store()), given.runs_dir, _SAY)
    test = datasets.load("fashion-mnist", notify=_SAY)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures.npz"
        np.savez(pictures, pictures=test.x_test)
        setting = Setting(given.venvs, pictures, np.asarray(test.y_test, np.int64), cores.client, given.bound_ms / 1e3,
                          _PATH)  # fmt: skip
        served = contestants.Setting(given.venvs, cores.server, deadline_s=given.bound_ms / 1e3)
        with null_server(cpu=cores.server[0] if cores.server else None) as (host, port):
            client, searched = highest(setting, f"{host}:{port}", given.step_seconds, given.low, 4 * given.high)
            _SAY(f"the client alone: VALID to {client:,.0f}/s")
        found = report.Found(work.does, work.variant, client, searched, given.bound_ms, cores)
        for name in given.only:
            _SAY(name)
            with contestants.contestant_named(name).start(work, served) as running:
                address = f"{running.target.host}:{running.target.port}"
                entry = report.Entry(name)
                entry.accuracy = _told(run(setting, address, mode="AccuracyOnly", qps=500.0, seconds=1))
                entry.searched = highest(setting, address, given.step_seconds, given.low, given.high)[1]
                best = max([ran.qps for ran in entry.searched if ran.valid], default=0.0)
                while best and not (entry.server and entry.server.valid):
                    # A longer run may be INVALID where a short one was VALID: it is then tried lower.
                    entry.server = _told(run(setting, address, qps=best, seconds=given.seconds))
                    best = float(round(best * 0.95))
                entry.others = [
                    _told(run(setting, address, scenario=scenario, qps=qps, seconds=given.step_seconds))
                    for scenario, qps in (("SingleStream", 1.0), ("Offline", given.high))
                ]
                found.entries.append(entry)
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loadgen", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path(f"docs/results/{time.strftime('%F')}-mlperf-loadgen.md"))
    parser.add_argument("--only", type=lambda text: text.split(","), default=["ours", "ours-direct"])
    parser.add_argument("--bound-ms", type=float, default=15.0, help="what p99 must be within")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the run that counts")
    parser.add_argument("--step-seconds", type=float, default=10.0, help="of each step of the search")
    parser.add_argument("--low", type=float, default=200.0, help="of the search, a second")
    parser.add_argument("--high", type=float, default=10_000.0)
    parser.add_argument("--store", type=Path, help="[default: $SLUICE_STORE or the user's]")
    parser.add_argument("--runs-dir", type=Path, default=default_runs_dir())
    parser.add_argument("--venvs", type=Path, help="[default: in the user's cache]")
    given = parser.parse_args(arguments)
    given.venvs = given.venvs or user_cache("serving-peers")
    try:
        versions = environments.make(given.venvs, PEER)
        found = measure(given)
    except SluiceError as error:
        _SAY(f"error: {error}")
        return 1
    words = list(arguments or sys.argv[1:])
    kept = [word for n, word in enumerate(words) if not _FOLDERS & set(words[max(0, n - 1) : n + 1])]
    command = f"python -m benchmarks.loadgen {shlex.join(kept)}"
    files.write(given.output, report.markdown(found, command.strip(), versions))
    _SAY(f"written: {given.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
