"""Missing labels form no group, whatever their origin; numbers stay numbers; labels may have any name."""

from collections.abc import Callable
from datetime import date, datetime
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import actkit
from actkit import plots
from actkit.errors import InputError
from actkit.labels import LabelType, typed
from actkit.reports.findings import of_transfer
from actkit.reports.sections import Choice, sections
from actkit.reports.summaries import compute
from actkit.stats.groups import Groups, label_text
from actkit.stats.selection import cluster_choice
from actkit.testing import write_cube

QUICK = {"permutations": 20, "seeds": 1}
NAN = float("nan")
DAYS = [date(2024, 7, 26), date(2024, 7, 27)]
MIDNIGHTS = [np.datetime64(day, "ns") for day in DAYS]

# where a column comes from: its gap, its two values and dtype; and the type of the groups
ORIGINS: dict[str, tuple[Any, list[Any], Any, type]] = {
    "text of a CSV file": ("", ["a", "b"], object, object),
    "numbers of a CSV file": ("", ["9", "10"], object, object),
    "None": (None, ["a", "b"], object, object),
    "NaN among texts": (NAN, ["a", "b"], object, object),
    "pandas.NA": (pd.NA, [0, 1], object, np.int64),
    "NaN among numbers": (NAN, [0, 1], float, np.int64),
    "fractions": (NAN, [0.5, 1.5], float, np.float64),
    "booleans": (None, [False, True], object, np.bool_),
    "NaT": (np.datetime64("NaT", "ns"), MIDNIGHTS, "datetime64[ns]", np.datetime64),
    "dates": (None, DAYS, object, np.datetime64),
    "fixed-width strings": ("", ["a", "b"], "U1", object),
    "variable-width strings": ("", ["a", "b"], np.dtypes.StringDType(), object),
}


@pytest.fixture(scope="module")
def known(cube: xr.Dataset) -> xr.Dataset:
    return cube.compute()


@pytest.fixture(scope="module")
def gaps(known: xr.Dataset) -> np.ndarray:
    result = np.random.default_rng(3).random(known.sizes["sample"]) < 0.2
    result[0] = False  # keep the order of languages when the other samples are dropped
    return result


# one origin for each type of groups
SOME = ("text of a CSV file", "pandas.NA", "fractions", "booleans", "dates")


@pytest.fixture(
    params=[pytest.param(name, marks=() if name in SOME else pytest.mark.nightly) for name in ORIGINS]
)
def labelled(
    request: pytest.FixtureRequest, known: xr.Dataset, gaps: np.ndarray
) -> tuple[xr.Dataset, list[Any]]:
    """A cube with a label `kind` that mirrors `gender` for some samples, and its two values."""
    gap, values, dtype, _ = ORIGINS[request.param]
    second = (known.gender.values == "male").tolist()
    cells = [gap if is_gap else values[own] for is_gap, own in zip(gaps, second, strict=True)]
    return known.assign_coords(kind=("sample", np.array(cells, dtype), {"label": True})), values


@pytest.mark.parametrize("origin", ORIGINS)
def test_groups_have_the_type_and_order_of_their_values(origin: str) -> None:
    gap, values, dtype, wanted = ORIGINS[origin]
    groups = Groups.of(np.array([values[1], gap, values[0], values[1]], dtype))
    assert groups.codes.tolist() == [1, -1, 0, 1]
    assert groups.texts == [label_text(value) for value in values]
    assert issubclass(groups.values.dtype.type, wanted if wanted is not object else np.object_)
    assert [groups.find(value) for value in values] == [0, 1]
    assert [groups.find(label_text(value)) for value in values] == [0, 1]
    assert groups.find("another") is None


BERLIN = pd.Timestamp("2024-01-05T12:30", tz="Europe/Berlin")
# cells as Parquet gives them, what names the last of them, and what names none
MOMENTS: dict[str, tuple[list[Any], list[Any], list[Any]]] = {
    "days": (
        [None, datetime(2024, 1, 4), datetime(2024, 1, 5)],
        [date(2024, 1, 5), datetime(2024, 1, 5), pd.Timestamp(2024, 1, 5), "2024-01-05"],
        [datetime(2024, 1, 5, 1), pd.Timestamp(2024, 1, 5, tz="UTC"), pd.NaT],
    ),
    "times": (
        [datetime(2024, 1, 4, 9, 30), datetime(2024, 1, 5)],
        [date(2024, 1, 5), datetime(2024, 1, 5), pd.Timestamp(2024, 1, 5), np.datetime64("2024-01-05", "ns")],
        [date(2024, 1, 4)],
    ),
    "nanoseconds": (
        [pd.Timestamp(1), pd.Timestamp(2)],
        [pd.Timestamp(2), np.datetime64(2, "ns")],
        [datetime(1970, 1, 1), pd.Timestamp(3)],
    ),
    "in a zone": (
        [BERLIN.normalize(), BERLIN],
        [BERLIN, BERLIN.to_pydatetime(), BERLIN.tz_convert("UTC"), BERLIN.isoformat()],
        [BERLIN.tz_localize(None), date(2024, 1, 5)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MOMENTS)
def test_dates_that_a_cube_holds_as_text_are_named_as_dates(name: str) -> None:
    cells, same, others = MOMENTS[name]
    kind = LabelType()
    for cell in cells:
        kind.add(cell)
    groups = Groups.of(typed(cells, kind.dtype))
    last = len(groups.values) - 1
    assert [groups.find(value) for value in same] == [last] * len(same)
    assert [groups.find(value) for value in others] == [None] * len(others)
    by_hand = Groups.of(np.array(cells, object))  # as in a Dataset of datetime64
    assert by_hand.find(same[0]) == last


def test_ambiguous_timestamp_matches_no_value() -> None:
    groups = Groups.of(np.array(["2024-01-05", "2024-01-05 00:00:00", "5"], object))
    assert groups.find(date(2024, 1, 5)) is None
    assert groups.find("2024-01-05 00:00:00") == 1


@pytest.mark.slow
def test_norms_and_updates_leave_samples_without_a_label_out(
    labelled: tuple[xr.Dataset, list[Any]], gaps: np.ndarray
) -> None:
    cube, values = labelled
    kept = cube.isel(sample=np.flatnonzero(~gaps))
    for statistic in (actkit.layer_norms, actkit.layer_updates):
        result = statistic(cube, by="kind", resamples=20)
        wanted = statistic(kept, by="gender", resamples=20)
        for name in result.data_vars:
            np.testing.assert_array_equal(result[name].values, wanted[name].values)
    # by hand, for one group, language and layer
    rows = (cube.language.values == "english") & (cube.gender.values == "male") & ~gaps
    counted = cube.norm.values[1][rows][cube.token_kind.values[rows] == 3]
    result = actkit.layer_norms(cube, by="kind", resamples=5)["mean"]
    own = float(result.sel(language="english", layer=1).isel(kind=1))
    assert own == pytest.approx(counted.mean())
    if type(values[1]) is not date:  # pandas cannot look these up in a date index
        assert float(result.sel(language="english", layer=1, kind=values[1])) == own
    plots.layer_norms(actkit.layer_norms(cube, by="kind", resamples=5))
    plots.projection(cube, 1, by="kind")


@pytest.mark.slow
def test_comparisons_leave_samples_without_a_label_out(
    labelled: tuple[xr.Dataset, list[Any]], gaps: np.ndarray
) -> None:
    cube, values = labelled
    cube = cube.isel(layer=[0, 2])
    kept = cube.isel(sample=np.flatnonzero(~gaps))
    for statistic, options in (
        (actkit.group_differential, {"permutations": 4, "folds": 2, "seeds": 1}),
        (actkit.transfer, {"folds": 2}),
        (actkit.direction_cosines, {"splits": 2}),
    ):
        result = statistic(cube, by="kind", **options)
        wanted = statistic(kept, by="gender", **options)
        assert result.attrs["between"] == " to ".join(map(label_text, values))
        for one, two in zip(result.data_vars.values(), wanted.data_vars.values(), strict=True):
            np.testing.assert_allclose(one.values, two.values, rtol=1e-12)
    for labels in (tuple(values), tuple(map(label_text, values))):
        xr.testing.assert_identical(
            result, actkit.direction_cosines(cube, by="kind", between=labels, splits=2)
        )


def test_labels_that_are_numbers_can_be_named_as_numbers(known: xr.Dataset) -> None:
    second = (known.gender.values == "male").astype(int)
    for cells in (second, second.astype(str).astype(object), second.astype(bool), second.astype(float)):
        cube = known.assign_coords(kind=("sample", cells, {"label": True}))
        result = actkit.direction_cosines(cube, by="kind", between=(0, 1), splits=2)
        np.testing.assert_allclose(
            result["layers"], actkit.direction_cosines(known, by="gender", splits=2)["layers"]
        )


def test_transfer_across_a_label_leaves_samples_without_it_out(known: xr.Dataset, gaps: np.ndarray) -> None:
    cube = known.isel(layer=[0, 2])
    year = np.where(gaps, np.nan, np.where(cube.language.values == "english", 2023, 2024))
    own = cube.assign_coords(year=("sample", year, {"label": True}))
    result = actkit.transfer(own, by="gender", across="year", folds=3)
    wanted = actkit.transfer(cube.isel(sample=np.flatnonzero(~gaps)), by="gender", folds=3)
    np.testing.assert_allclose(result.auroc, wanted.auroc)
    assert result.train.values.tolist() == [2023, 2024]
    assert result.train.dtype == np.int64
    days = np.array(["NaT" if np.isnan(own) else f"{own:.0f}-01-01" for own in year], "datetime64[ns]")
    result = actkit.transfer(own.assign_coords(day=("sample", days)), by="gender", across="day", folds=3)
    np.testing.assert_allclose(result.auroc, wanted.auroc)
    assert [label_text(day) for day in result.test.values] == ["2023-01-01", "2024-01-01"]
    plots.transfer(result)
    assert len(of_transfer(result.compute())) == 2


def paired(known: xr.Dataset, gaps: np.ndarray, origin: str) -> xr.Dataset:
    """Return a cube with a label `scene` with gaps, and `alone`, in which each gap has a unique value."""
    numbers = np.arange(known.sizes["sample"]) // 8
    cells = [None if gap else int(number) for gap, number in zip(gaps, numbers, strict=True)]
    written = {
        "": lambda: np.array(["" if cell is None else f"{cell:03}" for cell in cells], object),
        "NaN": lambda: np.array([NAN if cell is None else cell for cell in cells]),
        "None": lambda: np.array(cells, object),
        "pandas.NA": lambda: np.array([pd.NA if cell is None else f"{cell:03}" for cell in cells], object),
        "NaT": lambda: np.array(
            ["NaT" if cell is None else np.datetime64("2024-01-01") + cell for cell in cells],
            "datetime64[ns]",
        ),
    }[origin]()
    names = known.sample_id.values.astype(str)
    alone = [
        f"~{name}" if gap else f"{number:03}" for gap, number, name in zip(gaps, numbers, names, strict=True)
    ]
    return known.assign_coords(
        scene=("sample", written, {"label": True}), alone=("sample", np.array(alone, object), {"label": True})
    )


def check_clusters(cube: xr.Dataset, statistic: Callable[..., xr.Dataset], **options: Any) -> None:
    lacking = int(pd.Series(cube.alone.values).str.startswith("~").sum())
    message = f"`scene` is missing for {lacking} of {cube.sizes['sample']} samples; each is treated as"
    with pytest.warns(UserWarning, match=message):
        result = statistic(cube, cluster="scene", **options).compute()
    wanted = statistic(cube, cluster="alone", **options).compute()
    for name in result.data_vars:
        np.testing.assert_allclose(result[name].values, wanted[name].values, rtol=1e-9, err_msg=str(name))


@pytest.mark.parametrize("origin", ["", "NaN", "None", "pandas.NA", "NaT"])
def test_samples_without_an_entry_in_cluster_are_independent_and_counted(
    origin: str, known: xr.Dataset, gaps: np.ndarray
) -> None:
    check_clusters(paired(known, gaps, origin).isel(layer=[0, 2]), actkit.adjacent_cka, variants=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statistic", "options"),
    [
        (actkit.cka, {}),
        (actkit.cka, {"vectors": "tokens"}),
        (actkit.adjacent_cka, {"vectors": "tokens"}),
        (actkit.language_cka, {}),
        (actkit.transitions, {}),
        (actkit.group_differential, {"by": "gender", **QUICK}),
        (actkit.direction_cosines, {"by": "gender", "splits": 5}),
        (actkit.transfer, {"by": "gender", "folds": 3}),
    ],
    ids=lambda case: getattr(case, "__name__", ""),
)
def test_every_statistic_takes_clusters_with_gaps(
    statistic: Callable[..., xr.Dataset], options: dict[str, Any], known: xr.Dataset, gaps: np.ndarray
) -> None:
    check_clusters(paired(known, gaps, "").isel(layer=[0, 1, 2, 3]), statistic, **options)


def test_default_cluster_label_ignores_gaps(known: xr.Dataset) -> None:
    some = np.where(np.arange(known.sizes["sample"]) % 2, "", known.image_id.values.astype(object))
    cube = known.assign_coords(scene=("sample", some, {"label": True}))
    assert cluster_choice(cube, by="gender") == cluster_choice(known, by="gender")


def test_labels_of_several_types_are_refused(known: xr.Dataset) -> None:
    cells = np.array([1, "1"] * (known.sizes["sample"] // 2), object)
    cube = known.assign_coords(kind=("sample", cells, {"label": True}))
    with pytest.raises(InputError, match="`kind` holds int, str, which cannot be compared"):
        actkit.layer_norms(cube, by="kind")


def test_a_label_that_no_sample_has_is_refused(known: xr.Dataset) -> None:
    cube = known.assign_coords(kind=("sample", np.full(known.sizes["sample"], np.nan), {"label": True}))
    with pytest.raises(InputError, match="no sample has a value of `kind`"):
        actkit.layer_norms(cube, by="kind")


# names


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> xr.Dataset:
    return actkit.open_cube(write_cube(tmp_path_factory.mktemp("small"), n_samples=8, hidden=4)).compute()


def few_layers(cube: xr.Dataset, **options: Any) -> xr.Dataset:
    return actkit.layer_subset(actkit.layer_norms, cube, layers=(0, 2), **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statistic", "names"),
    [
        (actkit.layer_norms, ["mean", "rms", "low", "max", "n_outliers", "summary", "group", "n", "ن"]),
        (actkit.layer_updates, ["cosine", "cosine_high", "update_norm", "mean"]),
        (few_layers, ["mean", "mean_few", "rms_peak_few", "low_missed_at"]),
    ],
    ids=["norms", "updates", "few layers"],
)
def test_a_label_may_have_the_name_of_anything_in_a_result(
    statistic: Callable[..., xr.Dataset], names: list[str], small: xr.Dataset
) -> None:
    wanted = statistic(small, by="gender", resamples=2)
    for name in names:
        cube = small.assign_coords({name: ("sample", small.gender.values, {"label": True})})
        result = statistic(cube, by=name, resamples=2)
        assert result.attrs["by"] == name
        assert result.attrs["group_dim"] == (f"{name}_label" if name in wanted.variables else name)
        xr.testing.assert_equal(result.rename({result.attrs["group_dim"]: "gender"}), wanted)
        if statistic is not few_layers:
            getattr(plots, statistic.__name__)(result)


def test_a_table_of_tokens_has_each_column_once(small: xr.Dataset) -> None:
    labels = {name: ("sample", small.gender.values, {"label": True}) for name in ("value", "context", "mean")}
    table = actkit.top_activating(small.assign_coords(labels), layer=1, hidden=3, count=4)
    assert table.columns.is_unique
    for name in ("value_label", "context_label", "mean"):
        assert table[name].tolist() == table["gender"].tolist()


def test_coordinates_of_the_cube_may_tell_groups_too(known: xr.Dataset) -> None:
    for name in ("language", "n_tokens", "truncated", "prompt_tokens"):
        norms = actkit.layer_norms(known, by=name, resamples=2)
        assert norms.attrs["group_dim"] == (f"{name}_label" if name in ("language", "n_tokens") else name)
        rows = (known.language.values == "english") & (known.n_tokens.values == 6)
        if name == "n_tokens":
            counted = known.norm.values[0][rows][known.token_kind.values[rows] == 3]
            assert float(norms["mean"].sel(language="english", n_tokens_label=6, layer=0)) == pytest.approx(
                counted.mean()
            )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is missing for")
def test_a_report_takes_a_label_of_any_name_and_type(known: xr.Dataset, gaps: np.ndarray) -> None:
    second = (known.gender.values == "male").astype(float)
    cube = known.assign_coords(mean=("sample", np.where(gaps, np.nan, second), {"label": True}))
    small = cube.isel(layer=[0, 2])
    made = {
        section.name: (section, noted)
        for section, noted in sections(small, Choice("mean", None, "pooled"), partial(compute, small))
    }
    assert made["norms"][0].results["norms_by_group"].attrs["group_dim"] == "mean_label"
    assert "group_differential" in made["groups"][0].pictures
    assert made["groups"][1] == []


def test_tables_keep_integers_where_there_are_gaps(known: xr.Dataset, gaps: np.ndarray) -> None:
    for cells, dtype in (
        (np.where(gaps, np.nan, 3.0), "Int64"),
        (np.array([None if gap else True for gap in gaps], object), "boolean"),
    ):
        cube = known.assign_coords(kind=("sample", cells, {"label": True}))
        table = actkit.top_activating(cube, layer=1, hidden=3, count=40)
        assert str(table.kind.dtype) == dtype
        assert table.kind.isna().tolist() == gaps[table["sample"].to_numpy()].tolist()


def test_whole_numbers_sort_as_numbers_and_others_as_text() -> None:
    assert Groups.of(np.array(["10", "9", "-1"], object)).values.tolist() == ["-1", "9", "10"]
    assert Groups.of(np.array(["10", "9", "09"], object)).values.tolist() == ["09", "10", "9"]
    assert Groups.of(np.array([10.0, 9.0, NAN])).values.tolist() == [9, 10]
    assert Groups.of(np.array([2.0**70, 9.0])).values.dtype == float
    assert Groups.of(np.array([1.0, 0.0, NAN]), "bool").texts == ["False", "True"]
    moments = np.array(["2024-07-26T12:30:00", "2024-07-26"], "datetime64[s]")
    assert Groups.of(moments).texts == ["2024-07-26", "2024-07-26T12:30:00"]
