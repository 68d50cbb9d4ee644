"""`sluice profile --runtime`: one more way to run the variants that it can run. `sluice serve --repository`, and
`--grpc-port`: what it would deploy."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from cluster.artifacts import ArtifactStore
from cluster.cli import app
from cluster.errors import ConfigError
from cluster.runtimes import RuntimeConfig
from cluster.variants import TensorSpec, Variant
from serve_apps.deployment import UserConfig
from tests.unit.serve_apps.graphs import linear
from tune_spaces import commands, profiler
from tune_spaces.profiler import Job

COMPILED = RuntimeConfig(name="torch", threads=2, compile=True)


@pytest.fixture
def jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """Filled by the command with what it would measure; the store holds m/torch and m/onnx."""
    store, asked = ArtifactStore(tmp_path), []
    for name, form, file in (("m/torch", "torch_export", "model.pt2"), ("m/onnx", "onnx", "model.onnx")):
        spec = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
        variant = Variant(name=name, family="f", format=form, inputs=(spec,), outputs=(spec,))  # type: ignore[arg-type]
        store.set_ref(name, store.put(variant, {file: b"not loaded"}).id, expected=None)
    monkeypatch.setattr(profiler, "profile", lambda _, given, **others: asked.extend(given) or [])
    return asked


def run(tmp_path: Path, refs: list[str], also: list[str]) -> None:
    commands.profile(refs=refs, fresh=False, also=also, store=tmp_path, as_json=True)


def test_it_is_measured_beside_the_usual_ones(tmp_path: Path, jobs: list[Job]) -> None:
    run(tmp_path, ["m/torch", "m/onnx"], [])
    usual = list(jobs)
    assert not any(config.compile for _, config in usual), "compiling takes long: nobody asked for it"
    jobs.clear()
    run(tmp_path, ["m/torch", "m/onnx"], ["torch,compile=true,threads=2", "torch"])
    *first, (variant, config) = jobs
    assert first == usual, "and what is among these is not measured twice"
    assert (variant.name, config) == ("m/torch", COMPILED)


@pytest.mark.parametrize(
    ("also", "told"),
    [
        ("torch,compile=true", r"torch executes none of these variants \(onnx\)"),
        ("onnxruntime,compile=true", "compile=true is for runtime torch"),
        ("onnxruntime,thread=2", "thread='2'"),
        ("tensorrt", "name='tensorrt'"),
        ("onnxruntime,pin", "write it as torch,compile=true,threads=2"),
    ],
)
def test_what_is_no_runtime_config_is_refused(tmp_path: Path, jobs: list[Job], also: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told) as caught:
        run(tmp_path, ["m/onnx"], [also])
    assert str(caught.value).startswith(f"--runtime {also}: ")
    assert jobs == []


@pytest.mark.parametrize("flags", [[], ["--repository"]])
def test_serve_lets_clients_load_and_unload_only_if_it_is_told_to(flags: list[str], tmp_path: Path) -> None:
    variant = linear(ArtifactStore(tmp_path))
    argv = ["serve", variant.name, "--store", str(tmp_path), "--dry-run"]
    result = CliRunner().invoke(app, argv + flags)
    assert result.exit_code == 0, result.output
    [application] = yaml.safe_load(result.output)["applications"]
    user_config = UserConfig.model_validate(application["deployments"][0]["user_config"])
    assert user_config.repository is bool(flags)


def test_a_plan_that_allows_it_needs_no_flag(tmp_path: Path) -> None:
    variant = linear(ArtifactStore(tmp_path))
    plan = commands._plan_to_serve(variant.id, None, tmp_path).model_copy(update={"repository": True})
    (tmp_path / "plan.json").write_text(plan.model_dump_json())
    result = CliRunner().invoke(app, ["serve", "--plan", str(tmp_path / "plan.json"), "--dry-run"])
    [application] = yaml.safe_load(result.output)["applications"]
    assert application["deployments"][0]["user_config"]["repository"] is True


def serve(store: ArtifactStore, **changes: Any) -> None:
    given = {
        "ref": "linear/1x4", "plan_path": None, "port": 8000, "host": "127.0.0.1", "also": [], "direct_port": None,
        "grpc_port": None, "repository": False, "model": None, "dry_run": True,
    }  # fmt: skip
    commands.serve_local(store=store.root, **given | changes)


@pytest.mark.parametrize(("model", "served"), [(None, "classifier"), ("gan.2", "gan.2")])
def test_a_model_is_served_under_the_name_that_it_is_given(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], model: str | None, served: str
) -> None:
    store = ArtifactStore(tmp_path)
    linear(store)
    serve(store, model=model)
    [application] = yaml.safe_load(capsys.readouterr().out)["applications"]
    assert (application["name"], application["args"]["model_name"]) == (served, served)


@pytest.mark.parametrize("model", ["../etc", ".", "", "a b", "x" * 101, "a\n"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, model: str) -> None:
    store = ArtifactStore(tmp_path)
    linear(store)
    with pytest.raises(ConfigError, match=re.escape(f"model={model!r} names no model")):
        serve(store, model=model)


def serve_with(tmp_path: Path, *, grpc_port: int | None, direct_port: int | None = None) -> None:
    commands.serve_local(
        ref="m/onnx", plan_path=None, port=8000, host="127.0.0.1", also=[], direct_port=direct_port,
        grpc_port=grpc_port, repository=False, model=None, store=tmp_path, dry_run=True,
    )  # fmt: skip


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize("port", [None, 9000])
def test_grpc_is_served_where_it_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], port: int | None
) -> None:
    serve_with(tmp_path, grpc_port=port)
    said = yaml.safe_load(capsys.readouterr().out)
    assert said["http_options"]["port"] == 8000
    assert said.get("grpc_options", {}).get("port") == port


@pytest.mark.usefixtures("jobs")
@pytest.mark.parametrize("port", [0, 65536, 8000, 8010])
def test_a_port_that_cannot_be_grpc_s_is_refused(tmp_path: Path, port: int) -> None:
    with pytest.raises(ConfigError, match=f"grpc_port={port} .*--grpc-port"):
        serve_with(tmp_path, grpc_port=port, direct_port=8010)
