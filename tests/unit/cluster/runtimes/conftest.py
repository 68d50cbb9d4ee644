"""One archive for all tests here: an export takes a second."""

from __future__ import annotations

import pytest

from cluster.runtimes.torch_archive import save_pickle_free
from tests.unit.cluster.runtimes.archives import EXAMPLE, Model, export


@pytest.fixture(scope="session")
def ours() -> bytes:
    """`Model` as our writer saves it."""
    return save_pickle_free(export(Model(), EXAMPLE))
