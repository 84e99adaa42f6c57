"""top_activating: the tokens with the largest activation along a dimension or direction."""

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError, MissingError
from tests.stats.sparse_cubes import twins


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


def test_a_feature() -> None:
    sparse, dense = twins()
    arabic = np.array([["مرحبا", " ", "يا", " رجل"]] * 80, dtype=object)
    sparse = sparse.assign_coords(token_text=(("sample", "token"), arabic))
    result = actkit.top_activating(sparse, layer=1, feature=3, count=7)
    values = dense[1, ..., 3]
    np.testing.assert_allclose(result.value, np.sort(values, axis=None)[::-1][:7], rtol=1e-6)
    sample, token = np.unravel_index(values.argmax(), values.shape)
    assert (result["sample"][0], result.position[0]) == (sample, token)
    assert result.context[0] == "".join(
        f"⟦{text}⟧" if at == token else text
        for at, text in enumerate(arabic[0][: int(sparse.n_tokens[sample])])
    )
    assert result.pair[0] == sparse.pair.values[sample]
    active = actkit.top_activating(sparse, layer=1, feature=3, count=10_000)
    assert len(active) == (values > 0).sum()
    least = actkit.top_activating(sparse, layer=1, feature=3, count=1, lowest=True)
    assert least.value[0] == pytest.approx(values[values > 0].min(), rel=1e-6)
    lazy = actkit.top_activating(sparse.chunk(sample=9), layer=1, feature=3, count=7)
    assert lazy.equals(result)


def test_invalid_features_are_errors(cube: xr.Dataset) -> None:
    sparse, _ = twins()
    with pytest.raises(MissingError, match=r"no `feature_index`; .*actkit\.encode"):
        actkit.top_activating(cube, layer=0, feature=3)
    with pytest.raises(InputError, match=r"feature: the cube lacks 30 \(0 to 29\)"):
        actkit.top_activating(sparse, layer=0, feature=30)
    with pytest.raises(InputError, match="exactly one of them is required"):
        actkit.top_activating(sparse, layer=0, feature=3, hidden=2)
    with pytest.raises(MissingError, match="no `residual`"):
        actkit.top_activating(sparse, layer=0, hidden=2)
