"""Every picture, drawn by both backends: what is on its axes, its colours, and which way it reads."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import actkit
from actkit import plots
from actkit.plots.style import LANGUAGES, colours
from tests.stats.conftest import planted

QUICK: dict[str, Any] = {"by": "gender", "permutations": 40, "seeds": 1}


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return actkit.open_cube(planted(tmp_path_factory.mktemp("plots") / "run"))


@pytest.fixture(autouse=True, scope="module")
def matplotlib() -> None:
    plots.load_matplotlib()


PICTURES: dict[str, Callable[[xr.Dataset], Any]] = {
    "norms": lambda cube: plots.layer_norms(actkit.layer_norms(cube)),
    "norms by group": lambda cube: plots.layer_norms(actkit.layer_norms(cube, by="gender")),
    "updates": lambda cube: plots.layer_updates(actkit.layer_updates(cube)),
    "differential": lambda cube: plots.group_differential(actkit.group_differential(cube, **QUICK)),
    "what layers add": lambda cube: plots.auroc_difference(actkit.group_differential(cube, **QUICK)),
    "transfer": lambda cube: plots.transfer(actkit.transfer(cube, by="gender")),
    "directions": lambda cube: plots.direction_cosines(actkit.direction_cosines(cube, by="gender")),
    "cka": lambda cube: plots.cka(actkit.cka(cube)),
    "cka, errors": lambda cube: plots.cka(actkit.cka(cube), "se"),
    "adjacent": lambda cube: plots.adjacent_cka(actkit.adjacent_cka(cube), actkit.transitions(cube)),
    "languages": lambda cube: plots.language_cka(actkit.language_cka(cube)),
    "tokens": lambda cube: plots.tokens(cube, 0),
    "projection": lambda cube: plots.projection(cube, 3, by="gender"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_both_backends_draw_it(cube: xr.Dataset, tmp_path: Path, name: str) -> None:
    picture = PICTURES[name](cube)
    assert hv.renderer("bokeh").get_plot(picture).state is not None
    for kind in ("png", "svg"):
        plots.figure(picture, tmp_path / f"x.{kind}")
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    assert min(pixels.shape) > 300
    assert pixels.std() > 10  # something is drawn
    assert (tmp_path / "x.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["norms", "differential", "what layers add", "transfer", "adjacent", "languages", "projection"]
)
def test_axes_say_what_they_show(cube: xr.Dataset, name: str) -> None:
    plot = hv.renderer("bokeh").get_plot(PICTURES[name](cube)).state
    labels = [axis.axis_label for axis in (*plot.xaxis, *plot.yaxis)]
    assert all(labels), labels
    assert plot.title.text
    if name != "projection":
        assert labels[0].startswith("layer")
        assert set(plot.xaxis[0].ticker.ticks) <= set(range(5))


def curves(picture: Any) -> dict[str, str]:
    """Return the colour of each curve by its label."""
    marks = picture.traverse(lambda curve: curve, [hv.Curve])
    return {curve.label: hv.Store.lookup_options("bokeh", curve, "style").kwargs["color"] for curve in marks}


@pytest.mark.slow
def test_a_language_has_one_colour_everywhere(cube: xr.Dataset) -> None:
    for name in ("norms", "updates", "differential", "adjacent"):
        by_label = curves(PICTURES[name](cube))
        assert by_label["english"] == LANGUAGES["english"], name
        assert by_label["arabic"] == LANGUAGES["arabic"], name
    alone = cube.isel(sample=np.flatnonzero(cube.language.values == "arabic"))
    assert curves(plots.layer_norms(actkit.layer_norms(alone)))["arabic"] == LANGUAGES["arabic"]


def test_names_without_a_colour_of_their_own_get_others() -> None:
    by_name = colours(["french", "english", "german", "arabic"])
    assert len(set(by_name.values())) == 4
    assert colours(["german", "arabic", "french", "english"]) == by_name
    many = colours([f"l{at}" for at in range(12)])
    assert len(many) == 12


def test_norms_grow_on_a_logarithmic_axis(cube: xr.Dataset) -> None:
    plot = hv.renderer("bokeh").get_plot(PICTURES["norms"](cube)).state
    assert type(plot.y_scale).__name__ == "LogScale"


def test_arabic_reads_from_right_to_left(cube: xr.Dataset) -> None:
    def is_inverted(sample: int) -> bool:
        plot = hv.renderer("bokeh").get_plot(plots.tokens(cube, sample)).state
        return bool(plot.x_range.start > plot.x_range.end)

    assert cube.language.values[:2].tolist() == ["english", "arabic"]
    assert [is_inverted(sample) for sample in (0, 1)] == [False, True]


def test_a_samples_tokens_are_its_norms_with_its_text(cube: xr.Dataset) -> None:
    picture = plots.tokens(cube, 1)
    count = int(cube.n_tokens[1])
    values = picture.dimension_values(2, flat=False)
    np.testing.assert_allclose(values, np.log10(cube.norm.values[:, 1, :count]), rtol=1e-6)
    plot = hv.renderer("bokeh").get_plot(picture).state
    assert list(plot.xaxis[0].major_label_overrides.values()) == [f"ن{at}" for at in range(count)]
    with pytest.raises(KeyError, match="no sample 999"):
        plots.tokens(cube, 999)
    with pytest.raises(KeyError, match="no `nothing`"):
        plots.tokens(cube, 0, variable="nothing")


@pytest.mark.slow
def test_flagged_transitions_are_marked(cube: xr.Dataset) -> None:
    similarity, abrupt = actkit.adjacent_cka(cube).compute(), actkit.transitions(cube).compute()
    abrupt["change_point"][:] = abrupt["confirmed"][:] = False
    none = plots.adjacent_cka(similarity, abrupt).traverse(lambda mark: mark.label, [hv.Scatter])
    abrupt["change_point"][:, 3] = True
    abrupt["confirmed"][0, 3] = True
    marked = plots.adjacent_cka(similarity, abrupt).traverse(lambda mark: mark.label, [hv.Scatter])
    assert none == []
    assert marked == ["english: confirmed", "arabic: flagged"]


def test_the_projection_is_that_of_scikit_learn(cube: xr.Dataset) -> None:
    from sklearn.decomposition import PCA

    picture = plots.projection(cube, 2)
    points = np.concatenate([part.dframe()[["first", "second"]].to_numpy() for part in picture])
    wanted = PCA(2).fit_transform(cube.pooled.sel(layer=2).values.astype(np.float64))
    np.testing.assert_allclose(np.sort(np.abs(points), axis=0), np.sort(np.abs(wanted), axis=0), atol=1e-6)
