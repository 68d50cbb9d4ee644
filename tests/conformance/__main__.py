"""The conformance table: clients that we did not write x rows of the specification -> right, wrong, no such call.

    python -m tests.conformance --output docs/results/2026-01-31-conformance.md      # or: make conformance

Serves four small models, one after the other, behind HAProxy with gRPC beside it, and has each client ask every row
that it has a call for; Schemathesis asks what the OpenAPI description promises. Ends with 1 if a row failed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from benchmarks import files
from cluster.artifacts import ArtifactStore
from cluster.hardware import fingerprint, version_of
from tests.conformance import openapi, suite
from tests.conformance.deployed import Site
from tests.conformance.models import Subject, subjects
from tests.conformance.rows import ROWS

_SCHEMATHESIS = "Schemathesis"
_HOW = """Each cell is a call of that client, unmodified and in an environment of its own, against a deployment of
`sluice serve`'s making: HAProxy in front, one replica on ONNX Runtime. Values are compared element by element with what
numpy computes. ✓ as the specification says; ✗ not so; empty: this client has no such call (or sends no such tensor:
FP16 has no text in JSON and no typed contents in gRPC). The rows are those of the Open Inference Protocol's own
tables, then those of Triton's extensions and of what Sluice takes besides."""


def table(results: suite.Results) -> list[str]:
    """Markdown, section by section."""
    titles = [client.title for client in suite.CLIENTS]
    lines: list[str] = []
    for section, rows in ROWS.items():
        columns = [*titles, _SCHEMATHESIS] if section.startswith(_SCHEMATHESIS) else titles
        columns = [each for each in columns if any((each, row) in results.cells for row in rows)]
        lines += [f"## {section}", "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
        for row, what in rows.items():
            marks = [{"": "✓", None: " "}.get(results.cells.get((each, row)), "✗") for each in columns]
            lines.append(f"| {what} | {' | '.join(marks)} |")
        lines.append("")
    return lines


def markdown(results: suite.Results, command: str, took_s: float, summary: Sequence[str]) -> str:
    failures = results.failures()
    asked = len(results.cells)
    lines = [
        "# Conformance to the Open Inference Protocol", "", f"`{command}`, {time.strftime('%F')}, {took_s:.0f} s: "
        f"{asked - len(failures)} of {asked} right.", "", _HOW, "", *table(results),
    ]  # fmt: skip
    if failures:
        lines += ["## What failed", "", *(f"- {failure}" for failure in failures), ""]
    if summary:
        lines += ["## Schemathesis in its own words", "", "```", *summary, "```", ""]
    versions = dict(sorted(results.versions.items())) | {name: version_of(name) for name in ("ray", "onnxruntime")}
    told = ", ".join(f"{name} {number}" for name, number in versions.items())
    return "\n".join([*lines, "## Versions", "", told, "", f"Machine: {json.dumps(fingerprint())}", ""])


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.conformance", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("docs/results") / f"{time.strftime('%F')}-conformance.md")
    parser.add_argument("--examples", type=int, default=50, help="Schemathesis: requests made up for each operation")
    given = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        store = ArtifactStore(folder / "store")
        served = subjects(store)
        with Site("conformance", folder / "state") as site:
            results = suite.run(store, served, suite.CLIENTS, site.serve, folder)
            summary = described(site, store, served[0], given.examples, folder, results)
    page = markdown(results, "make conformance", time.monotonic() - began, summary)
    files.write(given.output, page)
    failures = results.failures()
    print(f"{len(results.cells) - len(failures)} of {len(results.cells)} right; written: {given.output}")
    return 1 if failures else 0


def described(
    site: Site, store: ArtifactStore, subject: Subject, examples: int, folder: Path, results: suite.Results
) -> list[str]:  # fmt: skip
    """Schemathesis' row, and its summary."""
    with site.serve(store, subject, repository=False) as where:
        ran = openapi.run(where.http, folder, examples=examples, seed=1)
    results.cells[_SCHEMATHESIS, "schemathesis"] = ran.fault
    results.versions["schemathesis"] = ran.version
    print(f"{_SCHEMATHESIS}: {ran.fault or 'no fault'}")
    return ran.summary


if __name__ == "__main__":
    raise SystemExit(main())
