"""Each notebook runs from its first cell to its last, offline, and is kept thin and without outputs."""

import ast
import shutil
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook

from actkit.demo import CAPTIONS

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
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("n_samples", [400, pytest.param(2000, marks=pytest.mark.nightly)])
def test_they_run(tmp_path: Path, n_samples: int) -> None:
    """Run the notebooks one after another, as a reader does, in one kernel that forgets their variables."""
    shutil.copy(FOLDER / "requests.csv", tmp_path)
    captions = pd.read_csv(CAPTIONS)
    few = captions.occupation.isin(["sculptor", "painter", "tailor"])  # of whom a notebook makes a subset
    order = (~few).to_numpy().argsort(kind="stable")[:n_samples]
    captions.iloc[order].to_csv(tmp_path / "captions.csv", index=False)
    path = tmp_path / "captions.csv" if n_samples < len(captions) else CAPTIONS
    set_captions = f"import actkit.demo, pathlib; actkit.demo.CAPTIONS = pathlib.Path({str(path)!r})"

    notebooks = {path.stem: nbformat.read(path, as_version=4) for path in NOTEBOOKS}
    cells = [new_code_cell(set_captions)]
    for name, notebook in notebooks.items():
        for cell in notebook.cells:
            cell.id = f"{name}-{cell.id}"
        cells += [*notebook.cells, new_code_cell("%reset -f")]
    resources = {"metadata": {"path": str(tmp_path)}}
    NotebookClient(
        new_notebook(cells=cells), timeout=900, kernel_name="python3", resources=resources
    ).execute()
    for name, notebook in notebooks.items():
        for cell in code(notebook):
            assert cell.execution_count is not None
            assert all(output.output_type != "error" for output in cell.outputs)
        assert len(shown(notebook, PLOT)) >= PLOTS[name]
    extraction = notebooks["01_extract"]
    assert len(shown(extraction, WIDGET)) == 2  # the form, and the progress
    assert any(str(n_samples) in text and "hidden: 160" in text for text in shown(extraction, "text/plain"))
    texts = shown(notebooks["05_whitening_and_export"], "text/plain")
    exported, cube = ast.literal_eval(next(text for text in texts if text.startswith("(") and "," in text))
    assert exported == pytest.approx(cube, rel=1e-6)
