"""top_activating: the tokens with the largest activation along a dimension or direction."""

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError


def values_of(cube: xr.Dataset, layer: int, direction: np.ndarray) -> np.ndarray:
    own = cube.residual.sel(layer=layer).values.astype(np.float64) @ direction
    return np.where(cube.token_kind.values == 3, own, -np.inf)


def test_a_dimension(cube: xr.Dataset, shuffled: xr.Dataset) -> None:
    result = actkit.top_activating(cube, layer=2, hidden=4, count=7)
    values = values_of(cube, 2, np.eye(12)[4])
    np.testing.assert_allclose(result.value, np.sort(values, axis=None)[::-1][:7], rtol=1e-12)
    first = result.iloc[0]
    sample, token = np.unravel_index(values.argmax(), values.shape)
    assert (first["sample"], first.position) == (sample, token)
    assert first.token == f"ن{token}"
    assert f"⟦ن{token}⟧" in first.context
    assert first.text == cube.text.values[sample]
    assert first.gender == cube.gender.values[sample]
    again = actkit.top_activating(shuffled, layer=2, hidden=4, count=7)
    assert again["sample"].tolist() == result["sample"].tolist()


def test_a_direction_and_the_lowest(cube: xr.Dataset) -> None:
    direction = np.arange(12.0)
    highest = actkit.top_activating(cube, layer=0, direction=direction, count=3)
    lowest = actkit.top_activating(cube, layer=0, direction=-direction, count=3, lowest=True)
    np.testing.assert_allclose(highest.value, -lowest.value)
    assert highest["sample"].tolist() == lowest["sample"].tolist()
    values = values_of(cube, 0, direction / np.linalg.norm(direction))
    assert highest.value[0] == pytest.approx(values.max())


@pytest.mark.slow
def test_which_tokens_count(cube: xr.Dataset) -> None:
    result = actkit.top_activating(cube, layer=0, hidden=0, tokens="first", count=1000)
    assert len(result) == cube.sizes["sample"]
    assert (result.position == 0).all()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": 9, "hidden": 0}, "layer: the cube lacks 9"),
        ({"layer": 0}, "exactly one of them is required"),
        ({"layer": 0, "hidden": 0, "direction": np.ones(12)}, "exactly one of them is required"),
        ({"layer": 0, "hidden": 12}, "hidden: 12 is not a dimension of the cube"),
        ({"layer": 0, "direction": np.ones(3)}, r"direction: has shape \(3,\)"),
        ({"layer": 0, "direction": np.zeros(12)}, "direction: .* nonzero vector of length 12"),
    ],
)
def test_invalid_searches_are_errors(cube: xr.Dataset, options: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        actkit.top_activating(cube, **options)  # type: ignore[arg-type]
