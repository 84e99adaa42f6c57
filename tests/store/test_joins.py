"""Joined cubes: the values of their runs, read or written, and what does not fit is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit import join, open_cube, verify
from actkit.errors import IncompleteError, InputError
from actkit.testing import write_cube


def assert_same(first: xr.Dataset, second: xr.Dataset) -> None:
    assert set(first.variables) == set(second.variables)
    for name in first.variables:
        assert first[name].dtype == second[name].dtype, name
        assert first[name].dims == second[name].dims, name
        np.testing.assert_array_equal(first[name].values, second[name].values, err_msg=str(name))


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two languages, one of which has longer texts."""
    return [
        str(
            write_cube(
                tmp_path / language, languages=[language], n_tokens=n_tokens, n_samples=6, seed=n_tokens
            )
        )
        for language, n_tokens in (("english", 5), ("arabic", 9))
    ]


def test_samples(runs: list[str], tmp_path: Path) -> None:
    cubes = [open_cube(run) for run in runs]
    lazy = join(runs, dim="sample")
    assert lazy.sample.values.tolist() == list(range(12))
    assert lazy.sizes["token"] == cubes[1].sizes["token"]
    for cube, part in zip(
        cubes, (lazy.isel(sample=slice(0, 6)), lazy.isel(sample=slice(6, 12))), strict=True
    ):
        tokens = cube.sizes["token"]
        np.testing.assert_array_equal(part.residual.values[:, :, :tokens], cube.residual.values)
        assert np.isnan(part.residual.values[:, :, tokens:]).all()
        assert (part.token_kind.values[:, tokens:] == 0).all()
        assert (part.token_text.values[:, tokens:] == "").all()
        assert part.language.values.tolist() == cube.language.values.tolist()
    written = join(runs, dim="sample", out=tmp_path / "both")
    assert_same(lazy, written)
    assert verify(tmp_path / "both").ok
    assert lazy.residual.chunks is not None


def test_statistics_of_a_joined_cube(runs: list[str]) -> None:
    norms = actkit.layer_norms(join(runs, dim="sample"))["mean"]
    for run, language in zip(runs, ("english", "arabic"), strict=True):
        own = actkit.layer_norms(open_cube(run))["mean"].sel(language=language)
        np.testing.assert_allclose(norms.sel(language=language).values, own.values, rtol=1e-6)


def test_the_origin_is_recorded(runs: list[str], tmp_path: Path) -> None:
    written = join(runs, dim="sample", out=tmp_path / "both")
    origin = json.loads(written.attrs["joined_from"])
    assert origin["dim"] == "sample"
    seals = [open_cube(run).attrs["metadata_sha256"] for run in runs]
    assert [run["metadata_sha256"] for run in origin["runs"]] == seals
    assert join(runs, dim="sample").attrs["metadata_sha256"] not in (*seals, written.attrs["metadata_sha256"])
    reverse = join(runs[::-1], dim="sample")
    assert reverse.attrs["metadata_sha256"] != join(runs, dim="sample").attrs["metadata_sha256"]


def test_joined_cubes_are_joined(runs: list[str], tmp_path: Path) -> None:
    join(runs, dim="sample", out=tmp_path / "both")
    third = str(write_cube(tmp_path / "french", languages=["french"], seed=3))
    cube = join([tmp_path / "both", third], dim="sample")
    assert cube.sizes["sample"] == 20
    assert dict.fromkeys(cube.language.values) == dict.fromkeys(["english", "arabic", "french"])


@pytest.mark.parametrize(
    ("options", "dim", "where"),
    [
        ({}, "sample", "sample_id"),
        ({}, "layer", "layers"),
        ({"languages": ["french"]}, "layer", "language"),
        ({"n_samples": 4}, "layer", "language"),
        ({"n_layers": 2, "languages": ["french"]}, "sample", "layers"),
    ],
)
def test_what_does_not_fit_is_named(
    runs: list[str], tmp_path: Path, options: dict[str, Any], dim: Any, where: str
) -> None:
    asked = {"languages": ["english"], "n_samples": 6, "seed": 5, **options}
    other = write_cube(tmp_path / "other", **asked)
    with pytest.raises(InputError, match=f"cannot join along {dim}") as caught:
        join([runs[0], other], dim=dim, out=tmp_path / "out")
    assert where in {fault.where for fault in caught.value.faults}
    assert not (tmp_path / "out").exists()


def test_odd_requests(runs: list[str], tmp_path: Path) -> None:
    for asked, what in [
        ({"runs": runs[:1], "dim": "layer"}, "fewer than two"),
        ({"runs": runs[0], "dim": "layer"}, "fewer than two"),
        ({"runs": runs, "dim": "hidden"}, "'hidden' is unknown"),
        ({"runs": runs, "dim": "sample", "out": tmp_path / "english"}, "already exists"),
    ]:
        with pytest.raises(InputError, match=what):
            join(**asked)
    unfinished = write_cube(tmp_path / "unfinished", windows=[0])
    with pytest.raises(IncompleteError):
        join([runs[0], unfinished], dim="sample")
