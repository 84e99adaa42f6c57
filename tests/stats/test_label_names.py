"""A label may have any name, also one that a result uses for a dimension or a variable of its own."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.reports.kmeans_section import clusters_of, of_kmeans
from actkit.testing import write_cube, write_features

FEW = {"folds": 2, "seeds": 1}

# each returns a result for the label of that name; `features` needs a cube of features
STATISTICS: dict[str, Callable[[xr.Dataset, str], xr.Dataset]] = {
    "classification_probe": lambda cube, by: actkit.classification_probe(cube, by=by, permutations=2, **FEW),
    "cluster_samples": lambda cube, by: actkit.cluster_samples(
        cube, k=[2, 3], by=by, resamples=1, permutations=3
    ),
    "cluster_tokens": lambda cube, by: actkit.cluster_tokens(cube, k=2, by=by, resamples=1, permutations=3),
    "direction_cosines": lambda cube, by: actkit.direction_cosines(cube, by=by, splits=3),
    "feature_differential": lambda cube, by: actkit.feature_differential(
        cube, by=by, permutations=9, splits=2
    ),
    "feature_rates": lambda cube, by: actkit.feature_rates(cube, by=by),
    "group_directions": lambda cube, by: actkit.group_directions(cube, by=by),
    "group_differential": lambda cube, by: actkit.group_differential(cube, by=by, permutations=2, **FEW),
    "layer_norms": lambda cube, by: actkit.layer_norms(cube, by=by, resamples=20),
    "layer_updates": lambda cube, by: actkit.layer_updates(cube, by=by, resamples=20),
    "transfer": lambda cube, by: actkit.transfer(cube, by=by, **FEW),
}
OF_FEATURES = {"feature_differential", "feature_rates"}


@pytest.fixture(scope="module")
def cubes(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, xr.Dataset]:
    """Return a cube of vectors, and one of features, in memory."""
    runs: Path = tmp_path_factory.mktemp("runs")
    options = {"n_layers": 2, "n_samples": 40, "n_tokens": 4, "window": 40}
    return {
        False: actkit.open_cube(write_cube(runs / "vectors", hidden=6, **options)).load(),
        True: actkit.open_cube(write_features(runs / "features", n_features=12, k=4, **options)).load(),
    }


def _names(result: xr.Dataset) -> list[str]:
    """Return the names of dimensions and two of the variables, except those that no label may have."""
    reserved = {"layer", "sample", "token", "hidden", "language", "gender"}
    return [str(name) for name in [*result.dims, *list(result.data_vars)[:2]] if name not in reserved]


@pytest.mark.parametrize("statistic", list(STATISTICS))
def test_a_label_may_have_the_name_of_a_dimension(cubes: dict[bool, xr.Dataset], statistic: str) -> None:
    cube = cubes[statistic in OF_FEATURES]
    expected = STATISTICS[statistic](cube, "gender").compute()
    for name in _names(expected):
        result = STATISTICS[statistic](cube.rename(gender=name), name).compute()
        assert set(result.data_vars) == set(expected.data_vars), name
        for variable, values in expected.data_vars.items():
            np.testing.assert_array_equal(
                result[variable].values, values.values, err_msg=f"{name}: {variable}"
            )
        assert len(result.indexes) == len(expected.indexes), name


def test_the_report_counts_a_label_named_label(cubes: dict[bool, xr.Dataset]) -> None:
    cube = cubes[False].rename(gender="label")
    result = actkit.cluster_samples(cube, k=2, layers=[1], by="label", resamples=1, permutations=3)
    assert all(
        re.search("agreement with label: (negligible, )?adjusted Rand index", sentence)
        for sentence in of_kmeans(result)
    )
    table = clusters_of(result, {"label": cube.label.values})
    counted = table[["label: female", "label: male"]]
    np.testing.assert_array_equal(counted.sum(axis=1), table["samples"])
