"""A cube that was exported and imported is the cube; one that was imported and exported, the files."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import actkit
from actkit import batch_plan
from actkit.cli import main
from actkit.exporters.run_export import export
from actkit.importers import npz_arrays, pt_tensors
from actkit.importers.run_import import FORMATS
from actkit.testing import contents, write_cube


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cube(
        tmp_path_factory.mktemp("import") / "run", n_layers=4, n_samples=70, n_tokens=6, hidden=12, window=16
    )


@pytest.fixture(scope="module")
def cube(run: Path) -> xr.Dataset:
    return actkit.open_cube(run).load()


def arrays(value: Any) -> Any:
    """Return what a PyTorch file holds, but for when it was written."""
    if isinstance(value, torch.Tensor):
        return value.numpy().tobytes(), tuple(value.shape)
    if isinstance(value, dict):
        return {name: arrays(values_of) for name, values_of in value.items() if name != "timestamp"}
    return value


def files(folder: Path) -> dict[str, Any]:
    """Return the arrays of every file."""
    by_path: dict[str, Any] = {}
    for path in sorted(folder.rglob("*.*")):
        if path.suffix == ".pt":
            by_path[str(path.relative_to(folder))] = arrays(torch.load(path, weights_only=True))
        elif path.suffix == ".npz":
            with np.load(path) as held:
                contents = {name: (held[name].dtype, held[name].tobytes()) for name in held.files}
            by_path[str(path.relative_to(folder))] = contents
    return by_path


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_what_was_exported_comes_back(run: Path, tmp_path: Path, format: str) -> None:
    first = export(run, tmp_path / "first", format=format)
    actkit.import_files(first, format=format, out=tmp_path / "run")
    again = export(tmp_path / "run", tmp_path / "again", format=format)
    assert files(first) == files(again)
    assert sorted(contents(first)) == sorted(contents(again))
    assert actkit.verify(tmp_path / "run").ok


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_an_import_is_named_by_what_its_files_hold(tmp_path: Path, format: str) -> None:
    digests = []
    for seed in (0, 1):
        files = export(write_cube(tmp_path / f"cube{seed}", seed=seed), tmp_path / "files", format=format)
        runs = tmp_path / f"first{seed}", tmp_path / f"second{seed}"
        first, _ = (actkit.import_files(files, format=format, out=run) for run in runs)
        assert contents(runs[0]) == contents(runs[1])
        digests.append(first.attrs["imported_sha256"])
        shutil.rmtree(files)
    assert digests[0] != digests[1]


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_windows_and_blocks_change_nothing(
    run: Path, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = export(run, tmp_path / "first", format=format)
    one = actkit.import_files(exported, format=format, out=tmp_path / "one").load()
    monkeypatch.setattr(batch_plan, "WINDOW_BYTES", 10_000)
    monkeypatch.setattr(pt_tensors, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(npz_arrays, "BLOCK_BYTES", 1000)
    many = actkit.import_files(exported, format=format, out=tmp_path / "many").load()
    xr.testing.assert_identical(many.drop_attrs(), one.drop_attrs())
    windows = len(list((tmp_path / "many" / "cube.zarr" / "last").glob("c.*")))
    assert windows > 1


def test_some_layers_of_a_language_come_back(run: Path, tmp_path: Path) -> None:
    first = export(run, tmp_path / "first", format="batches", layers="1-2", languages=["arabic"])
    cube = actkit.import_files(first, format="batches", out=tmp_path / "run", language="arabic")
    assert cube.layer.values.tolist() == [1, 2]
    assert cube.sample_id.values.tolist()[:2] == ["image-0000", "image-0001"]
    assert cube.sample_idx.values.tolist()[:2] == [1, 3]
    assert files(first) == files(export(tmp_path / "run", tmp_path / "again", format="batches"))


@pytest.mark.slow
def test_a_cube_comes_back_from_tensors(run: Path, cube: xr.Dataset, tmp_path: Path) -> None:
    export(run, tmp_path / "pt", format="pt")
    back = actkit.import_files(tmp_path / "pt", format="pt", out=tmp_path / "run").load()
    places = {key: at for at, key in enumerate(zip(cube.language.values, cube.sample_id.values, strict=True))}
    keys = zip(back.language.values, back.sample_id.values, strict=True)
    same = cube.isel(sample=[places[key] for key in keys])
    for name in ("residual", "norm", "last", "nonfinite", "n_tokens", "gender", "image_id", "prompt_tokens"):
        np.testing.assert_array_equal(back[name].values, same[name].values)
    np.testing.assert_allclose(back.pooled.values, same.pooled.values, rtol=1e-6)


@pytest.mark.slow
def test_a_cube_comes_back_from_chunks_with_its_data(run: Path, cube: xr.Dataset, tmp_path: Path) -> None:
    export(run, tmp_path / "npz", format="npz")
    names = ["sample_id", "language", "text", "gender"]
    cube[names].reset_coords().to_dataframe()[names].to_csv(tmp_path / "rows.csv", index=False)
    back = actkit.import_files(
        tmp_path / "npz", format="npz", out=tmp_path / "run", data=tmp_path / "rows.csv"
    ).load()
    for name in ("residual", "norm", "last", "nonfinite", "n_tokens", "token_id", *names):
        np.testing.assert_array_equal(back[name].values, cube[name].values)
    np.testing.assert_allclose(back.pooled.values, cube.pooled.values, rtol=1e-6)


LENGTHS = st.lists(st.integers(1, 7), min_size=1, max_size=9)


@pytest.mark.slow
@settings(max_examples=5)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_any_lengths_come_back(
    lengths: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_lengths(lengths, seed, tmp_path_factory.mktemp("any"))


@pytest.mark.nightly
@settings(max_examples=200)
@given(lengths=LENGTHS, seed=st.integers(0, 99))
def test_any_lengths_come_back_in_many_trials(
    lengths: list[int], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check_lengths(lengths, seed, tmp_path_factory.mktemp("any"))


def check_lengths(lengths: list[int], seed: int, folder: Path) -> None:
    values = np.random.default_rng(seed).standard_normal((len(lengths), max(lengths), 3)).astype(np.float32)
    held = np.arange(max(lengths)) < np.array(lengths)[:, None]
    values[~held] = 0
    (folder / "old" / "layer_checkpoints").mkdir(parents=True)
    torch.save(
        {"activations": torch.from_numpy(values)}, folder / "old" / "layer_checkpoints" / "layer_5_x.pt"
    )
    back = actkit.import_files(folder / "old", format="pt", out=folder / "run")
    np.testing.assert_array_equal(back.residual.values[0], np.where(held[..., None], values, np.nan))
    assert back.n_tokens.values.tolist() == lengths


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_statistics_take_it(run: Path, tmp_path: Path, format: str) -> None:
    export(run, tmp_path / "first", format=format, languages=["english"])
    (tmp_path / "rows.csv").write_text(
        "sample_id,language,text,gender\n"
        + "".join(f"image-{i:04d},english,text {i},{('male', 'female')[i % 2]}\n" for i in range(35))
    )
    options = {} if format == "pt" else {"language": "english"}
    back = actkit.import_files(
        tmp_path / "first", format=format, out=tmp_path / "run", data=tmp_path / "rows.csv", **options
    )
    values = "last" if format == "batches" else "pooled"
    assert np.isfinite(actkit.layer_norms(back)["mean"]).all()
    assert np.isfinite(actkit.adjacent_cka(back, vectors=values).cka).all()
    statistic = actkit.group_differential(back, by="gender", cluster=None, vectors=values)
    assert np.isfinite(statistic.auroc).all()
    assert len(actkit.token_strings(back, 0)) == back.n_tokens[0]


@pytest.mark.slow
def test_statistics_take_it_without_texts(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "pt", format="pt")
    back = actkit.import_files(tmp_path / "pt", format="pt", out=tmp_path / "run")
    assert np.isfinite(actkit.group_differential(back, by="gender").auroc).all()
    np.testing.assert_allclose(
        actkit.layer_norms(back)["mean"].sel(language="arabic"),
        actkit.layer_norms(actkit.open_cube(run))["mean"].sel(language="arabic"),
    )


@pytest.mark.slow
def test_the_shell_imports(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export(run, tmp_path / "pt", format="pt")
    arguments = ["import", str(tmp_path / "pt"), "--format", "pt", "--out", str(tmp_path / "run")]
    assert main(arguments) == 0
    assert "4 layer × 70 sample × 6 token × 12 hidden" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "run")]) == 0
    assert "arabic 35, english 35" in capsys.readouterr().out
    assert main(["verify", str(tmp_path / "run")]) == 0
    assert main(["report", str(tmp_path / "run"), "--out", str(tmp_path / "report.html")]) == 0
    capsys.readouterr()
    assert main(arguments) == 1
    assert "already exists" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("format", FORMATS)
def test_some_layers_are_imported_alone(run: Path, tmp_path: Path, format: str) -> None:
    every = export(run, tmp_path / "every", format=format)
    imported = actkit.import_files(every, format=format, out=tmp_path / "run", layers="-1 1")
    assert imported.layer.values.tolist() == [1, 3]
    again = export(tmp_path / "run", tmp_path / "again", format=format)
    assert files(again) == files(export(run, tmp_path / "direct", format=format, layers="1 3"))


@pytest.mark.slow
def test_some_languages_are_imported_alone(run: Path, cube: xr.Dataset, tmp_path: Path) -> None:
    every = export(run, tmp_path / "every", format="pt")
    imported = actkit.import_files(every, format="pt", out=tmp_path / "run", layers=2, languages=["arabic"])
    assert set(imported.language.values.tolist()) == {"arabic"}
    theirs = cube.residual.sel(layer=2).isel(sample=(cube.language == "arabic").values)
    longest = imported.sizes["token"]
    np.testing.assert_array_equal(imported.residual.sel(layer=2).values, theirs.values[:, :longest])
