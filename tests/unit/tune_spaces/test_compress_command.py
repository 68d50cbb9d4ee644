"""`sluice compress` of a run: what it makes, stores and lists, of a family that has more than one model."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from cluster.artifacts import ArtifactStore
from cluster.cli import app
from cluster.variants import THRESHOLD
from tests.unit.train_jobs.tasks.generative_scenarios import VAE
from train_jobs import datasets, runs
from train_jobs.loop import train


@pytest.mark.parametrize("as_json", [True, False])
def test_a_variational_autoencoder_is_compressed_with_what_draws_its_samples(tmp_path: Path, as_json: bool) -> None:
    config = VAE.model_copy(update={"epochs": 1, "precision": "fp32"})
    dataset = datasets.load(config.dataset)
    folder = tmp_path / "runs" / "tiny"
    runs.claim(folder, config)
    runs.finish(folder, config, dataset.source, train(config, dataset))
    store = tmp_path / "store"
    arguments = ["--variant", "int8=int8", "--runs-dir", str(folder.parent), "--store", str(store)]
    said = CliRunner().invoke(app, ["compress", "tiny", *arguments, *(["--json"] if as_json else [])])
    assert said.exit_code == 0, said.output
    names = [f"{model}/{name}" for model in ("vae", "vae-sampler") for name in ("fp32-torch", "fp32", "int8")]
    if as_json:
        assert [each["name"] for each in json.loads(said.stdout)] == names
    else:
        assert "next: sluice tune vae, sluice tune vae-sampler" in said.stdout
    found = [ArtifactStore(store).get(name) for name in names]
    assert [variant.prior for variant in found] == [None] * 3 + ["normal"] * 3
    for variant in found:
        measured = {accuracy.runtime for accuracy in variant.accuracies}
        assert measured >= ({"torch"} if variant.format == "torch_export" else {"onnxruntime"})
        says = THRESHOLD in variant.outputs
        assert says == (variant.prior is None)
        assert set(variant.thresholds) == (measured if says else set())
