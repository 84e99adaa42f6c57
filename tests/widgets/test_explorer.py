"""What is chosen is chosen everywhere; what cannot be is said."""

from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
import pandas as pd
import pytest

from actkit import open_cube
from actkit.testing import synthetic, write_cube
from actkit.widgets import explorer as explorer_module
from actkit.widgets.explorer import Explorer
from actkit.widgets.sample_list import SampleList

hv.extension("bokeh")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_cube(tmp_path / "run", n_layers=6, n_samples=48, n_tokens=6)


def panes(explorer: Explorer) -> list[Any]:
    return list(explorer._plots.select(lambda widget: type(widget).__name__ == "HoloViews"))


@pytest.mark.slow
@pytest.mark.parametrize("tab", Explorer.TABS)
def test_every_tab_draws(run: Path, tab: str) -> None:
    explorer = Explorer(run, tab=tab, cluster="", sample=3)
    explorer.show()
    assert len(panes(explorer)) == {"norms": 2, "groups": 3, "cka": 2, "updates": 1, "samples": 2}[tab]
    for pane in panes(explorer):
        assert pane.get_root() is not None


@pytest.mark.slow
def test_a_layer_is_marked_everywhere_and_a_click_chooses_it(run: Path) -> None:
    explorer = Explorer(run, tab="cka", layer=1)
    explorer.show()
    for pane in panes(explorer):
        pane.get_root()  # as a browser has it drawn
    marks = explorer._marks.boxes
    assert len(marks) == 1 + 2 * 2  # neighbours; rows and columns of two languages
    assert {mark.left for mark, axis, _ in marks if axis == "x"} == {0.5}
    assert {mark.bottom for mark, axis, _ in marks if axis == "y"} == {0.5}
    assert all(mark.fill_alpha > 0 if axes == "x" else mark.line_alpha == 1 for mark, _, axes in marks)
    explorer._marks.tapped(3.8, "x")
    assert explorer.layer == 4
    assert explorer._layer.value == 4
    assert {mark.left for mark, axis, _ in marks if axis == "x"} == {3.5}
    explorer._marks.tapped(float("nan"), "x")
    assert explorer.layer == 4


@pytest.mark.slow
def test_a_layer_of_a_map_is_where_it_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    some = open_cube(write_cube(tmp_path / "run", n_layers=4)).sel(layer=[1, 3])
    monkeypatch.setattr(explorer_module, "open_cube", lambda *_path, **_options: some)
    explorer = Explorer(tmp_path / "run", tab="samples", sample=1, layer=3)
    explorer.show()
    for pane in panes(explorer):
        pane.get_root()
    ((mark, axis, axes),) = explorer._marks.boxes
    assert (axis, axes, mark.bottom, mark.top) == ("y", "y", 0.5, 1.5)
    explorer._marks.tapped(0.2, "y")
    assert explorer.layer == 1


@pytest.mark.slow
def test_a_point_that_is_clicked_is_a_sample(run: Path) -> None:
    explorer = Explorer(run, tab="samples", layer=2)
    picture = explorer._wanted()[0]
    shown, _ = picture.make()
    points = pd.concat([element.dframe() for element in shown.traverse(specs=[hv.Points])])
    assert sorted(points["sample"]) == list(range(48))
    for at in (0, 17, 47):
        one = points.iloc[at]
        explorer._marks.tapped_point(one["first"] + 1e-6, one["second"] - 1e-6, points)
        assert explorer.sample == one["sample"]
    explorer._marks.tapped_point(None, None, points)
    assert explorer.sample == points.iloc[47]["sample"]


def test_what_a_link_asks_for(run: Path) -> None:
    explorer = Explorer(run)
    wrong = explorer.choose({"layer": 2, "tab": "cka", "by": "nope", "vectors": "median", "sample": 5})
    assert (explorer.layer, explorer.tab, explorer.sample) == (2, "cka", 5)
    assert [line.partition(":")[0] for line in wrong] == ["by", "vectors"]
    assert explorer.choose({"layer": 3.0, "sample": -1.0}) == []
    assert (explorer.layer, explorer.sample) == (3, -1)
    assert explorer.choose({"layer": "99", "sample": "2"}) == ["layer: 99 is not in this cube"]
    assert explorer.choose({"languages": ["arabic", "klingon"]}) == [
        "languages: 'klingon' is not in this cube"
    ]


@pytest.mark.slow
def test_what_is_chosen_is_what_a_link_says(run: Path) -> None:
    explorer = Explorer(run)
    assert explorer.chosen == {"layer": explorer.layer, "tab": "norms"}
    asked = {"layer": 1, "tab": "cka", "by": "", "vectors": "last", "languages": ["arabic"]}
    explorer.choose(asked)
    assert explorer.chosen == asked
    again = Explorer(run)
    assert again.choose(explorer.chosen) == []
    assert again.chosen == asked


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tab", "languages"),
    [
        *((tab, []) for tab in Explorer.TABS if tab != "groups"),
        ("groups", ["arabic"]),
        *(
            pytest.param(tab, [] if tab == "groups" else ["arabic"], marks=pytest.mark.nightly)
            for tab in Explorer.TABS
        ),
    ],
)
def test_the_python_that_is_shown_makes_what_is_shown(run: Path, tab: str, languages: list[str]) -> None:
    explorer = Explorer(
        run, tab=tab, cluster="", sample=3, estimator="cka_biased", tokens="all", languages=languages
    )
    for picture in explorer._wanted():
        shown, _ = picture.make()
        *before, last = picture.code.splitlines()
        names: dict[str, Any] = {}
        exec("\n".join(before), names)
        tables = [
            [
                element.dframe()
                for element in whole.traverse(specs=[hv.Curve, hv.Area, hv.Points, hv.Scatter, hv.QuadMesh])
            ]
            for whole in (shown, eval(last, names))
        ]
        assert tables[0]
        for one, other in zip(*tables, strict=True):
            pd.testing.assert_frame_equal(one, other)


def test_the_cluster_label_is_detected_and_shown(run: Path) -> None:
    explorer = Explorer(run)
    assert explorer.cluster == "image_id"
    explorer.lay_out()
    assert "clusters by image_id (detected)" in explorer._what.object
    assert all("cluster='image_id'" in picture.code for picture in explorer._wanted())
    explorer.cluster = ""
    explorer.lay_out()
    assert "independent samples" in explorer._what.object
    assert all("cluster=None" in picture.code for picture in explorer._wanted())
    assert explorer.chosen == {"layer": explorer.layer, "tab": "norms", "cluster": ""}


def test_an_uncertain_cluster_label_is_shown(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cube = open_cube(run)
    stories = np.array([f"story {number * 7 % 24}" for number in range(48)], dtype=object)
    crossed = cube.assign_coords(story=("sample", stories, {"label": True}))
    monkeypatch.setattr(explorer_module, "open_cube", lambda *_path, **_options: crossed)
    explorer = Explorer(run)
    explorer.lay_out()
    alerts = explorer._plots.select(lambda widget: type(widget).__name__ == "Alert")
    assert "neither contains the other" in alerts[0].title
    explorer.cluster = ""
    explorer.lay_out()
    assert not explorer._plots.select(lambda widget: type(widget).__name__ == "Alert")


@pytest.mark.slow
def test_two_of_several_groups(tmp_path: Path) -> None:
    explorer = Explorer(write_cube(tmp_path / "run", n_samples=48), tab="groups", by="image_id", cluster="")
    explorer.show()
    alerts = explorer._plots.select(lambda widget: type(widget).__name__ == "Alert")
    assert "choose two under Groups to compare" in alerts[0].title
    names = explorer._between.options[:2]
    explorer.between = names
    assert "between=" in explorer._wanted()[0].code
    explorer.by = "gender"
    assert explorer.between == []
    assert not explorer._between.visible


def test_a_probe_and_its_options_follow_from_the_label(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cube = open_cube(run)
    kinds = np.array(["a", "b", "c"], dtype=object)[np.arange(48) % 3]
    labels = {"kind": kinds, "rating": np.arange(48) * 0.5, "type": np.arange(48) % 4}
    cube = cube.assign_coords({name: ("sample", label, {"label": True}) for name, label in labels.items()})
    monkeypatch.setattr(explorer_module, "open_cube", lambda *_path, **_options: cube)
    explorer = Explorer(run, tab="groups", by="kind", cluster="", residuals="both")
    assert [widget.visible for widget in explorer._of_probes] == [True, False]
    (picture,) = explorer._wanted()
    assert "classification_probe(cube, by='kind', cluster=None, vectors='pooled'" in picture.code
    assert "residualized_on=['length', 'tfidf'])" in picture.code
    explorer.by = "rating"
    assert "actkit.plots.regression_probe(regression_probe)" in explorer._wanted()[0].code
    assert explorer.choose({"by": "kind", "between": ["a", "b"], "control": "word", "residuals": ""}) == []
    assert [widget.visible for widget in explorer._of_probes] == [True, True]
    names = [picture.name for picture in explorer._wanted()]
    assert names == ["groups", "auroc_difference", "selectivity", "transfer"]
    assert "between=('a', 'b'), control='word')" in explorer._wanted()[0].code
    assert explorer.choose({"control": "nowhere"}) == ["control: 'nowhere' is not in this cube"]
    explorer.tab = "norms"
    assert not any(widget.visible for widget in explorer._of_probes)


def test_nothing_to_compare_is_said(run: Path) -> None:
    explorer = Explorer(run, tab="groups", by="")
    explorer.show()
    alerts = explorer._plots.select(lambda widget: type(widget).__name__ == "Alert")
    assert "Choose a label" in alerts[0].title


def test_a_sample_is_found_by_its_text(run: Path) -> None:
    cube = open_cube(run)
    listed = SampleList(cube, sample=23)
    assert listed._pages.value == 2
    assert [button.variant for button in listed._buttons].index("outlined") == 3
    wanted = str(cube.text.values[17])
    listed._find.value = wanted.upper()
    assert listed._find.helper_text == "1 of 48 samples"
    assert wanted in listed._buttons[0].label
    listed._buttons[0].clicks += 1
    assert cube.text.values[listed.sample] == wanted
    listed._find.value = "nowhere"
    assert not any(button.visible for button in listed._buttons)


def test_what_cannot_be_computed_is_said(run: Path) -> None:
    explorer = Explorer(run, tab="groups", by="image_id")
    explorer.show()
    alerts = explorer._plots.select(lambda widget: type(widget).__name__ == "Alert")
    assert alerts
    assert "image_id" in alerts[0].title


@pytest.mark.slow
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


@pytest.mark.slow
def test_markup_is_text(tmp_path: Path) -> None:
    (tmp_path / "<b>run").mkdir()
    explorer = Explorer(write_cube(tmp_path / "<b>run"))
    explorer.show()
    assert "&lt;b&gt;run" in explorer._what.object


@pytest.mark.slow
def test_files_and_code(run: Path) -> None:
    explorer = Explorer(run, tab="norms", by="gender")
    explorer.show()
    downloads = explorer._plots.select(lambda widget: type(widget).__name__ == "FileDownload")
    kinds = {download.filename: download.callback().read() for download in downloads}
    assert set(kinds) == {
        f"{name}.{kind}" for name in ("norms", "norms_by_group") for kind in ("png", "svg", "csv")
    }
    assert kinds["norms.png"][:4] == b"\x89PNG"
    assert b"<svg" in kinds["norms.svg"]
    assert kinds["norms_by_group.csv"].startswith("language,gender,layer,mean")
