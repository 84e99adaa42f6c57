"""whiten=True: moments gathered while windows are written are those of the cube, whatever happened."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.errors import InputError
from actkit.extraction.capture import Capture
from actkit.schema import MOMENTS
from actkit.stats.moment_files import about_moments, load_moments


def extract(tiny_model: Path, prompts: Path, out: Path, **options: Any) -> xr.Dataset:
    given = {
        "model": str(tiny_model),
        "data": str(prompts),
        "out": str(out),
        "listeners": [],
        "window_samples": 2,
    }
    return actkit.extract(**{**given, "whiten": True, **options})


def check(run: Path) -> None:
    """Compare what was gathered with what the cube says of itself."""
    cube = actkit.open_cube(run)
    found = load_moments(run / MOMENTS)
    languages = set(cube.language.values.tolist())
    assert set(found) == {(language, layer) for language in languages for layer in cube.layer.values.tolist()}
    for (language, layer), moments in found.items():
        fitted = actkit.Whitener.fit(cube, layer=layer, language=language, shrinkage="ledoit-wolf")
        assert moments.n == fitted.moments.n
        np.testing.assert_allclose(moments.mean, fitted.mean, atol=1e-12)
        np.testing.assert_allclose(moments.scatter, fitted.moments.scatter, atol=1e-9)
        np.testing.assert_allclose(moments.fourth, fitted.moments.fourth, rtol=1e-9)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"storage": "bfloat16"},
        {"tokens": "mean"},
        {"tokens": "last"},
        {"tokens": "content"},
        {"layers": "2 0"},
    ],
    ids=str,
)
def test_they_are_those_of_the_cube(
    tiny_model: Path, prompts: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    extract(tiny_model, prompts, tmp_path / "run", **options)
    check(tmp_path / "run")


def test_the_cube_is_the_same_with_and_without(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    with_, without = (
        extract(tiny_model, prompts, tmp_path / str(whiten), whiten=whiten).load() for whiten in (True, False)
    )
    xr.testing.assert_identical(with_, without)
    assert not (tmp_path / "False" / MOMENTS).exists()


def test_what_was_committed_without_is_read_from_the_cube(
    tiny_model: Path, prompts: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    extract(tiny_model, prompts, run, whiten=False)
    extract(tiny_model, prompts, run)
    check(run)
    before = (run / MOMENTS).read_bytes()
    extract(tiny_model, prompts, run)
    assert (run / MOMENTS).read_bytes() == before


def test_a_run_that_ends_early_goes_on_with_what_it_gathered(
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
    check(run)
    assert about_moments(run / MOMENTS)["windows"] == [0, 1, 2]


@pytest.mark.parametrize("content", [b"", b"nonsense" * 20], ids=["empty", "nonsense"])
def test_a_damaged_file_is_made_anew(tiny_model: Path, prompts: Path, tmp_path: Path, content: bytes) -> None:
    run = tmp_path / "run"
    extract(tiny_model, prompts, run)
    (run / MOMENTS).write_bytes(content)
    extract(tiny_model, prompts, run)
    check(run)


def test_a_whitener_is_made_of_them_alone(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    cube = extract(tiny_model, prompts, run)
    options = {"layer": 1, "shrinkage": "ledoit-wolf"}
    found, wanted = actkit.Whitener.of_run(run, **options), actkit.Whitener.fit(cube, **options)
    np.testing.assert_allclose(found.transform_matrix, wanted.transform_matrix, rtol=1e-6, atol=1e-6)
    xr.testing.assert_allclose(found.transform(cube), wanted.transform(cube), rtol=1e-5, atol=1e-5)
    with pytest.raises(InputError, match="gathered nothing of layer 9"):
        actkit.Whitener.of_run(run, layer=9)
    with pytest.raises(InputError, match=r"holds no moments.*extract it with whiten=True"):
        actkit.Whitener.of_run(tmp_path, layer=1)


def test_residual_is_needed(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="whiten: needs what `residual` keeps"):
        extract(tiny_model, prompts, tmp_path / "run", save=["norm"])
    assert not (tmp_path / "run").exists()


def test_a_plan_counts_them(tiny_model: Path, prompts: Path, tmp_path: Path) -> None:
    given = {"model": str(tiny_model), "data": str(prompts), "out": str(tmp_path / "run"), "trial": False}
    plain, whitened = (actkit.plan(**given, whiten=whiten) for whiten in (False, True))
    languages, layers = len(plain.scan.languages), len(plain.layers["residual"])
    size = 8 * plain.plan.shape.hidden**2 * layers * languages
    assert whitened.estimate.host - plain.estimate.host == size
    assert whitened.estimate.disk - plain.estimate.disk == size
    assert json.loads(str(whitened.attrs["options"])) == json.loads(str(plain.attrs["options"]))
