"""What each family answers once it is a variant, in every runtime: seeds, thresholds, samples."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.latents import of_seeds
from cluster.runtimes import RuntimeConfig, load_runtime
from cluster.variants import Variant
from tests.unit.train_jobs.compression.test_families import AE, GAN
from tests.unit.train_jobs.tasks.generative_scenarios import VAE
from train_jobs import datasets
from train_jobs.compression.compress import build_variants
from train_jobs.compression.spec import CompressSpec
from train_jobs.compression.trained import of_run, sampler_of
from train_jobs.config import TrainConfig
from train_jobs.loop import train

SPEC = CompressSpec.of({"int8": ["int8"]})


def made(config: TrainConfig, folder: Path, *, sampler: bool = False) -> tuple[ArtifactStore, list[Variant]]:
    dataset = datasets.load(config.dataset)
    result = train(config, dataset)
    model = of_run(result.model, config, dataset, shapes=result.task.shapes)
    if sampler:
        found = sampler_of(result.model, config, dataset)
        assert found is not None
        model = found
    store = ArtifactStore(folder)
    return store, build_variants(store, model, dataset, SPEC)


def runtimes_of(variant: Variant) -> list[RuntimeConfig]:
    return [RuntimeConfig.model_validate({"name": accuracy.runtime}) for accuracy in variant.accuracies]


def test_an_autoencoder_says_from_which_score_on_a_sample_is_odd_in_each_runtime(tmp_path: Path) -> None:
    store, variants = made(AE.model_copy(update={"epochs": 1}), tmp_path)
    x = datasets.load(AE.dataset).x_train
    seen = set()
    for made_one in variants:
        variant = store.get(made_one.name)  # as a server reads it
        assert [spec.name for spec in variant.outputs] == ["reconstruction", "score", "threshold"]
        assert set(variant.thresholds) == {accuracy.runtime for accuracy in variant.accuracies}
        for config in runtimes_of(variant):
            for settings in (config, config.model_copy(update={"streams": 2})):
                answer = answer_in(store, variant, settings, x)
                assert list(answer) == ["reconstruction", "score", "threshold"]
                assert answer["threshold"].shape == answer["score"].shape == (len(x),)
                assert answer["threshold"].dtype == np.float32
                assert (answer["threshold"] == np.float32(variant.thresholds[config.name])).all()
                assert 0.005 < (answer["score"] > answer["threshold"]).mean() < 0.02
            seen.add(config.name)
    assert seen >= {"onnxruntime", "torch"}


def test_a_runtime_that_no_threshold_was_found_in_answers_the_graphs(tmp_path: Path) -> None:
    store, (root, *_) = made(AE.model_copy(update={"epochs": 1}), tmp_path)
    told = root.provenance["threshold"]
    assert isinstance(told, dict)
    [config] = runtimes_of(root)
    answer = answer_in(store, root.model_copy(update={"thresholds": {}}), config, datasets.load(AE.dataset).x_test)
    assert (answer["threshold"] == np.float32(told["value"])).all()  # type: ignore[arg-type]


def answer_in(
    store: ArtifactStore, variant: Variant, config: RuntimeConfig, x: NDArray[np.generic]
) -> dict[str, NDArray[np.generic]]:
    with closing(load_runtime(store, variant, config)) as runtime:
        return runtime.infer({"image": x})


@pytest.mark.parametrize("family", ["gan", "vae"])
def test_a_seed_is_a_sample_in_every_runtime(family: str, tmp_path: Path) -> None:
    config = {"gan": GAN, "vae": VAE.model_copy(update={"epochs": 1, "precision": "fp32"})}[family]
    store, variants = made(config, tmp_path, sampler=family == "vae")
    assert all(variant.prior == "normal" for variant in variants)
    for variant in variants:
        [output] = variant.outputs
        size = variant.inputs[0].shape[1]
        for settings in runtimes_of(variant):
            runtime = load_runtime(store, variant, settings)
            some, all_of = of_seeds(np.array([7]), size), of_seeds(np.arange(8), size)
            alone, again = (runtime.infer({"latent": some})[output.name] for _ in range(2))
            together = runtime.infer({"latent": all_of})[output.name]
            runtime.close()
            assert alone.tobytes() == again.tobytes()
            np.testing.assert_allclose(together[7:8], alone, rtol=0, atol=1e-5)
            assert 0 <= together.min() <= together.max() <= 1
            assert np.abs(together[0] - together[1]).max() > 1e-3
