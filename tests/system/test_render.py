"""Executing a committed notebook, as ``judge --render`` does."""

from __future__ import annotations

from pathlib import Path

import nbformat
import pytest
from nbformat import v4

from companion.pages.views import execute_notebook

pytestmark = pytest.mark.system


def notebook(folder: Path, source: str) -> Path:
    path = folder / "notebook.ipynb"
    nbformat.write(v4.new_notebook(cells=[v4.new_code_cell(source)]), path)
    return path


def test_outputs_are_kept_and_the_terminal_stays_empty(tmp_path, capfd):
    path = notebook(tmp_path, "import os\nprint(os.environ['MKL_CBWR'])")
    execute_notebook(path)
    [cell] = nbformat.read(path, as_version=4).cells
    assert (cell.execution_count, cell.outputs[0]["text"]) == (1, "COMPATIBLE\n")
    assert capfd.readouterr() == ("", "")


def test_a_cell_that_warns_is_named_and_nothing_is_written(tmp_path):
    path = notebook(tmp_path, "import warnings\nwarnings.warn('too late')")
    before = path.read_bytes()
    with pytest.raises(RuntimeError, match=r"notebook\.ipynb warns in cell .*too late"):
        execute_notebook(path)
    assert path.read_bytes() == before
