"""Subjects served one after the other -> every client's rows. Used by `make conformance` and, in part, by `make test`.

A server is a context manager that yields where it answers: `alone` (a replica's code in a process of its own) or
`deployed` (behind HAProxy, as `sluice serve` does it). Clients that are not ours run in their own environments.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.artifacts import ArtifactStore
from tests.conformance.environments import client_python
from tests.conformance.models import Subject, save
from tests.conformance.rows import NAMES

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PROTO = ROOT / "serve_apps/oip/proto/open_inference_grpc.proto"
MODEL_NAME = "subject"
_CLIENT_S = 180


@dataclass(frozen=True)
class Client:
    """One column of the table."""

    title: str
    script: str
    environment: str | None = None
    """None: ours, for what is a command of the system."""
    speaks: str = "http"


CLIENTS = (
    Client("curl", "curl"),
    Client("tritonclient HTTP", "tritonclient_http", "tritonclient"),
    Client("KServe REST", "kserve_rest", "kserve"),
    Client("tritonclient gRPC", "tritonclient_grpc", "tritonclient", "grpc"),
    Client("KServe gRPC", "kserve_grpc", "kserve", "grpc"),
    Client("grpcio", "plain_grpc", "grpcio", "grpc"),
)


@dataclass(frozen=True)
class Where:
    """A server that answers."""

    http: str
    grpc: str
    """Empty where there is none."""
    repository: bool = False
    """Models may be loaded and unloaded; a server alone has nobody to keep what is changed."""


Server = Callable[[ArtifactStore, Subject], AbstractContextManager[Where]]


@dataclass
class Results:
    """What came of it."""

    cells: dict[tuple[str, str], str] = field(default_factory=dict)
    """(client, row) -> "" for right, else what went wrong."""
    versions: dict[str, str] = field(default_factory=dict)

    def failures(self) -> list[str]:
        return [f"{client}, {row}: {said}" for (client, row), said in self.cells.items() if said]


@contextlib.contextmanager
def alone(store: ArtifactStore, subject: Subject, *watched: str) -> Iterator[Where]:
    """See alone.py; `watched` are its last two words."""
    command = [
        sys.executable,
        "-m",
        "tests.conformance.alone",
        str(store.root),
        subject.variant.id,
        MODEL_NAME,
        *watched,
    ]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment, cwd=ROOT
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        assert line, f"{subject.name}: the server ended before it answered"
        yield Where(**json.loads(line))
    finally:
        process.stdin.close()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise


def run(
    store: ArtifactStore, subjects: Sequence[Subject], clients: Sequence[Client], server: Server, folder: Path,
    say: Callable[[str], None] = print,
) -> Results:  # fmt: skip
    """Every client's rows against every subject."""
    results = Results()
    for subject in subjects:
        known, files = save(subject, folder)
        with server(store, subject) as where:
            for client in clients:
                if client.speaks == "grpc" and not where.grpc:
                    continue
                said = ask(client, subject, where, known, files | {"proto": str(PROTO)}, folder)
                for row, wrong in said["rows"].items():
                    results.cells[client.title, row] = wrong
                results.versions |= said["versions"]
                bad = {row: wrong for row, wrong in said["rows"].items() if wrong}
                say(f"{subject.name}, {client.title}: {len(said['rows']) - len(bad)} rows right, {len(bad)} wrong")
                for row, wrong in bad.items():
                    say(f"    {row}: {wrong}")
    return results


def ask(
    client: Client, subject: Subject, where: Where, known: Path, files: Mapping[str, str], folder: Path
) -> dict[str, dict[str, str]]:  # fmt: skip
    """One client's report. A client that ends without one is a failure of all that it would have said."""
    job = folder / f"{client.script}-{subject.name}.json"
    job.write_text(json.dumps({
        "http": where.http, "grpc": where.grpc, "model": MODEL_NAME, "version": subject.variant.id,
        "serves": subject.name, "repository": where.repository, "known": str(known), "files": dict(files),
    }))  # fmt: skip
    python = sys.executable if client.environment is None else str(client_python(client.environment))
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(HERE / "clients" / f"{client.script}.py"), str(job)], capture_output=True, text=True,
        check=False, timeout=_CLIENT_S, env=environment | {"PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    if done.returncode != 0:
        words = done.stderr.strip().splitlines()[-1:] or ["no message"]
        return {"rows": {"infer" if subject.name == "pictures" else f"{subject.name}": words[0]}, "versions": {}}
    report: dict[str, dict[str, str]] = json.loads(done.stdout.strip().splitlines()[-1])
    unknown = report["rows"].keys() - NAMES
    assert not unknown, f"{client.script}.py has rows that the table has not: {sorted(unknown)}"
    return report
