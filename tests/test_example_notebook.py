"""The notebook example, run by a Jupyter kernel as a notebook is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from support_examples import EXAMPLES

nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel", reason="ipykernel is not installed")

LIMIT = 60  # seconds for one cell

PRINTED = [
    "received while a cell awaited: True",
    "changed during the computation: False",
    "received in a loop of its own: True",
    "in order and complete: True",
    "about 20: True",
    "closed with 1000",
]


@pytest.mark.filterwarnings("default")  # what Jupyter does is its own
def test_every_cell_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    path = EXAMPLES / "notebook" / "receiving.ipynb"
    notebook = nbformat.read(path, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "the notebook is kept without its outputs"
    client = nbclient.NotebookClient(notebook, timeout=LIMIT, resources={"metadata": {"path": str(path.parent)}})
    client.execute(env=dict(os.environ))
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert all(output.get("name") == "stdout" for output in outputs), outputs
    assert "".join(output.text for output in outputs).splitlines() == PRINTED
