"""docs/quickstart.ipynb runs from top to bottom, offline."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient", reason="the notebook is run by nbclient, which is not installed")
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("ipykernel", reason="a notebook needs a kernel: ipykernel is not installed")

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_the_quickstart_notebook_runs_and_says_what_is_in_the_clips(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(ROOT / "docs" / "quickstart.ipynb", as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
    nbclient.NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    printed = [
        output["text"]
        for cell in notebook.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream"
    ]
    lines = [line.split() for line in "".join(printed).splitlines()]
    assert ["dog-barking.mp4", "dog", "barking"] in [line[:3] for line in lines]
    assert ["dog-barking", "P-104"] in [line[:2] for line in lines]
    assert ["train-honking", "P-207"] in [line[:2] for line in lines]
