"""Ours, as a peer is run: python -m benchmarks.peers.ours JOB (JSON).

Writes made.json as peers do (given.py), each entry with its variant's id in the store. The trained model's export and
its measuring are in its time, and so is the judging of each variant on the whole test part in every runtime, which the
others are spared.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks import files
from cluster.artifacts import ArtifactStore


def main(job: dict[str, Any]) -> None:
    """See the module's first lines."""
    from train_jobs import runs
    from train_jobs.compression.compress import build_variants
    from train_jobs.compression.spec import CompressSpec, load_spec
    from train_jobs.compression.trained import of_finished

    store, runs_dir = ArtifactStore(job["store"]), Path(job["runs_dir"])
    run = runs.load(job["name"], runs_dir)
    dataset = run.config.task.load(run.config.dataset)
    source = of_finished(run, dataset, runs_dir=runs_dir)
    wanted = load_spec(Path(job["spec"])).variants
    spec = CompressSpec(variants={name: wanted[name] for name in job["variants"]})
    made: list[dict[str, Any]] = []
    last = time.time()

    def told(line: str) -> None:
        nonlocal last
        print(line, flush=True)
        name, _, rest = line.removeprefix(f"{source.name}/").partition(": ")
        if name not in wanted or "does not run" in name:
            return
        row: dict[str, Any] = {"name": name, "does": ", ".join(step.kind for step in wanted[name])}
        if rest.startswith("left out"):
            row["error"] = rest
        else:
            row["variant"] = store.get(f"{source.name}/{name}").id
        now = time.time()
        made.append(row | {"seconds": now - last, "at_s": now - job["started"]})
        last = now
        files.write(Path(job["out"]) / "made.json", json.dumps(made, indent=1))

    build_variants(store, source, dataset, spec, notify=told)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
