"""The notebook runs from top to bottom, and shows what it promises."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from tests.conftest import marked

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
NOTEBOOKS = sorted((Path(__file__).resolve().parents[2] / "notebooks").glob("*.ipynb"))


def shown(notebook: Any, source: str) -> str:
    """The HTML that the cell of exactly this source shows."""
    cell = next(cell for cell in notebook.cells if cell.source == source)
    return "".join(output["data"].get("text/html", "") for output in cell.outputs if "data" in output)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_committed_notebook_carries_no_output(path: Path) -> None:
    cells = nbformat.read(path, as_version=4).cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells if cell.cell_type == "code")


def test_the_first_notebook_tunes_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {
        "SLUICE_NOTEBOOK_DIR": str(tmp_path), "SLUICE_NOTEBOOK_PROTOCOL": "smoke", "SLUICE_NOTEBOOK_TRIALS": "3",
        "SLUICE_STATE": str(tmp_path / "clusters"), "PYTHONPATH": os.getcwd(),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    NotebookClient(notebook, timeout=350, resources={"metadata": {"path": str(tmp_path)}}).execute()
    study, plan = shown(notebook, "tuned.study"), shown(notebook, "tuned.plan")
    assert study.count("<tr>") >= 4  # the headers and three configurations
    assert "SLO rate" in study
    assert "max_batch_size" in plan
    assert (tmp_path / "runs/notebook/report.html").exists()
    assert not marked(state_dir=tmp_path / "clusters")
