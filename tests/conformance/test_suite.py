"""The quick part of `make conformance`: curl and tritonclient against a replica's code in a process of its own.

KServe's client, plain grpcio, HAProxy and Schemathesis are the whole command's.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from cluster.artifacts import ArtifactStore
from tests.conformance import rows, suite
from tests.conformance.models import subjects

pytestmark = pytest.mark.timeout(300)
_QUICK = ("curl", "tritonclient_http", "tritonclient_grpc")


def test_every_row_that_a_quick_client_has_is_right(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path / "store")
    clients = [client for client in suite.CLIENTS if client.script in _QUICK]
    results = suite.run(store, subjects(store), clients, suite.alone, tmp_path)
    assert results.failures() == []
    for client in clients:
        asked = {row for title, row in results.cells if title == client.title}
        assert {f"{name}-raw" for name in rows.DATATYPES} <= asked, client.title
        assert asked >= rows.ROWS["API"].keys(), client.title


def test_a_wrong_answer_is_a_failed_row(tmp_path: Path) -> None:
    """A suite that passes everything proves nothing: the outputs it is told to expect are others."""
    store = ArtifactStore(tmp_path / "store")
    subject = subjects(store)[0]
    subject.outputs["logits"][1, 3] += 1
    [curl] = [client for client in suite.CLIENTS if client.script == "curl"]
    results = suite.run(store, [subject], [curl], suite.alone, tmp_path)
    wrong = {row for (_, row), said in results.cells.items() if said}
    assert {"infer", "raw-out", "octets"} <= wrong
    assert not wrong & {"live", "server", "model", "unknown-model", "not-json"}


def test_scripts_know_no_row_that_the_table_has_not() -> None:
    for script in (suite.HERE / "clients").glob("*.py"):
        said = set(re.findall(r'checks\.row\("([^"]+)"\)', script.read_text()))
        assert said <= rows.NAMES, script.name
