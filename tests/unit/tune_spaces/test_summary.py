"""The before | after table says what the comparison holds: ratios the right way round, units with every figure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from rich.console import Console

from cluster.plans import Plan
from cluster.profiles import Profile
from cluster.runtimes import RuntimeConfig
from cluster.variants import Accuracy, ArtifactFile, TensorSpec, Variant
from tune_spaces.measure import QUICK, Comparison, Figures
from tune_spaces.report.summary import DemoReport, before_after_rows, markdown, print_tables, write_report


def variant(name: str, format_: str, size: int) -> Variant:
    suffix = "pt2" if format_ == "torch_export" else "onnx"
    return Variant(
        name=name,
        family="cnn",
        format=format_,  # type: ignore[arg-type]
        files=(
            ArtifactFile(path=f"model.{suffix}", sha256="0" * 64, size_bytes=size),
            ArtifactFile(path="weights.safetensors", sha256="1" * 64, size_bytes=size),
        ),
        inputs=(TensorSpec(name="image", datatype="UINT8", shape=(-1, 1, 28, 28)),),
        outputs=(TensorSpec(name="logits", datatype="FP32", shape=(-1, 10)),),
        accuracy=Accuracy(
            value=0.9, correct=900, total=1000, interval=(0.88, 0.92), dataset="digits", runtime="onnxruntime"
        ),
    )


@pytest.fixture
def report(tmp_path: Path) -> DemoReport:
    before, after = variant("m/fp32-torch", "torch_export", 4096), variant("m/int8", "onnx", 1024)
    runtime = RuntimeConfig()
    plan = Plan(
        model_name="classifier", variant_id=after.id, variant_name=after.name, runtime=runtime, store=str(tmp_path),
        made_by="test",
    )
    figures = {
        "slo_rate": {"50ms": 100.0}, "slo_rate_per_seed": {"50ms": {1: 90.0, 2: 100.0, 3: 110.0}}, "max_rates": [120.0],
        "latency_p50_s": 0.010, "latency_p99_s": 0.040, "max_rate_costs": [8000.0],
        "core_s_per_million_equal_load": 9000.0,
    }
    faster = figures | {"slo_rate": {"50ms": 1500.0}, "latency_p99_s": 0.004}
    comparison = Comparison(
        protocol=QUICK, server_cpus=[0], client_cpus=[1], equal_load_rate=70.0, equal_load_from="slo rate",
        self_check={"ok": True, "rate": 2000.0, "send_lag_p99_s": 0.0002}, before=Figures(**figures),  # type: ignore[arg-type]
        after=Figures(**faster), client_cpu_share=0.2,  # type: ignore[arg-type]
    )
    profile = Profile(
        variant_id=after.id, runtime=runtime, batch_size=8, latency_p50_s=0.001, latency_p99_s=0.002,
        throughput_rps=8000.0, memory_bytes=1, hardware={},
    )
    return DemoReport(
        run_name="demo-x", plan=plan, variants=[before, after], profiles=[profile], comparison=comparison,
        stage_seconds={"train": 1.0}, total_seconds=2.0, command="sluice demo", serve_config="serve-config.yaml",
    )


def test_ratios_are_after_over_before(report: DemoReport) -> None:
    rows = {row[0]: row[1:] for row in before_after_rows(report)}
    assert rows["SLO rate (p99 within 50ms)"] == ("100 req/s", "1,500 req/s", "15.00x")
    assert rows["p99 at 70 req/s"] == ("40.00 ms", "4.00 ms", "0.10x")
    assert rows["size of the graph with its weights"] == ("4 KiB", "1 KiB", "0.25x")


def test_every_row_is_in_the_terminal_table_and_in_the_markdown(report: DemoReport) -> None:
    console = Console(record=True, width=200, file=open("/dev/null", "w"))  # noqa: SIM115
    print_tables(report, console)
    shown = console.export_text()
    text = markdown(report)
    for row in before_after_rows(report):
        for cell in row:
            assert cell in shown
            assert cell in text


def test_what_nobody_could_tell_is_not_a_number(report: DemoReport) -> None:
    report.comparison.before.slo_rate["50ms"] = None
    report.comparison.before.latency_p99_s = None
    report.comparison.after.slo_rate_is_a_floor["50ms"] = True
    rows = {row[0]: row[1:] for row in before_after_rows(report)}
    assert rows["SLO rate (p99 within 50ms)"] == ("can't tell", "at least 1,500 req/s", "-")
    report.comparison.before.slo_rate["50ms"] = 100.0
    rows = {row[0]: row[1:] for row in before_after_rows(report)}
    assert rows["SLO rate (p99 within 50ms)"][2] == "at least 15.00x"
    assert rows["p99 at 70 req/s"] == ("failed", "4.00 ms", "-")


def test_short_steps_are_called_short(report: DemoReport) -> None:
    assert "not for publishing" in markdown(report)


def test_json_beside_the_markdown_is_readable_again(report: DemoReport, tmp_path: Path) -> None:
    path = write_report(report, tmp_path)
    assert path.read_text().startswith("# demo-x")
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["comparison"]["after"]["slo_rate"]["50ms"] == 1500.0
    assert data["plan"]["variant_name"] == "m/int8"
