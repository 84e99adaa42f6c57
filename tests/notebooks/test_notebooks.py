"""Each notebook runs from its first cell to its last, offline, and is kept thin and without outputs."""

import ast
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PLOTS = {
    "01_extract": 0,
    "02_layer_norms": 3,
    "03_gender_differentials": 3,
    "04_cka_transitions": 3,
    "05_whitening_and_export": 0,
    "06_your_model_your_data": 0,
}
WIDGET = "application/vnd.jupyter.widget-view+json"
PLOT = "application/vnd.holoviews_exec.v0+json"


def code(notebook: Any) -> list[Any]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shown(notebook: Any, kind: str) -> list[Any]:
    return [
        output.data[kind]
        for cell in code(notebook)
        for output in cell.outputs
        if kind in output.get("data", {})
    ]


@pytest.fixture(scope="session")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they run: each finds the cube of those before it, as a reader's does."""
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copy(FOLDER / "requests.csv", folder)
    return folder


def test_these_are_all() -> None:
    assert [path.stem for path in NOTEBOOKS] == list(PLOTS)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_thin_and_stripped(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.keys() == {"kernelspec", "language_info"}
    for cell in code(notebook):
        assert (cell.outputs, cell.execution_count, cell.metadata) == ([], None, {})
        lines = cell.source.splitlines()
        assert len(lines) <= 6
        parsed = ast.parse("\n".join(line for line in lines if not line.startswith("%")))
        assert not any(
            isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Lambda) for node in ast.walk(parsed)
        )


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs(path: Path, work: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    where = {"metadata": {"path": str(work)}}
    NotebookClient(notebook, timeout=240, kernel_name="python3", resources=where).execute()
    for cell in code(notebook):
        assert cell.execution_count is not None
        assert all(output.output_type != "error" for output in cell.outputs)
    assert len(shown(notebook, PLOT)) >= PLOTS[path.stem]
    if path.stem == "01_extract":
        assert len(shown(notebook, WIDGET)) == 2  # the form, and the progress
        assert any("2000" in text and "hidden: 160" in text for text in shown(notebook, "text/plain"))
    if path.stem == "05_whitening_and_export":
        told = next(text for text in shown(notebook, "text/plain") if text.startswith("(") and "," in text)
        theirs, ours = ast.literal_eval(told)
        assert theirs == pytest.approx(ours, rel=1e-6)
