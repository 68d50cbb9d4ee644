"""`sluice init`: a project that runs as it is, explains each field, and is part of what is installed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import orjson
import pytest
import torch
from pydantic import BaseModel
from typer.testing import CliRunner

from cluster.artifacts import ArtifactStore
from cluster.cli import app
from cluster.errors import ConfigError
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.slo import AccuracyFloor, Budget, Slo, TraceRate, load_slo
from serve_apps.oip.codec import decode
from train_jobs import bring, datasets
from train_jobs.compression.compress import build_variants
from train_jobs.compression.spec import CompressSpec
from tune_spaces.project import FILES, init

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home") / "my project"
    init(folder=folder, force=False)
    return folder


def test_its_model_and_data_are_tuned_as_its_readme_says(
    project: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(project)
    command = re.search(r"^sluice tune (.*)$", (project / "README.md").read_text(), re.MULTILINE)
    assert command is not None
    options = shlex.split(command[1])
    given = dict(zip(options[::2], options[1::2], strict=True))
    assert load_slo(Path(given["--slo"])).accuracy == AccuracyFloor(max_drop=0.01)
    torch.set_num_threads(1)
    try:
        dataset = datasets.load(given["--data"])
        model = bring.load_model(given["--model"], dataset)
        store = ArtifactStore(tmp_path)
        made = build_variants(store, model, dataset, CompressSpec.of({"int8": ["int8"]}))
    finally:
        sys.path.remove(str(project))
        sys.modules.pop("my_model")
    assert [v.name for v in made] == ["my_model/fp32-torch", "my_model/fp32", "my_model/int8"]
    assert all(a.value > 0.93 and a.total == 898 for v in made for a in v.accuracies)
    assert all(load_slo(project / "slo.yaml").accuracy.verdict(v.accuracy) == "holds" for v in made)
    assert (project / "weights.pt").exists(), "trained once: the same model every time"

    # What `python my_model.py` prints is a request that the variant answers rightly.
    printed = subprocess.run([sys.executable, "my_model.py"], capture_output=True, check=True, cwd=project).stdout
    request = decode(printed, {}, made[1].outputs)
    runtime = load_runtime(store, made[1], RuntimeConfig())
    assert int(np.argmax(runtime.infer(request.inputs)["logits"])) == dataset.y_test[0]
    assert orjson.loads(printed)["inputs"][0]["name"] == made[1].inputs[0].name


def test_the_slo_explains_every_field(project: Path) -> None:
    text = (project / "slo.yaml").read_text()
    fields: set[str] = set()
    for model in (Slo, AccuracyFloor, TraceRate, Budget):
        assert issubclass(model, BaseModel)
        fields |= set(model.model_fields)
    assert {name for name in fields if not re.search(rf"^[ #]*{name}:", text, re.MULTILINE)} == set()


def test_what_its_slo_leaves_out_can_be_put_in(project: Path, tmp_path: Path) -> None:
    """Each commented field, uncommented, is a valid one."""
    text = (project / "slo.yaml").read_text()
    (tmp_path / "traffic.csv").write_text("time_s,rate_rps\n0,10\n1,20\n")
    for fields in (("minimum", "rate_rps", "budget", "cores", "memory_mib"), ("trace", "path", "scale")):
        changed = text
        for name in fields:
            changed, count = re.subn(rf"^( *)# ( *{name}:)", r"\1\2", changed, flags=re.MULTILINE)
            assert count == 1, name
        (tmp_path / "slo.yaml").write_text(changed)
        slo = load_slo(tmp_path / "slo.yaml")
        assert slo.peak_rps() == {"rate_rps": 200.0, "path": 20.0}[fields[1]]
    assert "budget" in text


def test_what_is_there_is_not_written_over_unless_it_is_asked_for(tmp_path: Path) -> None:
    mine = tmp_path / "slo.yaml"
    mine.write_text("mine")
    with pytest.raises(ConfigError, match=r"has slo\.yaml already; name another folder, or pass --force"):
        init(folder=tmp_path, force=False)
    assert [path.name for path in tmp_path.iterdir()] == ["slo.yaml"]
    assert mine.read_text() == "mine"
    init(folder=tmp_path, force=True)
    assert mine.read_text() != "mine"
    assert {path.name for path in tmp_path.iterdir()} == set(FILES)


def test_the_command_says_what_comes_next(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["init", str(tmp_path / "new one")])
    assert done.exit_code == 0, done.output
    assert f"cd '{tmp_path}/new one'" in done.output
    assert "sluice tune --model my_model:model --data my_model:dataset --slo slo.yaml --study first" in done.output
    assert (tmp_path / "new one" / "my_model.py").exists()
    again = CliRunner().invoke(app, ["init", str(tmp_path / "new one")])
    assert again.exit_code == 2


def test_an_installed_sluice_has_the_files_too(tmp_path: Path) -> None:
    """A wheel, built as pip builds it, from a copy: building leaves traces in the source tree."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path)
    for name in ("cluster", "train_jobs", "serve_apps", "tune_spaces"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], capture_output=True, text=True, check=True, cwd=tmp_path)
    with zipfile.ZipFile(tmp_path / done.stdout.splitlines()[-1]) as wheel:
        assert {f"tune_spaces/example/{name}" for name in FILES} <= set(wheel.namelist())
