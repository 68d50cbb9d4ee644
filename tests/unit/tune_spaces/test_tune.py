"""What a study says of itself; studies on real clusters: tests/integration/test_tune.py."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cluster.studies import StudyHeader
from cluster.variants import Accuracy, TensorSpec, Variant
from tests.unit.tune_spaces.report import made
from train_jobs import datasets
from tune_spaces.spaces import SearchSpace
from tune_spaces.stages import Cores
from tune_spaces.tune import TRIAL_PROTOCOLS, header_of, samples_of


def header(**changes: Any) -> StudyHeader:
    """Of the example's variants, each of whose accuracies is changed so."""
    told = [
        v.model_copy(update={"accuracies": tuple(a.model_copy(update=changes) for a in v.accuracies)})
        for v in made.variants().values()
    ]
    report = made.report()
    curves = {(c.points[0].variant_id, c.points[0].runtime): c for c in report.curves}
    names = {v.id: v.name for v in told}
    space = SearchSpace(curves, names, cores=1, batch_exponents=(0, 4), queue_exponents=(5, 6))
    return header_of(
        told, report.slo, space, TRIAL_PROTOCOLS["quick"], Cores.split(None), name="study", command="sluice tune"
    )


def test_a_study_of_classifiers_counts_correct_answers() -> None:
    told = header()
    assert (told.metric, told.higher_is_better) == ("accuracy", True)


def test_a_study_of_forecasters_knows_that_less_error_is_better() -> None:
    told = header(metric="mse", higher_is_better=False)
    assert (told.metric, told.higher_is_better) == ("mse", False)


def test_its_figures_are_kept_by_variant_and_runtime() -> None:
    told = header()
    expected: dict[str, dict[str, Accuracy]] = {
        v.id: {a.runtime: a for a in v.accuracies} for v in made.variants().values()
    }
    assert told.accuracies == {of: {name: a.value for name, a in by.items()} for of, by in expected.items()}


def takes(datatype: str, *shape: int) -> Variant:
    entry = TensorSpec.model_validate({"name": "x", "datatype": datatype, "shape": (-1, *shape)})
    return Variant(name="m/x", family="f", format="onnx", precision="fp32", inputs=(entry,), outputs=(entry,))


def test_the_load_is_made_of_the_test_part_where_the_graph_takes_pictures() -> None:
    dataset = datasets.load("digits")
    pictures = samples_of(dataset, takes("UINT8", *dataset.x_test.shape[1:]))
    assert np.array_equal(pictures, dataset.x_test[:256])


def test_latent_numbers_and_windows_are_drawn() -> None:
    latent = samples_of(datasets.load("digits"), takes("FP32", 6))
    assert latent.shape == (256, 6)
    assert latent.dtype == np.float32
    assert abs(float(latent.mean())) < 0.1
    assert float(latent.std()) == pytest.approx(1.0, abs=0.1)
    assert np.array_equal(latent, samples_of(None, takes("FP32", 6))), "always the same ones"
    assert samples_of(None, takes("INT32", 4, -1)).shape == (256, 4, 1)
    assert set(np.unique(samples_of(None, takes("BOOL", 3)))) == {False, True}
