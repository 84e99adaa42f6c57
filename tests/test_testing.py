"""Synthetic cubes, on which our tests and those of users rely."""

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from actkit import open_cube, verify
from actkit.schema import VARIABLES, VISION, TokenKind
from actkit.stats.token_masks import content_mask
from actkit.store.ragged import Ragged
from actkit.testing import contents, flip_bit, synthetic, write_cube, write_features


@pytest.mark.slow
def test_a_cube_has_the_shape_that_was_asked_for(tmp_path: Path) -> None:
    run = write_cube(
        tmp_path / "new" / "run",
        n_layers=2,
        n_samples=7,
        n_tokens=9,
        hidden=3,
        window=2,
        languages=["a", "b", "c"],
    )
    cube = open_cube(run)
    assert dict(cube.sizes) == {"layer": 2, "sample": 7, "token": 9, "hidden": 3}
    assert cube.language.values.tolist() == ["a", "b", "c", "a", "b", "c", "a"]
    assert cube.n_tokens.values.min() >= 2
    assert len(list((run / "cube.zarr" / "committed").glob("c.*"))) == 4
    assert verify(run).ok


def test_without_a_folder_it_makes_one() -> None:
    assert open_cube(write_cube(n_samples=4)).sizes["sample"] == 4


@pytest.mark.slow
def test_the_same_seed_gives_the_same_cube(tmp_path: Path) -> None:
    trees = [
        contents(write_cube(tmp_path / name, seed=seed)) for name, seed in (("a", 1), ("b", 1), ("c", 2))
    ]
    assert trees[0] == trees[1] != trees[2]
    one, other = (open_cube(tmp_path / name) for name in ("a", "c"))
    assert one.attrs["metadata_sha256"] != other.attrs["metadata_sha256"]


def test_the_languages_of_an_image_share_its_id_and_gender(tmp_path: Path) -> None:
    cube = open_cube(write_cube(tmp_path, n_samples=12))
    pairs = cube.load().groupby("image_id")
    assert len(pairs) == 6
    for _, pair in pairs:
        assert sorted(pair.language.values) == ["arabic", "english"]
        assert len(set(pair.gender.values)) == 1
    assert set(cube.gender.values) == {"male", "female"}


def test_summaries_agree_with_the_residual(tmp_path: Path) -> None:
    cube = open_cube(write_cube(tmp_path, n_samples=6, n_tokens=7)).load()
    content = content_mask(cube.token_kind, first_is_content=True)
    assert (cube.token_kind[:, 0] == TokenKind.SPECIAL).all()
    residual = cube.residual.astype(np.float64)
    np.testing.assert_allclose(cube.pooled, residual.where(content).mean("token"), rtol=1e-6)
    np.testing.assert_allclose(cube.norm, np.sqrt((residual**2).sum("hidden", skipna=False)), rtol=1e-6)
    for sample, length in enumerate(cube.n_tokens.values):
        np.testing.assert_array_equal(cube.last[:, sample], cube.residual[:, sample, length - 1])
    assert (cube.nonfinite == 0).all()


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("everything")
    numbers = synthetic(n_layers=4, n_samples=10, n_tokens=7, hidden=6, everything=True)
    writer = numbers.create(run)
    for window in range(numbers.plan.n_windows):
        writer.write(window, numbers.part(window))
    return run


@pytest.mark.slow
def test_everything_is_every_variable_that_there_is(everything: Path) -> None:
    cube, tower = open_cube(everything), open_cube(everything, group=VISION)
    names = {f"vision/{name}" for name in tower.variables if f"vision/{name}" in VARIABLES}
    assert {*cube.variables, *names} == {*VARIABLES, "gender", "image_id"}
    assert dict(tower.sizes) == {"layer": 2, "sample": 10, "token": 7, "hidden": 3}
    assert verify(everything).ok


def test_without_everything_there_is_what_every_cube_has(tmp_path: Path) -> None:
    cube = open_cube(write_cube(tmp_path))
    assert {"n_tokens", "token_id", "token_kind", "token_text", "prompt_tokens", "has_residual"} <= {
        *cube.coords
    }
    absent = {"attention", "mlp", "has_attention", "has_mlp", "position", "generated"}
    assert not absent & {*cube.variables}


def test_the_variables_of_everything_agree_with_each_other(everything: Path) -> None:
    cube, tower = open_cube(everything).load(), open_cube(everything, group=VISION).load()
    pads = cube.token_kind == TokenKind.PAD
    assert pads.any()
    np.testing.assert_array_equal(cube.position, xr.where(pads, -1, cube.token).transpose("sample", "token"))
    assert ((cube.token_text == "") == pads).all()
    assert ((cube.token_id == 0) == pads).all()
    assert (cube.token_kind.where(pads).count("token") == cube.sizes["token"] - cube.n_tokens).all()
    assert (cube.n_tokens == cube.prompt_tokens).all()
    for name in ("residual", "attention", "mlp"):
        assert (cube[name].notnull().any(["sample", "token", "hidden"]) == cube[f"has_{name}"]).all()
    assert not cube.has_mlp.all()
    vectors = tower.residual.astype(np.float64)
    np.testing.assert_allclose(tower.norm, np.sqrt((vectors**2).sum("hidden")), rtol=1e-6)
    np.testing.assert_allclose(tower.pooled, vectors.mean("token"), rtol=1e-6)
    assert (tower.n_tokens == tower.sizes["token"]).all()


def test_parts_are_the_whole() -> None:
    numbers = synthetic(n_samples=10, everything=True)
    parts = [numbers.part(window) for window in range(numbers.plan.n_windows)]
    assert [part["norm"].shape[1] for part in parts] == [4, 4, 2]
    for name, values in numbers.values.items():
        variable = VARIABLES[name]
        ragged = [isinstance(part[name], Ragged) for part in parts]
        assert ragged == [variable.is_full] * 3
        fill = np.nan if variable.dtype == "str" else variable.fill_value
        dense_parts = [_dense(part[name], values, fill) for part in parts]
        np.testing.assert_array_equal(np.concatenate(dense_parts, variable.sample_axis), values)


def _dense(part: np.ndarray | Ragged, whole: np.ndarray, fill: float) -> np.ndarray:
    if not isinstance(part, Ragged):
        return part
    dense = part.dense(1, whole.shape[1])[0] if whole.ndim == 3 else part.dense(len(whole), whole.shape[2])
    # the writer fills in the value of the variable
    return dense if np.isnan(fill) else np.nan_to_num(dense, nan=fill)


def test_parts_hold_no_pads_and_no_missing_layers() -> None:
    numbers = synthetic(n_layers=3, everything=True)
    part = numbers.part(1)
    assert part["mlp"].layers == (1, 2)
    assert part["residual"].layers == part["attention"].layers == (0, 1, 2)
    assert part["embedding"].layers == (0,)
    assert part["vision/residual"].layers == (0, 1)
    np.testing.assert_array_equal(part["mlp"].lengths, numbers.plan.lengths[4:])
    np.testing.assert_array_equal(part["vision/residual"].lengths, [7] * 4)


@pytest.mark.parametrize(
    ("bit", "flipped"), [(0, b"\x01\x00"), (7, b"\x80\x00"), (8, b"\x00\x01"), (-1, b"\x00\x80")]
)
def test_a_bit_flips_and_flips_back(tmp_path: Path, bit: int, flipped: bytes) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"\0\0")
    flip_bit(path, bit)
    assert path.read_bytes() == flipped
    flip_bit(path, bit)
    assert path.read_bytes() == b"\0\0"


def test_contents_see_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"1")
    (tmp_path / "empty").touch()
    assert contents(tmp_path) == {"a/b/c": b"1", "empty": b""}


def test_features_conform_to_the_format_and_are_sorted_by_value(tmp_path: Path) -> None:
    run = write_features(tmp_path, n_features=50, k=6, n_samples=10, n_tokens=7)
    assert verify(run).ok
    cube = open_cube(run).load()
    assert dict(cube.sizes) == {"layer": 3, "sample": 10, "token": 7, "k": 6}
    assert cube.attrs["n_features"] == 50
    np.testing.assert_array_equal((cube.feature_value > 0).sum("k"), cube.n_active)
    assert (cube.feature_value.diff("k") <= 0).all()
    assert (cube.n_active.where(cube.token_kind == TokenKind.PAD, 0) == 0).all()
    np.testing.assert_allclose(cube.feature_sum, cube.feature_value.sum("k"), rtol=1e-6)
    assert cube.feature_index.dtype == "uint16"
    assert cube.feature_index.max() < 50
    for indices, count in zip(
        cube.feature_index.values.reshape(-1, 6), cube.n_active.values.ravel(), strict=True
    ):
        assert len(set(indices[:count].tolist())) == count


def test_another_reader_gives_the_same_features(tmp_path: Path) -> None:
    run = write_features(tmp_path)
    other = xr.open_zarr(run / "cube.zarr", consolidated=False, mask_and_scale=False)
    cube = open_cube(run)
    for name in ("feature_index", "feature_value", "n_active", "feature_sum"):
        assert other[name].dtype == cube[name].dtype
        np.testing.assert_array_equal(other[name], cube[name])
    xr.testing.assert_equal(cube.feature_value.sel(layer=1).load(), cube.feature_value.load().sel(layer=1))
