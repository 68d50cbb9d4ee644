"""Schemathesis on the server's own description: an outsider reads it, and holds the server to it."""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.conformance.environments import client_python

_MAX_S = 900
# Not positive_data_acceptance and negative_data_rejection: a description can't say that a length in a header must fit
# the body, or that a deployment allows no load, and headers that nobody knows are ignored, not refused.
_CHECKS = ",".join((
    "not_a_server_error", "status_code_conformance", "content_type_conformance", "response_headers_conformance",
    "response_schema_conformance", "missing_required_header", "unsupported_method", "allow_header_conformance",
))  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """What came of it."""

    fault: str
    """"" if it found none."""
    summary: list[str]
    """Its own words at the end."""
    version: str
    statuses: Counter[int] = field(default_factory=Counter)
    """Of every request that it sent."""


def run(address: str, folder: Path, *, examples: int, seed: int) -> Ran:
    """Against host:port."""
    python = client_python("schemathesis")
    schemathesis = python.parent / "schemathesis"
    har = folder / "schemathesis.har"
    version = subprocess.run([schemathesis, "--version"], capture_output=True, text=True, check=True).stdout.split()[-1]
    done = subprocess.run(
        [str(schemathesis), "run", f"http://{address}/v2/openapi.json", "--url", f"http://{address}", "--checks",
        _CHECKS,
         "--max-examples", str(examples), "--seed", str(seed), "--request-timeout", "15", "--no-color",
         "--continue-on-failure", "--generation-database", "none", "--report", "har", "--report-har-path", str(har),
         "--suppress-health-check", "all", "--phases", "examples,coverage,fuzzing"],
        capture_output=True, text=True, check=False, timeout=_MAX_S, cwd=folder,
    )  # fmt: skip
    (folder / "schemathesis.txt").write_text(done.stdout + done.stderr)
    lines = done.stdout.splitlines()
    at = next((n for n, line in enumerate(lines) if "SUMMARY" in line), max(0, len(lines) - 20))
    summary = [line.replace(address, "HOST") for line in lines[at:] if "HAR" not in line and ".har" not in line]
    failures = re.findall(r"^- (.+)$", done.stdout, re.MULTILINE)
    fault = (
        "" if done.returncode == 0 else f"it ended with {done.returncode}: {'; '.join(dict.fromkeys(failures))}"[:400]
    )
    return Ran(fault, summary, version, _statuses(har))


def _statuses(har: Path) -> Counter[int]:
    if not har.exists():
        return Counter()
    entries = json.loads(har.read_text())["log"]["entries"]
    return Counter(entry["response"]["status"] for entry in entries)
