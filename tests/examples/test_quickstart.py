"""The notebook runs from top to bottom, and shows what it promises."""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat
import pytest
from children import finished
from nbformat import NotebookNode

NOTEBOOK = Path(__file__).parents[2] / "examples" / "quickstart.ipynb"
RUN = """
import sys
import nbformat
from nbclient import NotebookClient
document = nbformat.read(sys.argv[1], as_version=4)
NotebookClient(document, timeout=600).execute()
nbformat.write(document, sys.argv[1])
"""
"""A process of its own, because nbclient changes how its process handles signals."""


@pytest.fixture(scope="module")
def notebook(tmp_path_factory: pytest.TempPathFactory) -> NotebookNode:
    """The notebook, after it was run in a folder of its own, with two epochs instead of twenty."""
    path = tmp_path_factory.mktemp("notebook") / "quickstart.ipynb"
    document = nbformat.read(NOTEBOOK, as_version=4)
    (training,) = (cell for cell in document.cells if "carnet.train(" in cell.source)
    assert "epochs=20" in training.source
    training.source = training.source.replace("epochs=20", "epochs=2")
    nbformat.write(document, path)
    finished([sys.executable, "-c", RUN, path], check=True, cwd=path.parent)
    return nbformat.read(path, as_version=4)


def shown(document: NotebookNode, code: str) -> str:
    """What the cell with this code has printed."""
    (cell,) = (cell for cell in document.cells if cell.cell_type == "code" and code in cell.source)
    return "".join(output.get("text", "") for output in cell.outputs)


def test_what_it_shows(notebook: NotebookNode) -> None:
    assert "200 images: top-1 " in shown(notebook, "model.evaluate()")
    assert " -> " in shown(notebook, "model.predict(photo)")
    assert "%" in shown(notebook, "carnet.load(exported)")
    (explained,) = (cell for cell in notebook.cells if "model.explain" in cell.source)
    assert "image/png" in explained.outputs[0]["data"]


def test_it_is_stored_without_results() -> None:
    document = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(document)
    for cell in document.cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)
