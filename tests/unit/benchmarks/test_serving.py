"""The benchmark of serving, without the servers that it is about: what it reads, keeps, sends and tells.

wrk's outputs were recorded from wrk 4.1.0; where wrk is installed it also runs here, against the null server.
"""

from __future__ import annotations

import io
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from benchmarks.peers import environments
from benchmarks.serving import __main__ as command
from benchmarks.serving import contestants, phases, report, works, wrk
from benchmarks.serving.cells import Cells
from benchmarks.serving.processes import started
from benchmarks.serving_peers.served import Served, picture_of
from cluster.errors import ClusterError, ConfigError, SluiceError
from cluster.load import RateTrace, Target, build_request, null_server
from train_jobs.export import to_onnx

GOOD = """Running 1s test @ http://127.0.0.1:41703/
  1 threads and 16 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     2.15ms    3.17ms  16.90ms   83.99%
    Req/Sec    25.08k     3.10k   29.45k    70.00%
  Latency Distribution
     50%  135.00us
     75%    3.37ms
     90%    7.05ms
     99%   12.79ms
  24979 requests in 1.00s, 2.31MB read
Requests/sec:  24959.81
Transfer/sec:      2.31MB
"""
BAD = """Running 1s test @ http://127.0.0.1:18999/
  1 threads and 4 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency    44.52ms    7.97ms  48.09ms   95.45%
    Req/Sec    88.10     17.08   121.00     80.00%
  Latency Distribution
     50%   47.68ms
     75%   47.97ms
     90%   48.00ms
     99%    1.09s
  88 requests in 1.00s, 10.92KB read
  Socket errors: connect 0, read 3, write 1, timeout 2
  Non-2xx or 3xx responses: 46
Requests/sec:     87.84
Transfer/sec:     10.91KB
"""
FACTS: dict[str, Any] = {"command": "python -m benchmarks.serving", "date": "2026-01-31", "machine": {}, "versions": {}}
SETTINGS: dict[str, Any] = {
    "server_cores": [0], "client_cores": [1], "closed_s": 3, "slo_s": 1.0, "deadline_s": 1.0
}  # fmt: skip


def test_wrk_s_output_is_read() -> None:
    found = wrk.parse(GOOD)
    assert (found.rate_rps, found.p50_s, found.p99_s) == (24979.0, 135e-6, pytest.approx(12.79e-3))
    assert (found.answers, found.failed) == (24979, 0)


def test_refusals_are_no_answers_and_what_never_came_has_failed() -> None:
    found = wrk.parse(BAD)
    assert (found.rate_rps, found.p99_s) == (42.0, 1.09)
    assert (found.answers, found.failed) == (88, 46 + 6)


def test_what_is_not_wrk_s_output_is_an_error_that_shows_it() -> None:
    with pytest.raises(SluiceError, match="unable to connect"):
        wrk.parse("unable to connect to 127.0.0.1:1 Connection refused")


@pytest.mark.skipif(shutil.which("wrk") is None, reason="wrk is not installed")
def test_wrk_sends_the_requests_as_they_are() -> None:
    with null_server() as (host, port):
        # Bodies with line breaks and zeros: the file that wrk reads must not be cut there.
        bodies = [b"\n" * 7, b"\0" * 784, b"17\n\r\n\r\n"]
        target = Target(host, port, [build_request("POST", "/", host, {}, body) for body in bodies])
        found = wrk.run(target, connections=4, seconds=1, cores=[])
    assert found.answers > 100
    assert found.failed == 0
    assert 0 < found.client_cpu_share < 1.5


def test_without_wrk_and_without_the_right_to_install_it_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigError, match="apt-get install wrk"):
        wrk.program()


def closed(rate: float, *, others: float = 0.0, failed: int = 0) -> dict[str, Any]:
    return {
        "rate_rps": rate, "p50_s": 0.001, "p99_s": 0.002, "failed": failed, "is_a_floor": False, "mean_batch": None,
        "core_s_per_million": 100.0, "others_share": others,
    }  # fmt: skip


def kept(attainment: float) -> dict[str, Any]:
    return {
        "attainment": attainment, "p50_s": 0.01, "p99_s": None, "mean_batch": 3.0, "outcomes": {"200": 9, "503": 1},
        "client_saturated": False, "others_share": 0.0,
    }  # fmt: skip


@pytest.fixture
def cells(tmp_path: Path) -> Cells:
    made = Cells(tmp_path, dict(FACTS), SETTINGS)
    made.note("works", "cnn", {"does": "a graph", "variant": "0" * 16, "exact": True})
    for number, (ours, mosec) in enumerate([(200.0, 100.0), (400.0, 100.0), (300.0, 300.0)]):
        made.put(f"cnn/kernel/onnxruntime/{number}", {"rate_rps": 1000.0, "best_batch": 32, "latency_s": 4e-5})
        made.put(f"cnn/ours/closed/64/{number}", closed(ours))
        made.put(f"cnn/mosec/closed/64/{number}", closed(mosec, others=0.5 if number == 1 else 0.0))
    return made


def test_what_is_measured_is_kept_and_found_again(cells: Cells, tmp_path: Path) -> None:
    again = Cells(tmp_path, {"command": "another"}, SETTINGS)
    assert again.cells == cells.cells
    assert again.document["command"] == FACTS["command"]
    assert "cnn/ours/closed/64/2" in again
    assert "cnn/ours/closed/64/3" not in again


def test_figures_of_other_settings_do_not_mix(cells: Cells, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"closed_s=3, not 10; give another --output"):
        Cells(tmp_path, FACTS, SETTINGS | {"closed_s": 10})


def test_what_others_disturbed_can_be_measured_again(cells: Cells) -> None:
    cells.put("cnn/ours/slo/50ms/1", {"rate_rps": None, "others_share": 0.0})
    cells.put("client/0", {"rate_rps": 0.0})
    cells.put("client/1", {"rate_rps": 9600.0})
    assert cells.forget_noisy() == 3
    assert not {"cnn/mosec/closed/64/1", "cnn/ours/slo/50ms/1", "client/0"} & set(cells.cells)
    assert cells.forget_noisy() == 0


def test_a_value_that_all_are_measured_against_is_found_once(cells: Cells, tmp_path: Path) -> None:
    assert cells.fixed("rate", lambda: 7.0) == 7.0
    assert Cells(tmp_path, FACTS, SETTINGS).fixed("rate", lambda: 8.0) == 7.0


def test_the_best_number_of_connections_counts(cells: Cells) -> None:
    cells.put("cnn/mosec/closed/256/0", closed(250.0))
    assert cells.best("cnn/mosec/closed", "rate_rps") == 250.0
    assert phases.smaller_maximum(cells, "cnn", ["ours", "mosec"]) == 250.0
    with pytest.raises(ConfigError, match="bentoml has none"):
        phases.smaller_maximum(cells, "cnn", ["ours", "bentoml"])


def test_the_page_compares_round_by_round(cells: Cells) -> None:
    text = report.markdown(cells)
    # Ratios 2, 4 and 1: their median, where that of the medians would be 3.
    assert "| 64 | ours | 300 [200, 400] | 1.00 [1.00, 1.00] | 2.00 [2.00, 2.00] | 2.00 | 0.30 |" in text
    assert "| 64 | mosec | 100 [100, 300] * |" in text


def test_the_page_tells_fixed_rates(cells: Cells) -> None:
    for number, rate in enumerate((150.0, 250.0)):
        cells.put(f"cnn/ours/paced/25ms/{number}", {"rate_rps": rate})
        cells.put(f"cnn/mosec/paced/25ms/{number}", {"rate_rps": 100.0})
    assert "| 25ms | ours | 200 [150, 250] | 2.00 |" in report.markdown(cells)


def test_the_page_tells_deadlines_pair_by_pair_and_what_failed(cells: Cells) -> None:
    cells.fixed("cnn/bentoml/smaller_maximum_rps", lambda: 700.0)
    cells.fixed("cnn/deadline_s", lambda: 0.05)
    cells.put("cnn/ours/deadline/bentoml/gamma/0.8/1", kept(0.99))
    cells.put("cnn/bentoml/deadline/bentoml/gamma/0.8/1", kept(0.5))
    cells.put("cnn/ours/slo/50ms/1", {"rate_rps": 500.0, "is_a_floor": True, "others_share": 0.0})
    cells.put("cnn/ours/slo/50ms/2", {"rate_rps": None, "others_share": 0.0})
    cells.note("failures", "round 1, cnn, litserve", "it ended by itself")
    text = report.markdown(cells)
    assert "Ours and bentoml, at shares of 700 req/s" in text
    assert "| gamma | 0.8 | ours | 99.00 | 10.0 |  | 3.0 | 200: 9, 503: 1 |" in text
    assert "| gamma | 0.8 | bentoml | 50.00 |" in text
    assert "| 50ms | ours | can't tell |" in text
    assert "- round 1, cnn, litserve: it ended by itself" in text


TRACE = RateTrace(np.array([0.0, 1.0, 30.0, 2.0, 0.0, 5.0, 9.0, 1.0] * 40), 1.0)


@pytest.mark.parametrize("kind", phases.ARRIVALS)
def test_all_arrivals_come_at_the_same_rate(kind: str) -> None:
    counts = [len(phases.arrivals(kind, 400.0, 20.0, seed, TRACE)) for seed in range(8)]
    assert np.mean(counts) == pytest.approx(8000, rel=0.08)


def test_bursty_arrivals_are_bursty() -> None:
    def spread(times: NDArray[np.float64]) -> float:
        counts = np.bincount(times.astype(int), minlength=20)[:20]
        return float(counts.var() / counts.mean())

    poisson, gamma, trace = (spread(phases.arrivals(kind, 400.0, 20.0, 1, TRACE)) for kind in phases.ARRIVALS)
    assert poisson < 3
    assert gamma > poisson
    assert trace > 50


def test_a_stretch_of_a_trace_is_of_its_busier_half() -> None:
    quiet = RateTrace(np.concatenate([np.zeros(100), np.full(100, 5.0)]), 1.0)
    assert all(phases.stretch(quiet, 10.0, seed).mean() == 5.0 for seed in range(10))
    assert len(phases.stretch(quiet, 1000.0, 0)) == 200


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    class Linear(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = torch.nn.Linear(784, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.last(x.to(torch.float32).flatten(1) / 255)
            return logits

    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    path.write_bytes(to_onnx(Linear()))
    return path


def test_peers_answer_as_our_runtime_does(graph: Path) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    shape = tuple(session.get_inputs()[0].shape[1:])
    served = Served({"model": str(graph), "shape": shape, "jpeg": False})
    pictures = np.random.default_rng(0).integers(0, 256, (3, *shape), dtype=np.uint8)
    found = served.logits([served.picture(picture.tobytes()) for picture in pictures])
    (expected,) = session.run(None, {session.get_inputs()[0].name: pictures})
    np.testing.assert_array_equal(found, expected)


def test_jpegs_of_any_size_and_colour_become_pictures() -> None:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 40), dtype=np.uint8))
    assert picture_of(grey, (3, 224, 224)).shape == (3, 224, 224)
    colour = Image.fromarray(np.full((224, 224, 3), (9, 8, 7), np.uint8))
    assert picture_of(colour, (3, 224, 224))[:, 5, 6].tolist() == [9, 8, 7]


def test_without_photographs_there_are_pictures_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLUICE_DATA_DIR", raising=False)
    made = works.jpeg_pictures(3)
    assert made == works.jpeg_pictures(3)
    assert len(set(made)) == 3
    assert Image.open(io.BytesIO(made[0])).size == (224, 224)


PIDS = """import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
open(sys.argv[1], "w").write(str(child.pid))
time.sleep(600)
"""


def test_a_server_ends_with_all_that_it_started(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    with started([sys.executable, "-c", PIDS, str(path)], {}, []) as server:
        end = time.monotonic() + 30
        while not (path.exists() and path.read_text()) and time.monotonic() < end:
            server.check()
            time.sleep(0.05)
        child = psutil.Process(int(path.read_text()))
        assert server.cpu_seconds() > 0
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_server_that_dies_says_why() -> None:
    def watch() -> None:
        with started([sys.executable, "-c", "import sys; sys.exit('no such model')"], {}, []) as server:
            for _ in range(600):
                server.check()
                time.sleep(0.05)

    with pytest.raises(ClusterError, match="no such model"):
        watch()


def test_names_of_servers() -> None:
    assert contestants.contestant_named("mosec:2").workers == 2
    assert {contestants.contestant_named(name).workers for name in contestants.DEFAULT} == {1}
    for wrong in ("triton", "mosec:0", "mosec:x"):
        with pytest.raises(ConfigError, match="is no server"):
            contestants.contestant_named(wrong)


@pytest.mark.parametrize("words", [["--works", "bert"], ["--phases", "open"], ["--only", "triton"]])
def test_what_is_unknown_is_refused_before_anything_starts(words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        command.arguments([*words, "--venvs", str(tmp_path)])


def test_the_command_that_is_told_names_no_folder_of_one_machine() -> None:
    words = ["--store", "/my/store", "--rounds", "1", "--venvs=/my/venvs", "--runs-dir", "/my/runs", "--only", "ours"]
    assert command._said(words) == ["--rounds", "1", "--only", "ours"]


def test_every_peer_has_an_environment_of_pinned_packages() -> None:
    for peer in contestants.PEERS:
        lines = environments.requirements(peer)
        assert all("==" in line for line in lines)
        # The same runtime, or it would be the runtimes that are compared.
        assert {line.partition("==")[0] for line in lines} >= {"onnxruntime", "numpy", "pillow"}
        for line in lines:
            name = line.partition("==")[0]
            ours = [each for each in Path("constraints.txt").read_text().splitlines() if each.startswith(f"{name}==")]
            assert ours in ([line], []), line


def test_peers_scripts_need_nothing_of_this_project() -> None:
    for script in (Path("benchmarks") / "serving_peers").glob("*_se*.py"):
        if script.name == "ray_serve.py":
            continue
        text = script.read_text()
        for package in ("cluster", "benchmarks", "serve_apps", "train_jobs"):
            assert f"import {package}" not in text
            assert f"from {package}" not in text


def test_a_histogram_is_read_over_all_its_labels(tmp_path: Path) -> None:
    page = (
        'mosec_service_batch_size_sum{stage="1"} 100\nmosec_service_batch_size_count{stage="1"} 4\n'
        "mosec_service_batch_size_sum 2.0e1\nmosec_service_batch_size_count 1\n"
    )
    (tmp_path / "metrics").write_text(page)
    serve = [sys.executable, "-m", "http.server", "0", "--bind", "127.0.0.1", "--directory", str(tmp_path)]
    process = subprocess.Popen(["env", "PYTHONUNBUFFERED=1", *serve], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().split("port ")[1].split()[0])
        assert contestants._histogram(port, "mosec_service_batch_size") == (120, 5)
        assert contestants._histogram(port, "nothing") is None
        assert contestants._told(port) is None
    finally:
        process.kill()
        process.communicate()


def test_documents_are_json(cells: Cells, tmp_path: Path) -> None:
    assert json.loads((tmp_path / "serving.json").read_text())["cells"].keys() == cells.cells.keys()


def test_a_variant_that_is_nowhere_says_how_to_make_it(tmp_path: Path) -> None:
    from cluster.artifacts import ArtifactStore

    with pytest.raises(ConfigError, match="sluice train cnn_fashion_mnist"):
        works.cnn(ArtifactStore(tmp_path / "store"), tmp_path / "runs", lambda line: None)
