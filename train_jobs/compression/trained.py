"""What compression starts from: a finished run's model of any family, or the user's own module or ONNX graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import JsonValue
from torch import nn

from cluster.variants import TensorSpec, canonical_sha256
from train_jobs import datasets
from train_jobs.compression.subject import ClassifySubject, DecodeSubject, Subject, served, subject_of
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.models.autoencoder import VAE, Sampler
from train_jobs.runs import Run


@dataclass(frozen=True)
class TrainedModel:
    """A module, or the ONNX graph of one; samples in, answers out."""

    name: str
    """Names the variants: "<name>/int8"."""
    family: str
    inputs: TensorSpec
    outputs: TensorSpec
    """The first of them; `subject` knows all."""
    module: nn.Module | None = None
    onnx: bytes | None = None
    preprocessing: str = ""
    provenance: dict[str, JsonValue] = field(default_factory=dict)
    subject: Subject | None = None
    """How its family learns and is judged; None: a classifier of the data set that it is compressed with."""
    config: TrainConfig | None = None
    """Of the run that made it, with the shapes that its task needs to build such a model: for a narrower one."""
    shapes: Mapping[str, Any] = field(default_factory=dict)

    def subject_on(self, dataset: Any) -> Subject:
        return self.subject or ClassifySubject(
            dataset, family=self.family, inputs=self.inputs, outputs=self.outputs
        )


def of_run(
    model: nn.Module, config: TrainConfig, dataset: Any, *, shapes: Mapping[str, Any] | None = None,
    runs_dir: Path | None = None,
) -> TrainedModel:  # fmt: skip
    """A finished run's model. Raises ConfigError if the data set is not the one that it was trained on, or models of
    its task are not compressed."""
    datasets.require(dataset, config.dataset)
    subject = subject_of(model, config, dataset, runs_dir=runs_dir)
    described = getattr(getattr(model, "preprocess", None), "describe", None)
    return TrainedModel(
        name=config.recipe, family=subject.family, inputs=subject.inputs, outputs=subject.outputs[0],
        module=served(model), preprocessing=described() if described else "none",
        provenance={"config": config.model_dump(mode="json")}, subject=subject, config=config, shapes=shapes or {},
    )  # fmt: skip


def sampler_of(
    model: nn.Module, config: TrainConfig, dataset: Any, *, runs_dir: Path | None = None
) -> TrainedModel | None:
    """What a variational autoencoder draws samples with, as a model of its own; None of any other model. It has no
    config by which a narrower one could be built."""
    if not isinstance(model, VAE):
        return None
    datasets.require(dataset, config.dataset)
    task: Any = config.task.build(config, dataset, runs_dir=runs_dir)
    subject = DecodeSubject(config, task, model, dataset=dataset.name)
    return TrainedModel(
        name=f"{config.recipe}-sampler", family=subject.family, inputs=subject.inputs, outputs=subject.outputs[0],
        module=copy.deepcopy(Sampler(model)).eval(), preprocessing="none",
        provenance={"config": config.model_dump(mode="json")}, subject=subject,
    )  # fmt: skip


def of_finished(run: Run, dataset: Any, *, runs_dir: Path | None = None) -> TrainedModel:
    """`of_run` with all that a run's folder knows. Raises ConfigError as it does."""
    return of_run(run.model, run.config, dataset, shapes=run.shapes, runs_dir=runs_dir)


def described(dataset: Any) -> dict[str, JsonValue]:
    """The data set as manifests name it; its test part by a hash of the values, so that it can be told again."""
    if isinstance(dataset, LabelledDataset):
        test = dataset.test_sha256
    else:
        values = np.ascontiguousarray(dataset.values)
        test = canonical_sha256({"shape": list(values.shape), "bytes": values.tobytes().hex()})
    return {"name": dataset.name, "spec": dataset.spec, "test_sha256": test}
