"""All four families from training to measured variants: each judged by its own figure, in every runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cluster.artifacts import ArtifactStore
from cluster.errors import ConfigError
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.slo import AccuracyFloor
from cluster.variants import Variant
from tests.unit.train_jobs.tasks import forecast_scenarios, generative_scenarios
from train_jobs import datasets
from train_jobs.compression.compress import build_variants
from train_jobs.compression.spec import CompressSpec
from train_jobs.compression.trained import TrainedModel, of_run
from train_jobs.config import TrainConfig
from train_jobs.datasets import anomaly, ett
from train_jobs.loop import train
from train_jobs.models import AutoencoderConfig, GANConfig, RecurrentConfig
from train_jobs.tasks import MultiTaskConfig, ReconstructConfig

_SHORT = {"finetune": {"epochs": 1}}
_PRUNE = {"prune": {"round_to": 1, **_SHORT}}


def spec(int8: str) -> CompressSpec:
    return CompressSpec.of({
        "int8": [int8], "bf16": ["bf16"], "weights": ["weight_only"], "pruned": [_PRUNE], "pruned-int8": [_PRUNE, int8],
        "sparse": [{"sparsify": {"sparsity": 0.5, **_SHORT}}], "student": [{"distill": {"width": 0.5, "epochs": 1}}],
    })  # fmt: skip


LSTM = forecast_scenarios.LSTM.model_copy(
    update={"precision": "fp32", "model": RecurrentConfig(hidden=16, layers=1, patch=4)}
)
GAN = generative_scenarios.GAN.model_copy(
    update={"precision": "fp32", "epochs": 1, "model": GANConfig(latent=6, width=16)}
)
AE = generative_scenarios.DENOISING.model_copy(update={"precision": "fp32"})
ODD = TrainConfig(
    recipe="odd", dataset="digits-one-class-3", model=AutoencoderConfig(hidden=(4, 8), latent=6), lr=5e-3,
    task=ReconstructConfig(), epochs=3, batch_size=16, validation=0.1,
)  # fmt: skip
PULSES = TrainConfig(
    recipe="pulses", dataset="pulses", model=AutoencoderConfig(layers="dense", hidden=(24,), latent=4, scale="sample"),
    task=ReconstructConfig(), lr=2e-3, epochs=1, batch_size=64, validation=0.1,
)  # fmt: skip
CASES: dict[str, tuple[TrainConfig, str, str, str]] = {
    "lstm": (LSTM, "int8_dynamic", "mse", "window"),
    "gan": (GAN, "int8", "frechet", "latent"),
    "autoencoder": (AE, "int8", "mse", "image"),
    "one-class": (ODD, "int8", "roc_auc", "image"),
    "series": (PULSES, "int8", "roc_auc", "window"),
}


@dataclass(frozen=True)
class Made:
    model: TrainedModel
    variants: dict[str, Variant]
    told: list[str]
    store: ArtifactStore


def data_of(config: TrainConfig) -> Any:
    if config.dataset == "seasonal":
        return ett.seasonal(forecast_scenarios.POINTS * 2)
    return anomaly.load(config.dataset) if anomaly.is_anomalies(config.dataset) else datasets.load(config.dataset)


@pytest.fixture(scope="module", params=list(CASES))
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Made]:
    config, int8, *_ = CASES[request.param]
    dataset = data_of(config)
    result = train(config, dataset)
    model = of_run(result.model, config, dataset, shapes=result.task.shapes)
    store, told = ArtifactStore(tmp_path_factory.mktemp("store")), list[str]()
    variants = build_variants(store, model, dataset, spec(int8), notify=told.append)
    return request.param, Made(model, {v.name.rpartition("/")[2]: v for v in variants}, told, store)


def test_every_pass_makes_a_variant_that_is_judged_by_the_familys_figure(made: tuple[str, Made]) -> None:
    name, all_of = made
    _, int8, metric, entry = CASES[name]
    wanted = {"fp32-torch", "fp32", *spec(int8).variants}
    assert set(all_of.variants) == wanted, [line for line in all_of.told if "left out" in line]
    for variant in all_of.variants.values():
        assert variant.inputs[0].name == entry
        assert variant.accuracy is not None
        assert variant.accuracy.metric == metric
        assert variant.accuracy.higher_is_better == (metric == "roc_auc")
        low, high = variant.accuracy.interval
        assert low <= variant.accuracy.value <= high or metric == "frechet", "a bootstrapped distance is biased upwards"
        assert variant.accuracy.correct is None
        assert (variant.accuracy.to_root is None) == (variant.parent_id is None)
        assert AccuracyFloor().verdict(variant.accuracy) in ("holds", "fails", "unclear")


def test_the_exported_graph_is_as_good_as_the_module_and_halves_are_smaller(made: tuple[str, Made]) -> None:
    variants = made[1].variants
    root, graph = variants["fp32-torch"].accuracy, variants["fp32"].accuracy
    assert root is not None
    assert graph is not None
    assert graph.value == pytest.approx(root.value, rel=1e-3)
    assert graph.to_root is not None
    assert AccuracyFloor().verdict(graph) == "holds"
    sizes = {name: variant.size_bytes for name, variant in variants.items()}
    for smaller in ("int8", "bf16", "weights", "pruned", "student"):
        assert sizes[smaller] < sizes["fp32"], smaller


def test_answers_have_their_names_and_shapes_in_every_runtime(made: tuple[str, Made]) -> None:
    _, all_of = made
    variant = all_of.variants["pruned-int8"]
    assert all_of.model.subject is not None
    samples = all_of.model.subject.samples(3)
    for accuracy in variant.accuracies:
        runtime = load_runtime(all_of.store, variant, RuntimeConfig.model_validate({"name": accuracy.runtime}))
        try:
            answers = runtime.infer({variant.inputs[0].name: samples})
        finally:
            runtime.close()
        assert {name: array.shape for name, array in answers.items()} == {
            output.name: (3, *output.shape[1:]) for output in variant.outputs
        }


def test_what_has_several_heads_is_refused_by_its_task(tmp_path: Path) -> None:
    dataset = datasets.load("digits")
    config = AE.model_copy(update={"task": MultiTaskConfig.model_construct(kind="multitask")})
    with pytest.raises(ConfigError, match=r"does task\.kind=multitask; Sluice compresses adversarial, classify"):
        of_run(train(ODD, data_of(ODD)).model, config, dataset)
