"""whiten=True: moments accumulated during a run match those of the cube, also after interruptions."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import save_file

import actkit
from actkit.errors import IncompleteError, InputError, StorageError
from actkit.extraction.capture.batch_capture import Capture
from actkit.extraction.loop import local_engine
from actkit.schema import MOMENTS
from actkit.stats.moment_files import about_moments, load_moments
from actkit.store.folders import Folder
from tests.conftest import SENTENCES


def extract(tiny_model: Path, prompts: Path, out: Path, **options: Any) -> xr.Dataset:
    defaults = {
        "model": str(tiny_model),
        "data": str(prompts),
        "out": str(out),
        "listeners": [],
        "window_samples": 2,
    }
    return actkit.extract(**{**defaults, "whiten": True, **options})


@pytest.fixture(scope="module")
def accumulated(tiny_model: Path, prompts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Complete run with moments, which no test may change."""
    run = tmp_path_factory.mktemp("accumulated") / "run"
    extract(tiny_model, prompts, run)
    return run


@pytest.fixture
def run(accumulated: Path, tmp_path: Path) -> Path:
    """A copy of it for tests to change."""
    return Path(shutil.copytree(accumulated, tmp_path / "run"))


def check_moments(run: Path) -> None:
    """Compare the accumulated moments with those computed from the cube."""
    cube = actkit.open_cube(run)
    stored = load_moments(run / MOMENTS)
    languages = set(cube.language.values.tolist())
    assert set(stored) == {
        (language, layer) for language in languages for layer in cube.layer.values.tolist()
    }
    for (language, layer), moments in stored.items():
        fitted = actkit.Whitener.fit(cube, layer=layer, language=language, shrinkage="ledoit-wolf")
        assert moments.n == fitted.moments.n
        np.testing.assert_allclose(moments.mean, fitted.mean, atol=1e-12)
        np.testing.assert_allclose(moments.scatter, fitted.moments.scatter, atol=1e-9)
        np.testing.assert_allclose(moments.fourth, fitted.moments.fourth, rtol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"storage": "bfloat16"},
        {"keep_tokens": "mean"},
        {"keep_tokens": "last"},
        {"keep_tokens": "content"},
        {"layers": "2 0"},
    ],
    ids=str,
)
def test_moments_match_the_cube(
    tiny_model: Path, prompts: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    extract(tiny_model, prompts, tmp_path / "run", **options)
    check_moments(tmp_path / "run")


@pytest.mark.slow
def test_whiten_does_not_change_the_cube(
    accumulated: Path, tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    without = extract(tiny_model, prompts, tmp_path / "run", whiten=False).load()
    xr.testing.assert_identical(actkit.open_cube(accumulated).load(), without)
    assert not (tmp_path / "run" / MOMENTS).exists()


@pytest.mark.slow
def test_windows_committed_without_moments_are_read_from_the_cube(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    extract(tiny_model, prompts, run, whiten=False)
    extract(tiny_model, prompts, run)
    check_moments(run)
    before = (run / MOMENTS).read_bytes()
    extract(tiny_model, prompts, run)
    assert (run / MOMENTS).read_bytes() == before


@pytest.mark.slow
def test_a_resumed_run_continues_with_saved_moments(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = tmp_path / "run", []
    keep = Capture.run

    def fails(self: Capture, *args: Any) -> None:
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("the power went")
        keep(self, *args)

    monkeypatch.setattr(Capture, "run", fails)
    with pytest.raises(RuntimeError, match="the power went"):
        extract(tiny_model, prompts, run)
    monkeypatch.undo()
    gathered = about_moments(run / MOMENTS)["windows"]
    assert len(gathered) < 3
    extract(tiny_model, prompts, run)
    check_moments(run)
    assert about_moments(run / MOMENTS)["windows"] == [0, 1, 2]


@pytest.mark.slow
def test_a_run_whose_folder_is_replaced_writes_moments_into_its_own(
    tiny_model: Path, prompts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    computed, check = local_engine.compute, Folder.check
    ended: list[bool] = []

    def compute(*args: Any) -> None:
        computed(*args)
        ended.append(True)

    def checked(self: Folder) -> None:
        check(self)
        if ended and self.path == run and not elsewhere.exists():  # after the last look at its path
            run.rename(elsewhere)
            run.mkdir()

    monkeypatch.setattr(local_engine, "compute", compute)
    monkeypatch.setattr(Folder, "check", checked)
    with pytest.raises(StorageError, match="is now another folder"):
        extract(tiny_model, prompts, run)
    monkeypatch.undo()
    assert list(run.iterdir()) == []
    check_moments(elsewhere)


@pytest.mark.slow
@pytest.mark.parametrize("content", [b"", b"nonsense" * 20], ids=["empty", "nonsense"])
def test_a_damaged_file_is_replaced(tiny_model: Path, prompts: Path, run: Path, content: bytes) -> None:
    (run / MOMENTS).write_bytes(content)
    extract(tiny_model, prompts, run)
    check_moments(run)


@pytest.mark.slow
def test_a_whitener_needs_only_the_moments(accumulated: Path, tmp_path: Path) -> None:
    run, cube = accumulated, actkit.open_cube(accumulated)
    options = {"layer": 1, "shrinkage": "ledoit-wolf"}
    from_moments, wanted = actkit.Whitener.of_run(run, **options), actkit.Whitener.fit(cube, **options)
    np.testing.assert_allclose(from_moments.transform_matrix, wanted.transform_matrix, rtol=1e-6, atol=1e-6)
    xr.testing.assert_allclose(from_moments.transform(cube), wanted.transform(cube), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="gathered no moments of layer 9"):
        actkit.Whitener.of_run(run, layer=9)
    with pytest.raises(InputError, match=r"contains no moments.*run the extraction again with whiten=True"):
        actkit.Whitener.of_run(tmp_path, layer=1)


OPTIONS: dict[str, Any] = {"layer": 1, "shrinkage": "ledoit-wolf"}


@pytest.mark.slow
@pytest.mark.parametrize("count", [10, pytest.param(500, marks=pytest.mark.nightly)])
def test_each_damaged_bit_of_a_layer_is_found(run: Path, count: int) -> None:
    path = run / MOMENTS
    whole, wanted = path.read_bytes(), actkit.Whitener.of_run(run, **OPTIONS)
    rng = np.random.default_rng(0)
    for bit in rng.integers(0, 8 * len(whole), count).tolist():
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            whitener = actkit.Whitener.of_run(run, **OPTIONS)
        except InputError:
            continue
        np.testing.assert_array_equal(
            whitener.transform_matrix, wanted.transform_matrix, err_msg=f"bit {bit}"
        )


@pytest.mark.slow
def test_moments_are_of_their_cube_and_of_all_its_samples(tiny_model: Path, prompts: Path, run: Path) -> None:
    shutil.rmtree(run / "cube.zarr")
    actkit.Whitener.of_run(run, **OPTIONS)  # alone, they say what they are
    extract(tiny_model, prompts, run, whiten=False, layers="0 1")
    with pytest.raises(InputError, match=r"moments of another cube .*run the extraction again"):
        actkit.Whitener.of_run(run, **OPTIONS)
    (run / "cube.zarr/committed/c.1").unlink()
    with pytest.raises(IncompleteError):
        actkit.Whitener.of_run(run, **OPTIONS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "about",
    ["{}", "[]", '{"entries": "x"}', '{"entries": [{"language": "a", "layer": 1, "n": "many"}]}', "7"],
)
def test_invalid_moments_are_an_error_or_replaced(
    tiny_model: Path, prompts: Path, run: Path, about: str
) -> None:
    wanted = actkit.Whitener.of_run(run, **OPTIONS).transform_matrix
    save_file({"0.mean": np.zeros(3)}, run / MOMENTS, {"actkit_moments": about})
    with pytest.raises(InputError, match="contains no moments"):
        actkit.Whitener.of_run(run, **OPTIONS)
    (run / "cube.zarr/committed/c.1").unlink()
    extract(tiny_model, prompts, run)
    np.testing.assert_allclose(actkit.Whitener.of_run(run, **OPTIONS).transform_matrix, wanted)


def test_residual_is_needed(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="whiten: needs `residual`"):
        extract(tiny_model, prompts, tmp_path / "run", save=["norm"])
    assert not (tmp_path / "run").exists()


def test_a_plan_includes_moments(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    options = {"model": str(tiny_model), "data": str(prompts), "out": str(tmp_path / "run"), "trial": False}
    plain, whitened = (actkit.plan(**options, whiten=whiten) for whiten in (False, True))
    languages, layers = len(plain.scan.languages), len(plain.layers["residual"])
    size = 8 * plain.plan.shape.hidden**2 * layers * languages
    assert whitened.estimate.host - plain.estimate.host == size
    assert whitened.estimate.disk - plain.estimate.disk == size
    assert json.loads(str(whitened.attrs["options"])) == json.loads(str(plain.attrs["options"]))


@pytest.mark.slow
def test_nonfinite_samples_are_left_out_of_moments(model_copy: Path, prompts: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file
    from transformers import AutoTokenizer

    weights = load_file(model_copy / "model.safetensors")
    tokenizer = AutoTokenizer.from_pretrained(model_copy)
    first, *others = (set(tokenizer(text).input_ids) for texts in SENTENCES.values() for text in texts)
    weights["model.embed_tokens.weight"][min(first.difference(*others))] = float("nan")
    save_file(weights, model_copy / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "run"
    cube = actkit.extract(model=str(model_copy), data=str(prompts), out=str(out), whiten=True, listeners=[])
    count = int((cube.nonfinite > 0).any("layer").sum())
    assert 0 < count < cube.sizes["sample"]
    with pytest.warns(UserWarning, match=f"{count} of {cube.sizes['sample']} samples contain NaN or Inf"):
        fitted = actkit.Whitener.fit(cube, layer=1, shrinkage="ledoit-wolf")
    gathered = actkit.Whitener.of_run(out, layer=1, shrinkage="ledoit-wolf")
    assert gathered.moments.n == fitted.moments.n
    assert np.allclose(gathered.transform_matrix, fitted.transform_matrix, rtol=1e-6)
