"""The example notebook runs from top to bottom, and a unit is drawn in it."""

import os
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from tests.conftest import ATTACK


def test_the_example_notebook_runs(hostile, monkeypatch):
    monkeypatch.setenv("NEUROEXPLAIN_DB", str(hostile / "x.db"))
    notebook = nbformat.read(
        Path(__file__).parent.parent / "examples" / "reading_neurons.ipynb", as_version=4
    )
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": os.fspath(hostile)}}).execute()
    drawn = [
        output.data["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if "text/html" in output.get("data", {})
    ]
    assert any('class="t ' in html for html in drawn)
    assert not any(ATTACK in html for html in drawn)
