"""What is chosen is chosen everywhere; what cannot be is said."""

from pathlib import Path
from typing import Any

import holoviews as hv
import pytest

from actkit.testing import synthetic, write_cube
from actkit.widgets.explorer import Explorer

hv.extension("bokeh")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_cube(tmp_path / "run", n_layers=6, n_samples=48, n_tokens=6)


def panes(explorer: Explorer) -> list[Any]:
    return list(explorer._plots.select(lambda own: type(own).__name__ == "HoloViews"))


@pytest.mark.parametrize("tab", Explorer.TABS)
def test_every_tab_draws(run: Path, tab: str) -> None:
    explorer = Explorer(run, tab=tab, pairs="", sample=3)
    explorer.show()
    assert len(panes(explorer)) == {"norms": 2, "groups": 2, "cka": 2, "updates": 1, "samples": 2}[tab]
    for pane in panes(explorer):
        assert pane.get_root() is not None


def test_a_layer_is_marked_everywhere_and_a_click_chooses_it(run: Path) -> None:
    explorer = Explorer(run, tab="cka", layer=1)
    explorer.show()
    for pane in panes(explorer):
        pane.get_root()  # as a browser has it drawn
    marks = explorer._marks
    assert len(marks) == 1 + 2 * 2  # neighbours; rows and columns of two languages
    assert {mark.left for mark, _ in marks if mark.tags == ["left"]} == {0.5}
    explorer._tapped(3.8, explorer._places(False))
    assert explorer.layer == 4
    assert explorer._layer.value == 4
    assert {mark.left for mark, _ in marks if mark.tags == ["left"]} == {3.5}
    explorer._tapped(float("nan"), explorer._places(False))
    assert explorer.layer == 4


def test_what_a_link_asks_for(run: Path) -> None:
    explorer = Explorer(run)
    wrong = explorer.choose({"layer": 2, "tab": "cka", "by": "nope", "values": "median", "sample": 5})
    assert (explorer.layer, explorer.tab, explorer.sample) == (2, "cka", 5)
    assert [line.partition(":")[0] for line in wrong] == ["by", "values"]
    assert explorer.choose({"layer": 3.0, "sample": -1.0}) == []
    assert (explorer.layer, explorer.sample) == (3, -1)
    assert explorer.choose({"layer": 99}) == ["layer: 99 is not among 0, 1, 2, 3, 4, 5"]


def test_what_cannot_be_computed_is_said(run: Path) -> None:
    explorer = Explorer(run, tab="groups", by="image_id")
    explorer.show()
    alerts = explorer._plots.select(lambda own: type(own).__name__ == "Alert")
    assert alerts
    assert "image_id" in alerts[0].title


def test_a_cube_that_grows_is_seen(tmp_path: Path) -> None:
    numbers = synthetic(n_samples=12, window=4)
    (tmp_path / "run").mkdir()
    writer = numbers.create(tmp_path / "run")
    writer.write(0, numbers.part(0))
    explorer = Explorer(tmp_path / "run")
    explorer.show()
    assert "4 samples" in explorer._what.object
    writer.write(1, numbers.part(1))
    explorer.refresh()
    assert "8 samples" in explorer._what.object


def test_markup_is_text(tmp_path: Path) -> None:
    (tmp_path / "<b>run").mkdir()
    explorer = Explorer(write_cube(tmp_path / "<b>run"))
    explorer.show()
    assert "&lt;b&gt;run" in explorer._what.object


def test_files_and_code(run: Path) -> None:
    explorer = Explorer(run, tab="norms", by="gender")
    explorer.show()
    downloads = explorer._plots.select(lambda own: type(own).__name__ == "FileDownload")
    kinds = {download.filename: download.callback().read() for download in downloads}
    assert set(kinds) == {
        f"{name}.{kind}" for name in ("norms", "norms_by_group") for kind in ("png", "svg", "csv")
    }
    assert kinds["norms.png"][:4] == b"\x89PNG"
    assert b"<svg" in kinds["norms.svg"]
    assert kinds["norms_by_group.csv"].startswith("language,gender,layer,mean")
