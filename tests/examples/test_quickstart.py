"""The example notebook runs from top to bottom and says what its text says."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"


def printed(notebook: nbformat.NotebookNode) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []))


@pytest.mark.slow
def test_the_notebook_runs_and_prints_what_was_kept_in_it(tmp_path: Path) -> None:
    kept = nbformat.read(NOTEBOOK, as_version=4)
    fresh = nbformat.read(NOTEBOOK, as_version=4)
    for cell in fresh.cells:
        cell.pop("outputs", None)
        if cell.cell_type == "code":
            cell.outputs = []
    NotebookClient(fresh, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "RankIC +" in printed(kept)
    assert printed(fresh) == printed(kept), "run the notebook again and keep its outputs"
    assert any("image/png" in output.get("data", {}) for cell in fresh.cells for output in cell.get("outputs", []))


def test_the_notebook_keeps_outputs_and_no_machine_path() -> None:
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert [cell for cell in notebook.cells if cell.cell_type == "code" and not cell.get("outputs")] == []
    assert str(Path.home()) not in nbformat.writes(notebook)
