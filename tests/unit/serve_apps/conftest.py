"""A store, and one small variant in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.artifacts import ArtifactStore
from cluster.variants import Variant
from tests.unit.serve_apps.graphs import linear


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path)


@pytest.fixture
def one(store: ArtifactStore) -> Variant:
    return linear(store)
