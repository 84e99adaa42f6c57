"""Parts of a cube give the same results as the whole cube, with positions in the whole cube."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError
from actkit.exporters.huggingface_dataset import layer_dataset


@pytest.fixture(scope="module")
def whole(planted_run: Path) -> xr.Dataset:
    return actkit.open_cube(planted_run).load()


@pytest.mark.parametrize("order", [slice(None, None, -1), [2, 0, 4, 1, 3]])
@pytest.mark.parametrize("statistic", [actkit.layer_updates, actkit.adjacent_cka, actkit.transitions])
def test_neighbours_are_neighbours_in_the_model(
    whole: xr.Dataset, statistic: Callable[[xr.Dataset], xr.Dataset], order: Any
) -> None:
    xr.testing.assert_allclose(statistic(whole.isel(layer=order)).compute(), statistic(whole).compute())


@pytest.mark.parametrize("dim", ["layer", "token"])
def test_repeated_coordinates_are_an_error(whole: xr.Dataset, dim: str) -> None:
    with pytest.raises(InputError, match=f"{dim}: 2 occurs more than once .*drop_duplicates"):
        actkit.layer_norms(whole.sel({dim: [2, 2, 3]}))


@pytest.mark.parametrize("tokens", [slice(2, None), slice(None, None, 3), slice(None, None, -1)])
def test_places_are_those_of_the_whole_cube(whole: xr.Dataset, tokens: slice) -> None:
    part = whole.isel(token=tokens)
    result = actkit.massive_activations(part, tokens="all").isel(layer=3, language=0).compute()
    place = {"sample": int(result.at_sample), "token": int(result.at_token)}
    value = whole.residual.sel(layer=3, **place).isel(hidden=int(result.at_hidden))
    assert abs(value.item()) == result["max"].item()
    rows = actkit.top_activating(part, layer=3, hidden=5, count=3)
    for row in rows.itertuples():
        assert whole.residual.sel(layer=3, sample=row.sample, token=row.position)[5].item() == row.value


@pytest.mark.parametrize("token", [0, 1, 4])
def test_pooled_vectors_do_not_depend_on_the_tokens_that_are_kept(whole: xr.Dataset, token: int) -> None:
    part = whole.isel(token=[token])
    xr.testing.assert_allclose(actkit.cka(part).compute(), actkit.cka(whole).compute())


def test_norms_of_some_dimensions_are_norms_of_these(whole: xr.Dataset) -> None:
    part = whole.isel(hidden=[3, 9])
    result = actkit.layer_norms(part, tokens="all")
    lengths = np.linalg.norm(part.residual.values.astype(np.float64), axis=-1)
    english = (whole.language == "english").values
    for layer in range(whole.sizes["layer"]):
        wanted = np.nanmean(lengths[layer, english])
        assert result["mean"].sel(language="english", layer=layer).item() == pytest.approx(wanted)
        assert result["rms"].sel(language="english", layer=layer).item() == pytest.approx(wanted / 2**0.5)


KINDS = {
    "Int64": lambda n: pd.array([1, None] * (n // 2), dtype="Int64"),
    "boolean": lambda n: pd.array([True, None] * (n // 2), dtype="boolean"),
    "string": lambda n: pd.array(["a", None] * (n // 2), dtype="string"),
    "category": lambda n: pd.Categorical(["a", "b"] * (n // 2)),
    "zone": lambda n: pd.DatetimeIndex(["2024-01-05", "2024-01-06"] * (n // 2), tz="UTC"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_arrays_of_pandas_are_labels(whole: xr.Dataset, kind: str) -> None:
    values = KINDS[kind](whole.sizes["sample"])
    cube = whole.assign_coords(extra=("sample", pd.Series(values)))
    result = actkit.layer_norms(cube, by="extra", resamples=9).compute()
    assert result.sizes["extra"] == len(pd.Series(values).dropna().unique())
    mean = actkit.layer_norms(whole, resamples=9)["mean"].compute()
    xr.testing.assert_allclose(actkit.layer_norms(cube, resamples=9)["mean"].compute(), mean)


@pytest.mark.parametrize("format", ["npz", "pt", "arrow", "safetensors"])
@pytest.mark.parametrize("tokens", [slice(0, 2), slice(2, None), [3]])
def test_some_tokens_are_exported(whole: xr.Dataset, tokens: Any, format: str, tmp_path: Path) -> None:
    part = whole.isel(token=tokens, sample=slice(0, 8))
    actkit.export(part, tmp_path / "out", format=format, layers="2")
    if format == "npz":
        with np.load(tmp_path / "out/layer_2/chunk_000000.npz") as chunk:
            held = (part.token < part.n_tokens).transpose("sample", "token").values
            np.testing.assert_array_equal(chunk["attention_mask"], held)
            wanted = np.where(held[..., None], part.residual.sel(layer=2).values, 0)
            np.testing.assert_array_equal(chunk["activations"], wanted)


def test_a_dataset_of_a_layer_takes_a_folder(planted_run: Path) -> None:
    with pytest.raises(InputError, match="give the run folder; this was opened from"):
        layer_dataset(actkit.open_cube(planted_run), layer=1)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_report_without_content_tokens(whole: xr.Dataset, tmp_path: Path) -> None:
    page = actkit.report(whole.isel(token=[0]), out=tmp_path / "report.html").read_text()
    assert "no content tokens" in page
