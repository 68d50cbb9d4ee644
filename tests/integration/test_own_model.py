"""A user's own model, as the README says: an ONNX file tuned and deployed, and the example project as a Ray job."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import httpx
import numpy as np
import onnx
import onnxruntime as ort
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from ray.job_submission import JobStatus, JobSubmissionClient

from cluster.local import LocalCluster
from tests.conftest import marked

pytestmark = [pytest.mark.ray, pytest.mark.timeout(500)]
QUICKLY = ("--protocol", "smoke", "--trials", "2", "--finalists", "1")
LAX = "latency_p99_ms: 500\naccuracy: {max_drop: 0.05}\n"


def environment(folder: Path) -> dict[str, str]:
    """Stores of the test's own; `python` and `sluice` are this environment's."""
    return {
        "SLUICE_STATE": str(folder / "clusters"), "SLUICE_STORE": str(folder / "store"), "PYTHONUNBUFFERED": "1",
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }  # fmt: skip


def sluice(folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "cluster.cli", *arguments], capture_output=True, text=True, check=False, cwd=folder,
        env=os.environ | environment(folder),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def petals(folder: Path) -> NDArray[np.float32]:
    """model.onnx, a classifier of two clouds of points by their distance, and data.npz; returns the test samples."""
    rng = np.random.default_rng(0)
    centres = np.array([[-2.0, 0.0, 1.0, 0.0], [2.0, 1.0, 0.0, -1.0], [0.0, -3.0, -2.0, 2.0]], np.float32)
    labels = rng.integers(0, 3, 1500)
    samples = (centres[labels] + rng.normal(0, 0.7, (1500, 4))).astype(np.float32)
    np.savez(folder / "data.npz", x_train=samples[:500], y_train=labels[:500], x_test=samples[500:],
             y_test=labels[500:], labels=np.array(["setosa", "versicolor", "virginica"]))  # fmt: skip
    weights, bias = 2.0 * centres.T, -np.sum(centres**2, axis=1)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["petals", "w", "b"], ["scores"])], "own",
        [helper.make_tensor_value_info("petals", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(weights.astype(np.float32), "w"), numpy_helper.from_array(bias, "b")],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "model.onnx")
    return samples[500:]


def test_an_onnx_file_is_tuned_and_deployed(tmp_path: Path) -> None:
    samples = petals(tmp_path)
    (tmp_path / "slo.yaml").write_text(LAX)
    sluice(
        tmp_path, "tune", "--model", "model.onnx", "--data", "data.npz", "--slo", "slo.yaml", "--study", "own", *QUICKLY
    )
    out = tmp_path / "runs" / "own"
    plan = json.loads((out / "plan.json").read_text())
    report = json.loads((out / "report.json").read_text())
    assert plan["variant_id"] in {variant["id"] for variant in report["variants"]}
    with LocalCluster("own", http_port=8000, state_dir=tmp_path / "clusters") as cluster:  # the config's own port
        sluice(tmp_path, "deploy", "runs/own/serve-config.yaml", "--address", cluster.dashboard_address)
        tensor = {"name": "petals", "datatype": "FP32", "shape": [5, 4], "data": samples[:5].ravel().tolist()}
        url = "http://127.0.0.1:8000/v2/models/classifier/infer"
        answer = httpx.post(url, json={"inputs": [tensor]}, timeout=10.0).json()
    session = ort.InferenceSession(str(tmp_path / "model.onnx"), providers=["CPUExecutionProvider"])
    [expected] = session.run(["scores"], {"petals": samples[:5]})
    got = np.asarray(answer["outputs"][0]["data"]).reshape(5, 3)
    assert answer["model_version"] == plan["variant_id"]
    assert np.array_equal(got.argmax(axis=1), expected.argmax(axis=1))
    assert not marked(state_dir=tmp_path / "clusters")


def test_the_example_project_is_tuned_as_a_ray_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sluice(tmp_path, "init", "project")
    (tmp_path / "project" / "slo.yaml").write_text(LAX)
    monkeypatch.setenv("PATH", environment(tmp_path)["PATH"])
    with LocalCluster("jobs", ha_proxy=False, state_dir=tmp_path / "outer") as cluster:
        client = JobSubmissionClient(cluster.dashboard_address)
        job = client.submit_job(
            entrypoint="python -m tune_spaces tune --model my_model:model --data my_model:dataset --slo slo.yaml "
            f"--study job --output {tmp_path / 'runs'} {' '.join(QUICKLY)}",
            runtime_env={"working_dir": str(tmp_path / "project"), "env_vars": environment(tmp_path)},
        )
        end = time.monotonic() + 400
        while not (status := client.get_job_status(job)).is_terminal():
            assert time.monotonic() < end, client.get_job_logs(job)
            time.sleep(0.5)
        assert status == JobStatus.SUCCEEDED, client.get_job_logs(job)
    plan = json.loads((tmp_path / "runs/job/plan.json").read_text())
    assert plan["measured"]["trials"] >= 1
    assert (tmp_path / "runs/job/report.html").exists()
    assert not marked(state_dir=tmp_path / "clusters")
