"""Results of chaos and soak runs, kept under docs/results with their date and machine; two variants to choose from."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cluster.artifacts import ArtifactStore
from cluster.hardware import fingerprint
from cluster.variants import Variant

RESULTS = Path(__file__).resolve().parents[2] / "docs/results"
COMMANDS = {"chaos": "make chaos", "soak": "make soak", "switches": "make chaos", "overload": "make soak"}
"""What measures it."""


@pytest.fixture(scope="session")
def results() -> Iterator[dict[str, list[dict[str, Any]]]]:
    """Rows by title; written at the end of the session, one file for each title."""
    kept: dict[str, list[dict[str, Any]]] = {}
    yield kept
    RESULTS.mkdir(parents=True, exist_ok=True)
    for title, rows in kept.items():
        stem = RESULTS / f"{date.today():%Y-%m-%d}-{title}"
        stem.with_suffix(".json").write_text(json.dumps({"hardware": fingerprint(), "rows": rows}, indent=1))
        columns = list(dict.fromkeys(name for row in rows for name in row))
        lines = ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns)]
        lines += ["| " + " | ".join(str(row.get(name, "")) for name in columns) + " |" for row in rows]
        facts = ", ".join(f"{key}: {value}" for key, value in fingerprint().items())
        table = "\n".join(lines)
        text = f"# {title}, {date.today():%Y-%m-%d}\n\n`{COMMANDS[title]}`\n\n{table}\n\nMachine: {facts}\n"
        stem.with_suffix(".md").write_text(text)


@pytest.fixture
def record(results: dict[str, list[dict[str, Any]]]) -> Callable[..., None]:
    """`record("chaos", what=..., failed=...)` adds one row."""

    def add(title: str, **row: Any) -> None:
        results.setdefault(title, []).append(row)

    return add


@dataclass(frozen=True)
class Pair:
    """Two variants of one model."""

    store: ArtifactStore
    accurate: Variant
    fast: Variant
    pictures: NDArray[np.uint8]


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    """Classifiers of the embedded digits: one as it is, one of half the width that was trained for a third as long."""
    from train_jobs import datasets, loop, recipes
    from train_jobs.compression.compress import build_variants
    from train_jobs.compression.spec import CompressSpec
    from train_jobs.compression.trained import of_run
    from train_jobs.models.cnn import CNNConfig

    dataset = datasets.load("digits")
    store = ArtifactStore(tmp_path_factory.mktemp("pair"))
    made = []
    for name, width, epochs in (("accurate", 1.0, 3), ("fast", 0.5, 1)):
        config = recipes.cnn_digits().model_copy(
            update={"recipe": name, "model": CNNConfig(width=width), "epochs": epochs}
        )
        model = loop.train(config, dataset).model
        variants = build_variants(store, of_run(model, config, dataset), dataset, CompressSpec())
        made += [variant for variant in variants if variant.name.endswith("/fp32")]
    accurate, fast = made
    assert accurate.accuracies[0].value > fast.accuracies[0].value
    return Pair(store, accurate, fast, dataset.x_test)
