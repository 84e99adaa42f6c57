"""The quality of autoencoders, against NumPy and scikit-learn."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import xarray as xr
from safetensors.numpy import save
from sklearn.decomposition import PCA
from sklearn.metrics import explained_variance_score, r2_score

import actkit
from actkit.cli import main
from actkit.errors import InputError, NonfiniteError
from actkit.features.quality_baselines import Baselines
from actkit.features.quality_result import quality_dataset, read_quality, weights_key, write_quality
from actkit.features.quality_sums import QualitySums
from actkit.features.sae_files import write_sae
from actkit.stats.holdout import held_out
from actkit.testing import write_cube
from tests.features.autoencoders import constant, identity, random, set_of


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_cube(tmp_path_factory.mktemp("quality") / "run", n_samples=80, n_tokens=9, window=16)


def tokens(cube: xr.Dataset, layer: int, samples: np.ndarray) -> np.ndarray:
    """Return the content tokens of some samples, dims (token, hidden), float64."""
    values, kinds = cube.residual.sel(layer=layer).values[samples], cube.token_kind.values[samples]
    return values[kinds == 3].astype(np.float64)


def test_measures_are_those_of_numpy_and_scikit_learn(run: Path) -> None:
    cube = actkit.open_cube(run)
    saes = {layer: random(16, layer=layer, seed=layer) for layer in (0, 2)}
    quality = actkit.sae_quality(run, set_of(saes), cluster="image_id")
    is_held = held_out(cube, cluster="image_id")
    assert 0 < is_held.sum() < 80
    for layer, sae in saes.items():
        x = tokens(cube, layer, is_held)
        features = sae.encode(torch.from_numpy(x).float()).double().numpy()
        error = sae.decode(torch.from_numpy(features).float()).double().numpy()
        here = quality.sel(layer=layer)
        assert here.fvu.item() == pytest.approx(
            ((x - error) ** 2).sum() / ((x - x.mean(0)) ** 2).sum(), rel=1e-6
        )
        assert here.fvu.item() == pytest.approx(
            1 - r2_score(x, error, multioutput="variance_weighted"), rel=1e-6
        )
        explained = explained_variance_score(x, error, multioutput="variance_weighted")
        assert here.explained_variance.item() == pytest.approx(explained, rel=1e-5)
        assert here.l0.item() == pytest.approx((features > 0).sum(1).mean())
        np.testing.assert_allclose(here.frequency, (features > 0).mean(0))
        np.testing.assert_allclose(here["max"], features.max(0), rtol=1e-6)
        with np.errstate(invalid="ignore"):
            np.testing.assert_allclose(here["mean"], features.sum(0) / (features > 0).sum(0), rtol=1e-6)
        assert here.n_never_active.item() == (features.max(0) == 0).sum()
        norms = np.linalg.norm(x, axis=1)
        assert here.share_of_extreme_norms.item() == (norms > 10 * np.median(norms)).mean()
        assert quality.attrs["n_tokens"] == len(x)
    assert quality.n_dead.isnull().all()
    assert quality.ce_recovered.isnull().all()


def test_pca_of_the_same_l0_is_that_of_scikit_learn(run: Path) -> None:
    cube = actkit.open_cube(run)
    is_held = held_out(cube, cluster="image_id")
    fitted, x = tokens(cube, 1, ~is_held), tokens(cube, 1, is_held)
    sae = random(16, layer=1)
    quality = actkit.sae_quality(run, set_of({1: sae}), cluster="image_id").squeeze("layer")
    total = ((x - x.mean(0)) ** 2).sum()
    below = int(quality.l0.item())

    def left(count: int) -> float:
        if not count:
            return float(((x - fitted.mean(0)) ** 2).sum() / total)
        pca = PCA(count, svd_solver="full").fit(fitted)
        return float(((x - pca.inverse_transform(pca.transform(x))) ** 2).sum() / total)

    expected = np.interp(quality.l0.item(), [below, below + 1], [left(below), left(below + 1)])
    assert quality.fvu_pca.item() == pytest.approx(expected, rel=1e-4)
    # the largest coefficients of a batch, of which there is one here
    coefficients = PCA(16, svd_solver="full").fit(fitted).transform(x)
    n_active = round(quality.l0.item() * len(x))
    dropped = np.sort((coefficients**2).ravel())[:-n_active]
    assert quality.fvu_pca_top.item() == pytest.approx(dropped.sum() / total, rel=1e-4)
    assert quality.fvu_pca_top < quality.fvu_pca


def test_random_features_are_worse_than_pca_and_better_than_nothing() -> None:
    torch.manual_seed(0)
    scale = torch.linspace(3, 0.1, 16)
    batches = [scale * torch.randn(500, 16) + 5 for _ in range(3)]
    baselines = Baselines(batches, random(16))
    x = scale * torch.randn(400, 16) + 5
    baselines.add(x, 4 * 400)
    variance = float((x - x.mean(0)).square().sum(1).mean())
    found = baselines.fvu(variance, 4.0)
    assert found["fvu_pca_top"] < found["fvu_pca"] < found["fvu_random"] < 1
    assert torch.allclose(baselines.mean, torch.cat(batches).mean(0), atol=1e-4)


def test_exact_and_absent_reconstructions(run: Path) -> None:
    exact = actkit.sae_quality(run, set_of({0: identity(16)}), cluster="image_id").squeeze("layer")
    assert exact.fvu.item() < 1e-12
    assert exact.l0.item() == 16
    assert exact.fvu_pca.item() == pytest.approx(0, abs=1e-6)
    none = actkit.sae_quality(run, set_of({0: constant(16)}), cluster="image_id").squeeze("layer")
    assert none.explained_variance.item() == pytest.approx(0, abs=1e-9)
    assert none.fvu.item() > 1  # zero is farther away than the mean
    assert (none.l0.item(), none.n_never_active.item()) == (0, 32)


def test_sums_do_not_depend_on_the_batches() -> None:
    torch.manual_seed(0)
    x, sae = 1000 + torch.randn(700, 16), random(16)  # a large mean must not cancel the variance
    measured = []
    for size in (700, 64):
        sums = QualitySums(16, 24, torch.device("cpu"))
        for batch in x.split(size):
            sums.add(batch, sae.encode(batch), sae.decode(sae.encode(batch)))
        measured.append((sums.fvu, sums.explained_variance, sums.l0, sums.variance))
    np.testing.assert_allclose(measured[0], measured[1], rtol=1e-9)
    exact = x.double().numpy()
    assert measured[0][3] == pytest.approx(exact.var(axis=0).sum(), rel=1e-9)


def test_sums_of_a_device_without_float64_are_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    x, sae = torch.randn(70, 16), random(16)
    sums = QualitySums(16, 24, torch.device("mps"))  # which this machine may lack
    sums.add(x, sae.encode(x), sae.decode(sae.encode(x)))
    assert sums.mean.device.type == "cpu"
    monkeypatch.setattr("actkit.features.quality_baselines.sums_device", lambda _: torch.device("meta"))
    with pytest.raises(NotImplementedError):  # the sums, which the eigenvectors are of, are there
        Baselines([x], sae)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({1: random(16, layer=1)}, r"has layers \[1\], but the first has \[0\]"),
        ({0: identity(16, component="mlp")}, "has autoencoders of mlp, not of residual"),
        ({0: random(16), 1: random(16, layer=1)}, r"has the same weights as the first at layers \[0\]"),
    ],
)
def test_the_other_seed_must_be_comparable(run: Path, other: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"other: {message}"):
        actkit.sae_quality(run, set_of({0: random(16)}), other=set_of(other))


def test_the_held_out_samples_of_the_training_are_used(run: Path) -> None:
    digest = actkit.open_cube(run).attrs["metadata_sha256"]
    recorded = {"holdout_cluster": "image_id", "holdout_share": 0.25, "holdout_seed": 3}
    trained = random(16, cube_sha256=digest, training_tokens=240, n_dead=5, **recorded)
    quality = actkit.sae_quality(run, set_of({0: trained}))
    expected = held_out(actkit.open_cube(run), cluster="image_id", share=0.25, seed=3)
    assert quality.attrs["n_samples"] == expected.sum() == 20
    assert quality.attrs["holdout_origin"] == "training"
    assert (quality.n_dead.item(), quality.tokens_per_feature.item()) == (5, 10)
    of_another = random(16, cube_sha256="another", **recorded)
    assert actkit.sae_quality(run, set_of({0: of_another})).attrs["holdout_origin"] == "evaluation"


def test_two_seeds_are_compared_by_their_decoders(run: Path) -> None:
    sae, permuted = random(16), random(16)
    order = torch.randperm(24)
    object.__setattr__(permuted, "w_dec", permuted.w_dec[order])
    same = actkit.sae_quality(run, set_of({0: sae}), other=set_of({0: permuted}))
    assert same.found_again.item() == 1
    different = actkit.sae_quality(run, set_of({0: sae}), other=set_of({0: random(16, seed=1)}))
    assert different.found_again < 1
    assert different.found_again_random < 1


def test_the_result_is_kept_until_the_autoencoders_change(run: Path, tmp_path: Path) -> None:
    site = {"hook_name": "blocks.0.hook_resid_post"}
    write_sae(tmp_path / "residual_0", random(16, **site))
    quality = actkit.sae_quality(run, tmp_path, cluster="image_id", out=tmp_path)
    stored = read_quality(tmp_path)
    assert stored is not None
    xr.testing.assert_identical(stored, quality)
    write_sae(tmp_path / "residual_0", random(16, seed=1, **site))
    assert read_quality(tmp_path) is None
    write_quality(tmp_path, quality)
    (tmp_path / "quality.safetensors").write_bytes(b"x" * 100)
    assert read_quality(tmp_path) is None


def test_the_result_of_foreign_autoencoders_is_kept_until_their_weights_change(tmp_path: Path) -> None:
    stored = quality_dataset({5: measures()}, {"weights": "{}", "n_predictions": 0})
    for name in (
        "average_l0_82/params.npz",
        "params.safetensors",
        "layers.5/sae.safetensors",
        "a/b/cfg.json",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"first")
    (tmp_path / "a/b/sae_weights.safetensors").write_bytes(b"weights")
    for name in (
        "average_l0_82/params.npz",
        "params.safetensors",
        "layers.5/sae.safetensors",
        "a/b/cfg.json",
    ):
        write_quality(tmp_path, stored)
        assert read_quality(tmp_path) is not None
        (tmp_path / name).write_bytes(b"other")  # as long as the first
        os.utime(tmp_path / name, ns=(0, 0))  # the clock of the file system may be coarse
        assert read_quality(tmp_path) is None, name


def test_a_folder_that_cannot_take_the_result_is_refused_first(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actkit.features.quality.as_cube", pytest.fail)
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path)
    for out in ("missing", "file", "link", "\0"):
        with pytest.raises(InputError, match=r"out: .* is not a folder"):
            actkit.sae_quality(run, set_of({0: random(16)}), out=tmp_path / out)


def test_a_result_that_is_too_large_is_returned_with_a_warning(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actkit.store.result_files.MOST_BYTES", 100)
    with pytest.warns(UserWarning, match="is not written: it is larger than"):
        quality = actkit.sae_quality(run, set_of({0: random(16)}), out=tmp_path)
    assert quality.fvu > 0
    assert not list(tmp_path.iterdir())


def test_the_command_writes_only_into_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outs = []

    def measured(*_: Any, out: str | None, **_options: Any) -> xr.Dataset:
        outs.append(out)
        return quality_dataset({5: measures()}, {})

    monkeypatch.setattr("actkit.features.quality.sae_quality", measured)
    for saes in (str(tmp_path), "google/gemma-scope-2b-pt-res/layer_*"):
        main(["saes", "quality", "run", saes])
    assert outs == [str(tmp_path), None]
    assert "features" in capsys.readouterr().out


def measures(**values: Any) -> dict[str, Any]:
    """Return measures of a layer with two features."""
    features = np.zeros(2)
    return {"n_features": 2, "frequency": features, "mean": features, "max": features, **values}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00" * 8,
        (200_000).to_bytes(8, "little") + b"[" * 200_000,
        (2).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"[]",
        save({}, {"actkit_result": "[]"}),
        save({}, {"actkit_result": json.dumps({"variables": [], "attrs": {}})}),
        save({}, {"actkit_result": json.dumps({"variables": [], "attrs": {"weights": "[" * 10**5}})}),
        save({}, {"actkit_result": json.dumps({"variables": [{"dims": 3, "coord": 0}], "attrs": []})}),
    ],
)
def test_results_that_others_wrote_do_not_crash_reports(body: bytes, tmp_path: Path) -> None:
    seal = hashlib.sha256(weights_key(tmp_path).encode() + body).digest()
    (tmp_path / "quality.safetensors").write_bytes(seal + body)
    assert read_quality(tmp_path) is None


def test_autoencoders_that_cannot_be_read_have_no_result(tmp_path: Path) -> None:
    write_quality(tmp_path, quality_dataset({5: measures()}, {"weights": "{}", "n_predictions": 0}))
    os.mkfifo(tmp_path / "params.npz")  # whose reader would wait forever
    assert read_quality(tmp_path) is None


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "cuda:9"}, InputError, "there is no `cuda:9` here"),
        ({"where": {"gender": "none"}}, InputError, "no sample has"),
        ({"cluster": "nothing"}, InputError, "no label `nothing`"),
        ({"model_samples": 0}, InputError, "give an integer of at least 1"),
    ],
)
def test_bad_requests_are_refused(run: Path, options: Any, error: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        actkit.sae_quality(run, set_of({0: random(16)}), **options)


def test_autoencoders_that_do_not_fit_are_refused(run: Path) -> None:
    with pytest.raises(InputError, match=r"no residual at layers \[7\]"):
        actkit.sae_quality(run, set_of({7: random(16, layer=7)}))
    with pytest.raises(InputError, match="no `mlp`"):
        actkit.sae_quality(run, set_of({0: identity(16, component="mlp")}))
    with pytest.raises(InputError, match="width"):
        actkit.sae_quality(run, set_of({0: random(8)}))


def test_values_that_are_not_finite_are_refused(run: Path) -> None:
    cube = actkit.open_cube(run).load()
    cube.residual.values[0, :, 1, 3] = np.inf
    with pytest.raises(NonfiniteError, match="layer 0 are NaN or Inf"):
        actkit.sae_quality(cube, set_of({0: random(16)}))


@pytest.mark.parametrize(("part", "is_held"), [("held-out", True), ("other", False)])
def test_tokens_of_both_parts_are_needed(run: Path, part: str, is_held: bool) -> None:
    cube = actkit.open_cube(run)
    tags = np.full(cube.token_id.shape, "none")
    tags[held_out(cube, cluster="image_id") != is_held] = "some"
    some = cube.assign_coords(tag=(("sample", "token"), tags))
    chosen = actkit.TokenFilter(labels={"tag": "some"})
    with pytest.raises(InputError, match=f"tokens: selects no token of the .* {part} samples"):
        actkit.sae_quality(some, set_of({0: random(16)}), tokens=chosen, cluster="image_id")


def test_tokens_without_variance_have_no_fvu() -> None:
    x, sae = torch.full((50, 16), 0.3), random(16)
    sums, baselines = QualitySums(16, 24, torch.device("cpu")), Baselines([x], sae)
    sums.add(x, sae.encode(x), sae.decode(sae.encode(x)))
    baselines.add(x, 100)
    assert sums.variance == 0
    assert np.isnan(
        [sums.fvu, sums.explained_variance, *baselines.fvu(sums.variance, sums.l0).values()]
    ).all()


def test_the_held_out_samples_do_not_depend_on_the_order(run: Path) -> None:
    cube = actkit.open_cube(run)
    order = np.random.default_rng(0).permutation(80)
    for cluster in ("image_id", None):
        first = held_out(cube, cluster=cluster, share=0.3, seed=1)
        np.testing.assert_array_equal(
            held_out(cube.isel(sample=order), cluster=cluster, share=0.3, seed=1), first[order]
        )
        assert set(cube.image_id.values[first]).isdisjoint(cube.image_id.values[~first])
        assert first.mean() == pytest.approx(0.3, abs=0.02)
    with pytest.raises(InputError, match="one cluster"):
        held_out(cube.isel(sample=[0, 1]), cluster="image_id")
