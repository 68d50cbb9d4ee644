"""Metric names: declared once, units in the name, labels as declared."""

from __future__ import annotations

import re

import pytest

from cluster.observe import metrics


def test_names_are_ours_unique_and_say_what_they_are() -> None:
    names = [metric.name for metric in metrics.ALL]
    assert len(set(names)) == len(names)
    for metric in metrics.ALL:
        assert re.fullmatch(r"sluice_[a-z_]+", metric.name)
        assert metric.description
    declared = {value.name for value in vars(metrics).values() if isinstance(value, metrics.Metric)}
    assert declared == set(names), "ALL lists every one"


def test_other_labels_than_the_declared_ones_are_refused_and_no_ray_is_no_error() -> None:
    gauges = metrics.Gauges()
    gauges.set(metrics.TRAIN_LOSS, 0.5, {"run": "a"})
    with pytest.raises(ValueError, match=r"sluice_train_loss has the labels \('run',\), not \('model',\)"):
        gauges.set(metrics.TRAIN_LOSS, 0.5, {"model": "a"})
