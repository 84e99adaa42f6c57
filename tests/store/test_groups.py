"""The group of the vision tower: its own axes, the samples of the cube."""

from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import pytest
import xarray as xr

from actkit import open_cube
from actkit.errors import CubeError, IncompleteError
from actkit.schema import VARIABLES, VISION
from actkit.testing import Synthetic, write_cube


def test_the_vision_tower_has_axes_of_its_own_and_the_samples_of_the_cube(
    tower: xr.Dataset, cube: xr.Dataset, numbers: Synthetic
) -> None:
    assert dict(tower.sizes) == {"layer": 2, "sample": 10, "token": 7, "hidden": 4}
    assert set(tower.data_vars) == {"residual", "norm", "pooled", "nonfinite"}
    np.testing.assert_array_equal(tower.n_tokens, numbers.values["vision/n_tokens"])
    assert (tower.n_tokens != cube.n_tokens).any()
    for name in tower.coords.keys() - {"n_tokens", "layer", "token"}:
        xr.testing.assert_identical(tower[name].variable, cube[name].variable)
    # what the decoder's tokens or layers say is not said of patches
    assert cube.coords.keys() - tower.coords.keys() == {
        *("token_id", "token_kind", "token_text", "position"),
        *("has_residual", "has_attention", "has_mlp"),
    }
    assert tower.attrs == cube.attrs | {"hidden_size": 4}
    assert tower.encoding == cube.encoding


def test_patches_are_grouped_and_selected_by_what_is_known_of_their_samples(
    tower: xr.Dataset, numbers: Synthetic
) -> None:
    patches = numbers.values["vision/residual"]
    rows = numbers.labels["gender"] == "female"
    means = tower.pooled.groupby("gender").mean()
    np.testing.assert_allclose(
        means.sel(gender="female"), patches[:, rows].mean(axis=(1, 2)), rtol=1e-4, atol=1e-6
    )
    np.testing.assert_array_equal(tower.residual.sel(layer=1, sample=9), patches[1, 9])


def test_patches_are_lazy(tower: xr.Dataset) -> None:
    for name, variable in {**tower.variables}.items():
        assert dask.is_dask_collection(variable) == (variable.ndim > 1), name
    assert set(tower.residual.chunksizes["layer"]) == {1}


@pytest.mark.parametrize("group", ["visions", "residual", "vision/residual", "/"])
def test_a_group_that_is_not_there(intact: Path, tmp_path: Path, group: str) -> None:
    with pytest.raises(CubeError, match=f"has no group `{group}`; it has vision$"):
        open_cube(intact, group=group)
    with pytest.raises(CubeError, match=f"has no group `{group}`; it has no groups$"):
        open_cube(write_cube(tmp_path), group=group)


ROWS = [range(4), range(4, 8), range(8, 10)]


@pytest.mark.slow
@pytest.mark.parametrize("windows", [[0, 1], [0, 2], [2], []], ids=str)
def test_a_part_of_the_vision_tower(
    run: Path,
    numbers: Synthetic,
    written: dict[str, np.ndarray],
    uncommit: Callable[[int], None],
    windows: list[int],
) -> None:
    for window in {0, 1, 2} - set(windows):
        uncommit(window)
    rows = [row for window in windows for row in ROWS[window]]
    with pytest.raises(IncompleteError):
        open_cube(run, group=VISION)
    tower = open_cube(run, group=VISION, partial=True)
    assert dict(tower.sizes) == {"layer": 2, "sample": len(rows), "token": 7, "hidden": 4}
    for name in ("residual", "norm", "pooled", "nonfinite", "n_tokens"):
        variable = VARIABLES[f"vision/{name}"]
        expected = numbers.values[variable.name].take(rows, axis=variable.sample_axis)
        np.testing.assert_array_equal(tower[name], expected, err_msg=name)
    for name in ("sample_id", "text", "gender", "generated"):
        np.testing.assert_array_equal(tower[name], written[name][rows], err_msg=name)
