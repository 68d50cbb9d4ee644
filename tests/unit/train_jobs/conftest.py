"""Real pictures and one small trained model, shared by the tests of this package; nothing here needs a network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from cluster.artifacts import ArtifactStore
from cluster.variants import Variant
from tests.unit.train_jobs.users import Project
from train_jobs import datasets, recipes
from train_jobs.compression.compress import build_variants
from train_jobs.compression.spec import CompressSpec
from train_jobs.compression.trained import of_run
from train_jobs.config import TrainConfig
from train_jobs.datasets import LabelledDataset
from train_jobs.loop import TrainResult, train


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """The models are small: more threads only wait for each other, long ones where cores are shared."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def digits() -> LabelledDataset:
    return datasets.load("digits")


@pytest.fixture(scope="session")
def few_digits(digits: LabelledDataset) -> LabelledDataset:
    """160 training pictures: with validation=0.1 there are 144 to train on and 16 to validate on."""
    return replace(digits, x_train=digits.x_train[:160], y_train=digits.y_train[:160])


@pytest.fixture(scope="session")
def quick_config() -> TrainConfig:
    return recipes.cnn_digits().model_copy(update={"epochs": 4})


@pytest.fixture(scope="session")
def trained(quick_config: TrainConfig, digits: LabelledDataset) -> TrainResult:
    """A classifier of the digits that gets about nineteen of twenty right, made in two seconds."""
    return train(quick_config, digits)


@dataclass(frozen=True)
class Built:
    """All variants of the trained classifier by the last part of their names, and what was told meanwhile."""

    store: ArtifactStore
    variants: dict[str, Variant]
    told: list[str]


_PRUNE = {"prune": {"finetune": {"epochs": 2}}}
COMPRESS = CompressSpec.of(
    {"int8": ["int8"], "bf16": ["bf16"], "pruned": [_PRUNE], "pruned-int8": [_PRUNE, "int8"]}
)


@pytest.fixture(scope="session")
def built(
    trained: TrainResult, quick_config: TrainConfig, digits: LabelledDataset, tmp_path_factory: pytest.TempPathFactory
) -> Built:
    """Read only: shared by all tests."""
    store, told = ArtifactStore(tmp_path_factory.mktemp("store")), list[str]()
    made = build_variants(store, of_run(trained.model, quick_config, digits), digits, COMPRESS, notify=told.append)
    return Built(store, {variant.name.rsplit("/", 1)[-1]: variant for variant in made}, told)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Project]:
    """The current folder is the user's."""
    folder = tmp_path.resolve() / "users"
    folder.mkdir()
    monkeypatch.chdir(folder)
    written = Project(folder)
    yield written
    written.forget()
