"""What old scripts wrote is what the cube holds."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

import actkit
from actkit.cli import main
from actkit.schema import TokenKind
from tests.importers import scripts
from tests.importers.scripts import GENDERS, HIDDEN, IMAGES, LANGUAGES, LAYERS, LENGTHS


def vectors(cube: xr.Dataset, layer: int, sample: int) -> np.ndarray:
    """Return the tokens of a sample, dims ``(token, hidden)``, once its pads are seen to be none."""
    values = cube.residual.sel(layer=layer).isel(sample=sample).values
    n_tokens = int(cube.n_tokens[sample])
    assert np.isnan(values[n_tokens:]).all()
    return np.asarray(values[:n_tokens])


def check_tensors(cube: xr.Dataset, dtype: torch.dtype = torch.float32) -> None:
    assert cube.language.values.tolist() == [name for name in LANGUAGES for _ in IMAGES]
    assert cube.sample_id.values.tolist() == cube.image_id.values.tolist() == IMAGES * 2
    assert cube.gender.values.tolist() == GENDERS * 2
    assert cube.n_tokens.values.tolist() == [length for name in LANGUAGES for length in LENGTHS[name]]
    for layer in LAYERS:
        for sample, language in enumerate(cube.language.values):
            exact = scripts.padded(language, layer, dtype).float().numpy()[sample % 4]
            imported = vectors(cube, layer, sample)
            np.testing.assert_array_equal(imported, exact[: len(imported)])
            assert not exact[len(imported) :].any()


def test_checkpoints(tmp_path: Path) -> None:
    cube = actkit.import_files(
        scripts.save_checkpoints(tmp_path / "old"), format="pt", out=tmp_path / "run"
    ).load()
    check_tensors(cube)
    assert cube.residual.dtype == np.float32
    assert {name: cube.attrs[name] for name in ("model", "model_layers", "tokens_kept", "stored_dtype")} == {
        "model": "old/model",
        "model_layers": 12,
        "tokens_kept": "all",
        "stored_dtype": "float32",
    }
    assert (cube.attrs["imported_from"], cube.attrs["imported_format"]) == ("old", "pt")
    held = np.arange(6) < cube.n_tokens.values[:, None]
    np.testing.assert_array_equal(cube.token_kind.values, np.where(held, TokenKind.TEXT, TokenKind.PAD))
    np.testing.assert_array_equal(cube.token_id.values, np.where(held, -1, 0))
    # position 0 draws attention whatever it holds
    exact = scripts.padded("english", 1).double().numpy()
    np.testing.assert_allclose(cube.pooled.sel(layer=1).values[6], exact[2, 1:6].mean(0), rtol=1e-6)
    np.testing.assert_array_equal(cube["last"].sel(layer=1).values[6], exact[2, 5].astype(np.float32))
    assert np.isnan(cube.pooled.values[:, 2]).all()
    np.testing.assert_allclose(cube.norm.sel(layer=1).values[6], np.linalg.norm(exact[2], axis=-1), rtol=1e-6)
    assert not cube.nonfinite.values.any()
    assert actkit.verify(tmp_path / "run").ok


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_one_file_a_language(tmp_path: Path, dtype: torch.dtype) -> None:
    for language in LANGUAGES:
        scripts.save_whole(tmp_path / "old", language, dtype)
    cube = actkit.import_files(tmp_path / "old", format="pt", out=tmp_path / "run").load()
    check_tensors(cube, dtype)
    assert cube.attrs["stored_dtype"] == str(dtype).removeprefix("torch.")
    assert "model_layers" not in cube.attrs


def test_checkpoints_go_before_whole_files(tmp_path: Path) -> None:
    folder = scripts.save_checkpoints(tmp_path / "old")
    for language in LANGUAGES:
        scripts.save_whole(folder, language, torch.float16)
    check_tensors(actkit.import_files(folder, format="pt", out=tmp_path / "run").load())


def test_zeros_within_a_sample_are_tokens_and_those_around_it_are_not(tmp_path: Path) -> None:
    first = torch.ones(2, 5, HIDDEN)
    first[:, [0, 2, 4]] = 0
    second = torch.zeros(2, 5, HIDDEN)
    second[1, 4, 3] = torch.nan
    for layer, values in enumerate((first, second)):
        scripts.save_checkpoint(
            tmp_path / "old", "english", layer, activations=values, genders=["m", "f"], image_ids=["a", "b"]
        )
    cube = actkit.import_files(tmp_path / "old", format="pt", out=tmp_path / "run").load()
    assert cube.n_tokens.values.tolist() == [3, 4]
    np.testing.assert_array_equal(vectors(cube, 0, 0), first[0, 1:4])
    np.testing.assert_array_equal(vectors(cube, 1, 1), second[1, 1:])
    assert cube.nonfinite.values.tolist() == [[0, 0], [0, 1]]


def test_a_sample_of_zeros_has_no_tokens(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = scripts.padded("english", 0)
    values[1] = 0
    scripts.save_checkpoint(tmp_path / "old", "english", 0, activations=values)
    assert main(["import", str(tmp_path / "old"), "--format", "pt", "--out", str(tmp_path / "run")]) == 0
    assert "1 samples without tokens" in capsys.readouterr().out
    cube = actkit.open_cube(tmp_path / "run").load()
    assert cube.n_tokens.values.tolist() == [2, 0, 6, 3]
    assert np.isnan(cube["last"].values[0, 1]).all()


def test_samples_that_share_a_name_are_numbered(tmp_path: Path) -> None:
    scripts.save_checkpoint(tmp_path / "old", "english", 0, image_ids=[7, 7, 8, 8], genders=None)
    cube = actkit.import_files(tmp_path / "old", format="pt", out=tmp_path / "run")
    assert cube.sample_id.values.tolist() == ["0", "1", "2", "3"]
    assert cube.image_id.values.tolist() == [7, 7, 8, 8]
    assert "gender" not in cube.coords


@pytest.mark.slow
@pytest.mark.parametrize("left", [False, True])
def test_chunks(tmp_path: Path, left: bool) -> None:
    folder = scripts.save_chunks(tmp_path / "old", left=left)
    cube = actkit.import_files(folder, format="npz", out=tmp_path / "run", model="old/model").load()
    assert cube.sizes == {"layer": 3, "sample": 8, "token": 6, "hidden": HIDDEN}
    assert cube.attrs["model"] == "old/model"
    assert cube.sample_id.values.tolist() == [str(number) for number in range(8)]
    for layer in LAYERS:
        for sample in range(8):
            arrays = {
                name: values[sample % 4]
                for name, values in scripts.chunk(sample // 4, layer, left=left).items()
            }
            held = arrays["attention_mask"].astype(bool)
            np.testing.assert_array_equal(vectors(cube, layer, sample), arrays["activations"][held])
            ids = cube.token_id.values[sample]
            assert ids.tolist() == [*arrays["token_ids"][held], *([0] * (6 - held.sum()))]
    assert actkit.verify(tmp_path / "run").ok


def test_batches(tmp_path: Path) -> None:
    folder = scripts.save_batches(tmp_path / "old")
    cube = actkit.import_files(folder, format="batches", out=tmp_path / "run", language="english").load()
    assert "residual" not in cube
    assert cube.sizes == {"layer": 3, "sample": 6, "token": 1, "hidden": HIDDEN}
    assert set(cube.language.values) == {"english"}
    for layer in LAYERS:
        exact = np.concatenate([scripts.batch(number, layer)["activations"] for number in (0, 1)])
        np.testing.assert_array_equal(cube["last"].sel(layer=layer).values, exact)
        norms = np.linalg.norm(exact.astype(np.float64), axis=-1)
        np.testing.assert_allclose(cube.norm.sel(layer=layer).values[:, 0], norms, rtol=1e-6)
    assert cube.sample_id.values.tolist() == [f"task-{n}-{row}" for n in (0, 1) for row in range(3)]
    assert cube.sample_idx.values.tolist() == [2, 0, 1, 5, 3, 4]
    assert cube.attrs["tokens_kept"] == "last"
    assert actkit.verify(tmp_path / "run").ok
