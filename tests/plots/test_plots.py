"""Every picture, drawn by both backends: what is on its axes, its colours, and which way it reads."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
import pytest
import xarray as xr
from PIL import Image

import actkit
from actkit import plots
from actkit.errors import InputError, MissingError
from actkit.plots.style import LANGUAGES, colours
from actkit.testing import write_cube
from tests.stats.conftest import planted

QUICK: dict[str, Any] = {"by": "gender", "permutations": 40, "seeds": 1}


@pytest.fixture(scope="module")
def cube(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return actkit.open_cube(planted(tmp_path_factory.mktemp("plots") / "run"))


@pytest.fixture(autouse=True, scope="module")
def matplotlib() -> None:
    plots.load_matplotlib()


def rated(cube: xr.Dataset) -> xr.Dataset:
    """Add a numeric label."""
    return cube.assign_coords(rating=("sample", cube.n_tokens.values * 0.5, {"label": True}))


def with_types(cube: xr.Dataset) -> xr.Dataset:
    """Add a type that several clusters share."""
    return cube.assign_coords(type=("sample", np.arange(cube.sizes["sample"]) // 2 % 9, {"label": True}))


def featured(cube: xr.Dataset) -> xr.Dataset:
    """Return features of the same samples, which are the positive dimensions of the residual stream."""
    value = cube.residual.rename(hidden="k").clip(min=0).fillna(0)
    index = xr.zeros_like(value, dtype=np.uint16) + xr.DataArray(np.arange(12, dtype=np.uint16), dims="k")
    sparse = cube.drop_vars(list(cube.data_vars)).assign(feature_value=value, feature_index=index)
    return sparse.assign_attrs(n_features=12)


def compared(cube: xr.Dataset) -> xr.Dataset:
    """Return which of these features differ between genders."""
    return actkit.feature_differential(featured(cube), by="gender", permutations=199, splits=1, cube=cube)


def rates(cube: xr.Dataset) -> xr.Dataset:
    """Return how often these features are active."""
    return actkit.feature_rates(featured(cube), by="gender")


PICTURES: dict[str, Callable[[xr.Dataset], Any]] = {
    "norms": lambda cube: plots.layer_norms(actkit.layer_norms(cube)),
    "norms by group": lambda cube: plots.layer_norms(actkit.layer_norms(cube, by="gender")),
    "updates": lambda cube: plots.layer_updates(actkit.layer_updates(cube)),
    "differential": lambda cube: plots.group_differential(actkit.group_differential(cube, **QUICK)),
    "what layers add": lambda cube: plots.auroc_difference(actkit.group_differential(cube, **QUICK)),
    "classes": lambda cube: plots.classification_probe(actkit.classification_probe(cube, **QUICK)),
    "numbers": lambda cube: plots.regression_probe(
        actkit.regression_probe(rated(cube), **{**QUICK, "by": "rating"})
    ),
    "selectivity": lambda cube: plots.selectivity(
        actkit.group_differential(with_types(cube), **QUICK, control="type")
    ),
    "layers": lambda cube: plots.layer_difference(actkit.group_differential(cube, **QUICK)),
    "erasure": lambda cube: plots.erasure_probe(
        actkit.erasure_probe(cube, by="gender", cluster="image_id", folds=2)
    ),
    "transfer": lambda cube: plots.transfer(actkit.transfer(cube, by="gender")),
    "directions": lambda cube: plots.direction_cosines(actkit.direction_cosines(cube, by="gender")),
    "cka": lambda cube: plots.cka(actkit.cka(cube)),
    "cka, errors": lambda cube: plots.cka(actkit.cka(cube), "se"),
    "adjacent": lambda cube: plots.adjacent_cka(actkit.adjacent_cka(cube), actkit.transitions(cube)),
    "languages": lambda cube: plots.language_cka(actkit.language_cka(cube)),
    "dimension": lambda cube: plots.intrinsic_dimension(actkit.intrinsic_dimension(cube)),
    "anisotropy": lambda cube: plots.anisotropy(actkit.anisotropy(cube, cluster="gender")),
    "similarity": lambda cube: plots.similarity(actkit.similarity(cube, permutations=3)),
    "similarity of languages": lambda cube: plots.similarity(
        actkit.similarity(cube, across="language", measure="rsa", permutations=3), "similarity"
    ),
    "measures of similarity": lambda cube: plots.similarity_measures(
        [actkit.similarity(cube, measure=name, permutations=3) for name in ("cka", "rsa")]
    ),
    "k-means": lambda cube: plots.kmeans(
        actkit.cluster_samples(cube, k=[2, 3], by="gender", resamples=1, permutations=3)
    ),
    "k-means of tokens": lambda cube: plots.kmeans(actkit.cluster_tokens(cube, k=2, layers=[3], resamples=1)),
    "correlation of tokens": lambda cube: plots.token_correlation(actkit.token_correlation(cube)),
    "correlation of norms": lambda cube: plots.token_correlation(
        actkit.token_correlation(cube, of="norm"), "spearman"
    ),
    "features": lambda cube: plots.feature_differential(compared(cube)),
    "numbers of features": lambda cube: plots.feature_counts(compared(cube)),
    "frequency of features": lambda cube: plots.feature_frequency(rates(cube)),
    "rates of features": lambda cube: plots.feature_rates(rates(cube), 3, [0, 3, 5]),
    "map of features": lambda cube: plots.feature_map(actkit.feature_map(featured(cube), layer=3, k=2)),
    "tokens": lambda cube: plots.tokens(cube, 0),
    "projection": lambda cube: plots.projection(cube, 3, by="gender"),
}


@pytest.fixture(scope="module")
def draw(cube: xr.Dataset) -> Callable[[str], Any]:
    """Draw a picture, once for all tests."""
    return cache(lambda name: PICTURES[name](cube))


@pytest.mark.slow
@pytest.mark.parametrize("name", PICTURES)
def test_both_backends_draw_it(draw: Callable[[str], Any], tmp_path: Path, name: str) -> None:
    picture = draw(name)
    assert hv.renderer("bokeh").get_plot(picture).state is not None
    plots.figure(picture, tmp_path / "x.png")
    pixels = np.asarray(Image.open(tmp_path / "x.png").convert("L"))
    assert min(pixels.shape) > 300
    assert pixels.std() > 10  # something is drawn


@pytest.mark.slow
def test_a_figure_is_written_as_svg(draw: Callable[[str], Any], tmp_path: Path) -> None:
    plots.figure(draw("norms"), tmp_path / "x.svg")
    assert (tmp_path / "x.svg").read_text(encoding="utf-8").lstrip().startswith("<?xml")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "norms",
        "differential",
        "what layers add",
        "selectivity",
        "erasure",
        "transfer",
        "adjacent",
        "languages",
        "dimension",
        "anisotropy",
        "similarity of languages",
        "numbers of features",
        "projection",
    ],
)
def test_axes_say_what_they_show(draw: Callable[[str], Any], name: str) -> None:
    plot = hv.renderer("bokeh").get_plot(draw(name)).state
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
def test_a_language_has_one_colour_everywhere(cube: xr.Dataset, draw: Callable[[str], Any]) -> None:
    for name in ("norms", "updates", "differential", "adjacent"):
        shown = curves(draw(name))
        assert shown["english"] == LANGUAGES["english"], name
        assert shown["arabic"] == LANGUAGES["arabic"], name
    alone = cube.isel(sample=np.flatnonzero(cube.language.values == "arabic"))
    assert curves(plots.layer_norms(actkit.layer_norms(alone)))["arabic"] == LANGUAGES["arabic"]


def test_names_without_a_colour_of_their_own_get_others() -> None:
    by_name = colours(["french", "english", "german", "arabic"])
    assert len(set(by_name.values())) == 4
    assert colours(["german", "arabic", "french", "english"]) == by_name
    many = colours([f"l{at}" for at in range(12)])
    assert len(many) == 12


def test_norms_grow_on_a_logarithmic_axis(draw: Callable[[str], Any]) -> None:
    plot = hv.renderer("bokeh").get_plot(draw("norms")).state
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
def test_change_points_are_marked(cube: xr.Dataset) -> None:
    similarity, abrupt = actkit.adjacent_cka(cube).compute(), actkit.transitions(cube).compute()
    abrupt["change_point"][:] = False
    none = plots.adjacent_cka(similarity, abrupt).traverse(lambda mark: mark.label, [hv.Scatter])
    abrupt["change_point"][0, 3] = True
    marked = plots.adjacent_cka(similarity, abrupt).traverse(lambda mark: mark.label, [hv.Scatter])
    assert none == []
    assert marked == ["english: change point"]


def test_the_projection_is_that_of_scikit_learn(cube: xr.Dataset) -> None:
    from sklearn.decomposition import PCA

    picture = plots.projection(cube, 2)
    points = np.concatenate([part.dframe()[["first", "second"]].to_numpy() for part in picture])
    wanted = PCA(2).fit_transform(cube.pooled.sel(layer=2).values.astype(np.float64))
    np.testing.assert_allclose(np.sort(np.abs(points), axis=0), np.sort(np.abs(wanted), axis=0), atol=1e-6)


@pytest.mark.slow
def test_layers_that_cannot_be_told_apart_are_left_out(cube: xr.Dataset) -> None:
    result = actkit.group_differential(cube, **QUICK).compute()
    picture = plots.layer_difference(result)
    values = picture.traverse(lambda part: part, [hv.QuadMesh])[0].dimension_values(2, flat=False)
    expected = result.layer_difference.where(result.layer_difference_p < 0.05).isel(language=0)
    np.testing.assert_allclose(values, expected)
    assert np.isnan(values).any()
    none = plots.layer_difference(result.isel(layer=[0, 1], layer_2=[0, 1]))
    assert [type(part).__name__ for part in none] == ["Text", "Text"]
    with pytest.raises(
        MissingError, match=r"no control tasks; compute it with group_differential\(…, control"
    ):
        plots.selectivity(result)


def test_directions_that_cannot_be_told_from_noise_are_named(tmp_path: Path) -> None:
    cube = actkit.open_cube(write_cube(tmp_path / "run", n_layers=3, n_samples=48))
    cosines = actkit.direction_cosines(cube, by="gender")
    assert cosines.layers_disattenuated.isnull().all()
    picture = plots.direction_cosines(cosines)
    hv.render(picture, backend="bokeh")
    plots.figure(picture, tmp_path / "undefined.png")
    assert [type(part).__name__ for part in picture] == ["Text", "Text", "Overlay"]


def test_a_volcano_shows_what_was_found(cube: xr.Dataset) -> None:
    result = compared(cube).compute()
    picture = plots.feature_volcano(result, language="english", labelled=2)
    part = result.sel(language="english")
    found, tested = part["q"] <= 0.05, part.live
    counts = {points.label: len(points) for points in picture.traverse(lambda points: points, [hv.Points])}
    assert counts["not found to differ"] == int((tested & ~found).sum())
    assert counts["more in male"] == int((found & (part.effect > 0)).sum()) > 0
    assert counts["more in female"] == int((found & (part.effect < 0)).sum())
    (labels,) = picture.traverse(lambda marks: marks, [hv.Labels])
    size = np.abs(part.effect).where(found)
    layer, feature = np.argwhere((size == size.max()).values)[0]
    assert labels.dimension_values("text")[0] == f"{layer}/{feature}"
    assert "1e-16 is drawn at 16" in hv.render(picture, backend="bokeh").yaxis.axis_label
    with pytest.raises(InputError, match="language: the result lacks 'french'"):
        plots.feature_volcano(result, language="french")
    with pytest.raises(InputError, match="has no AUROCs"):
        plots.feature_auroc(result.drop_vars("auroc_feature"))


def test_features_that_separate_perfectly_are_drawn(cube: xr.Dataset) -> None:
    result = compared(cube).compute()
    largest = float(np.abs(result.effect.where(result.live)).sel(language="english").max())
    layer, feature = np.argwhere((result["q"] <= 0.05).sel(language="english").values)[0]
    result.effect.loc[{"language": "english"}][layer, feature] = np.inf
    result["q"].loc[{"language": "english"}][layer, feature] = 0.001
    picture = plots.feature_volcano(result, language="english", labelled=1)
    drawn = {points.label: points for points in picture.traverse(lambda points: points, [hv.Points])}
    assert drawn["more in male"].dimension_values("effect").max() == pytest.approx(1.1 * largest)
    assert sum(map(len, drawn.values())) == int(result.live.sel(language="english").sum())
    (labels,) = picture.traverse(lambda marks: marks, [hv.Labels])
    assert labels.dimension_values("text").tolist() == [f"{layer}/{feature}"]


def test_frequencies_are_those_of_a_language_and_a_group(cube: xr.Dataset) -> None:
    found = rates(cube)
    picture = plots.feature_frequency(found)
    assert len(picture) == found.sizes["language"] > 1
    for part, language in zip(picture, found.language.values, strict=True):
        drawn = hv.render(part, backend="bokeh")
        chosen = (cube.language == language) & (cube.gender == found.gender.values[0])
        assert f"{int(chosen.sum())} samples" in drawn.xaxis.axis_label
        assert f"{language}, {found.gender.values[0]}" in drawn.title.text


def test_rates_of_unknown_features_are_errors(cube: xr.Dataset) -> None:
    with pytest.raises(
        InputError, match=r"layer: the result lacks 9[\s\S]*features: the result lacks \[12\]"
    ):
        plots.feature_rates(rates(cube), 9, [0, 12])
    with pytest.raises(InputError, match="measure: 'rate' is unknown"):
        plots.feature_rates(rates(cube), 3, [0], measure="rate")
