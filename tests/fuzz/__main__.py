"""Hostile requests by the thousand against a deployment, with right ones between; see campaign.py.

    python -m tests.fuzz --output docs/results/2026-01-31-fuzz.md       # or: make fuzz
    python -m tests.fuzz --seed 7 --count 2000

Over HTTP through HAProxy and on the replica's own port, over gRPC, and Schemathesis on the OpenAPI description. Ends
with 1 if a right request was not answered rightly, a status was 5xx but 503, something hung or leaked, or a refusal of
ours did not say why. The same seed sends the same.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import files
from cluster.artifacts import ArtifactStore
from tests.conformance import openapi
from tests.conformance.deployed import Deployed, Site
from tests.conformance.models import subjects
from tests.conformance.suite import MODEL_NAME
from tests.fuzz import report
from tests.fuzz.campaign import Campaign
from tests.fuzz.grpcs import Grpc, GrpcCampaign
from tests.fuzz.valid import Valid

_SERVED = ("pictures", "numbers", "text")
_WARM = 0.15
"""The share of the cases that come first, with numbers of their own: pools, caches and heaps find their size."""
_SETTLE_S = 3.0


def fuzz(count: int, grpc_count: int, examples: int, seed: int) -> report.Found:
    """All of it."""
    found = report.Found(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = ArtifactStore(folder / "store")
        served = [subject for subject in subjects(store) if subject.name in _SERVED]
        before = _files(store.root)
        with Site("fuzz", folder / "state") as site:
            for subject in served:
                with site.serve(store, subject) as where:
                    visit = report.Visit(subject.name)
                    found.visits.append(visit)
                    valid = Valid(subject, f"/v2/models/{MODEL_NAME}/infer")
                    asyncio.run(_visit(visit, valid, where, count // len(served), grpc_count // len(served), seed))
                    print(f"{subject.name}: {visit.tally.count()} sent, {len(visit.tally.faults)} faults")
            with site.serve(store, served[0], repository=False) as where:
                found.described = openapi.run(where.http, folder, examples=examples, seed=seed)
        found.new_files = sorted(_files(store.root) - before)
    return found


async def _visit(visit: report.Visit, valid: Valid, where: Deployed, count: int, grpc_count: int, seed: int) -> None:
    places = [("HAProxy", where.http), ("direct", where.direct)]
    warm = int(_WARM * count)
    campaign = Campaign(valid, places, seed=seed)
    grpcs = Grpc(valid.subject, MODEL_NAME)
    over_grpc = GrpcCampaign(grpcs, [("gRPC", where.grpc)], campaign.tally, seed=seed)
    await campaign.run(warm)
    await over_grpc.run(int(_WARM * grpc_count))
    await asyncio.sleep(_SETTLE_S)
    visit.sample(where, "before")
    for part in range(5):
        share = (count - warm) // 5
        await campaign.run(share, start=warm + part * share)
        grpc_share = int((1 - _WARM) * grpc_count) // 5
        await over_grpc.run(grpc_share, start=int(_WARM * grpc_count) + part * grpc_share)
        await asyncio.sleep(_SETTLE_S)
        visit.sample(where, f"after {campaign.tally.count():,}")
    visit.tally = campaign.tally


def _files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*")}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("docs/results") / f"{time.strftime('%F')}-fuzz.md")
    parser.add_argument("--count", type=int, default=12_000, help="hostile requests over HTTP")
    parser.add_argument("--grpc-count", type=int, default=3_000, help="hostile calls over gRPC")
    parser.add_argument("--examples", type=int, default=100, help="Schemathesis: requests made up for each operation")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args(arguments)
    began = time.monotonic()
    found = fuzz(given.count, given.grpc_count, given.examples, given.seed)
    faults = found.faults()
    files.write(given.output, report.markdown(found, f"make fuzz (seed {given.seed})", time.monotonic() - began))
    for fault in faults[:40]:
        print(f"  {fault}")
    print(f"{len(faults)} faults; written: {given.output}")
    return 1 if faults else 0


if __name__ == "__main__":
    raise SystemExit(main())
