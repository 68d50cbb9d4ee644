"""tritonclient, unmodified and in an environment of its own, is the judge of the protocol."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest

from cluster.local import LocalCluster
from tests.conformance.environments import client_python
from tests.conftest import Trained

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]

HERE = Path(__file__).parent


def test_tritonclient_http_json_and_binary(served: LocalCluster, trained: Trained, tmp_path: Path) -> None:
    python = client_python("tritonclient")
    pictures = trained.pictures[:3]
    known = tmp_path / "known.npz"
    np.savez(known, image=pictures, logits=trained.expected(trained.int8, pictures))
    address = f"127.0.0.1:{served.http_port}"
    done = subprocess.run(
        [str(python), str(HERE / "tritonclient_script.py"), address, "classifier", str(known)],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["live"]
    assert report["ready"]
    assert report["model_ready"]
    assert report["metadata"]["name"] == "classifier"
    assert report["metadata"]["versions"] == [trained.int8.id]
    combinations = {key: right for key, right in report.items() if key.startswith("in=")}
    assert len(combinations) == 4
    assert all(combinations.values()), combinations
    assert "no-such-model" in report["unknown_model"]
