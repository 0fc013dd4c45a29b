"""The notebook: without outputs as committed, and it runs through on the sample's bundle."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image
from tests.exported import copy_of
from tests.packaging.conftest import ROOT

NOTEBOOK = ROOT / "samples/notebooks/first-images.ipynb"


def _read() -> nbformat.NotebookNode:
    notebook: nbformat.NotebookNode = nbformat.read(NOTEBOOK, as_version=4)  # type: ignore[no-untyped-call]
    return notebook


def test_it_is_sound_and_has_no_outputs() -> None:
    notebook = _read()
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert code
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert json.loads(NOTEBOOK.read_text("utf-8"))["metadata"].keys() == {
        "kernelspec",
        "language_info",
    }


def test_it_takes_the_public_front_door_alone() -> None:
    notebook = _read()
    source = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    imported = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
    assert imported == {"numpy", "PIL", "fewstep"}


@pytest.mark.slow
def test_it_runs_from_top_to_bottom(tmp_path: Path) -> None:
    copy_of("sample", tmp_path / "demo-output/bundle")
    notebook = _read()
    client = NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute()
    shown = [
        output.data
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    assert sum("image/png" in data for data in shown) == 4
    with Image.open(tmp_path / "dress.png") as picture:
        assert picture.size == (32, 32)
