"""Notebooks run from top to bottom."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parent.parent / "notebooks"


EVERY = pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
LARGEST = 800_000
"""Bytes of a notebook with its pictures."""


@EVERY
def test_its_outputs_are_committed(path: Path) -> None:
    cells = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "run it from top to bottom"
    assert any("image/png" in output.get("data", {}) for output in outputs), "the pictures are missing"
    assert path.stat().st_size < LARGEST


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the kernel's own packages warn
@EVERY
def test_it_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MPLBACKEND", raising=False)  # the kernel draws into the notebook
    # As its reader has: one device and programs compiled with optimisations, which a long attack is faster with.
    monkeypatch.delenv("XLA_FLAGS")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute(cwd=str(path.parent))
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in outputs), "the pictures are missing"
    assert not any(output.get("name") == "stderr" for output in outputs), "a cell complains"
