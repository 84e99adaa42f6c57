"""Plots of autoencoders: what is on their axes, and that both backends draw them."""

from pathlib import Path
from typing import Any

import holoviews as hv
import numpy as np
import pytest
import xarray as xr

from actkit import plots
from actkit.errors import MissingError
from actkit.features.quality_result import quality_dataset


@pytest.fixture(autouse=True, scope="module")
def matplotlib() -> None:
    plots.load_matplotlib()


def quality(**more: float) -> xr.Dataset:
    """Return the quality of autoencoders of three layers."""
    rng = np.random.default_rng(0)
    measured: dict[int, dict[str, Any]] = {}
    for layer in (2, 5, 8):
        frequency = np.where(np.arange(50) < 9, 0, rng.random(50) ** 4)
        measured[layer] = {
            "fvu": 0.1 * layer,
            "fvu_pca": 0.5,
            "fvu_pca_top": 0.3,
            "fvu_random": 1.1,
            "l0": 30 + layer,
            "n_features": 50,
            "n_never_active": 9,
            "frequency": frequency,
            "mean": frequency,
            "max": frequency,
            **more,
        }
    return quality_dataset(measured, {"statistic": "sae_quality", "n_tokens": 1234})


def log(n_steps: int = 4) -> xr.Dataset:
    """Return the log of a training run of two layers."""
    steps = np.arange(1, n_steps + 1) * 10
    falling = np.stack([1.0 / steps, 2.0 / steps])
    names = ("loss", "train_fvu", "fvu", "l0", "n_dead")
    return xr.Dataset(dict.fromkeys(names, (("layer", "step"), falling)), {"layer": [3, 7], "step": steps})


def labels(picture: Any) -> list[str]:
    return [str(curve.label) for curve in picture.traverse(lambda part: part, [hv.Curve])]


def test_quality_is_shown_beside_its_baselines(tmp_path: Path) -> None:
    picture = plots.sae_quality(quality())
    assert len(picture) == 2
    baselines = ["PCA, first components", "PCA, largest coefficients", "random features"]
    assert labels(picture) == ["autoencoder", *baselines, "L0"]
    plot = hv.renderer("bokeh").get_plot(picture[0]).state
    assert plot.y_range.start == 0
    assert plot.y_range.end >= 1.1
    assert "1,234 held-out tokens" in plot.xaxis[0].axis_label
    whole = plots.sae_quality(
        quality(found_again=0.4, found_again_random=0, ce_recovered=0.9, ce_recovered_from_mean=0.8)
    )
    assert len(whole) == 4
    plots.figure(whole, tmp_path / "quality.png")


def test_frequencies_leave_out_features_without_any(tmp_path: Path) -> None:
    picture = plots.sae_frequencies(quality())
    curves = picture.traverse(lambda part: part, [hv.Curve])
    assert [curve.label for curve in curves] == [f"layer {layer}: 9 never active" for layer in (2, 5, 8)]
    assert [curve.dimension_values(1).sum() for curve in curves] == [41, 41, 41]
    plots.figure(picture, tmp_path / "frequencies.png")


def test_training_is_a_curve_per_layer(tmp_path: Path) -> None:
    picture = plots.training_curves(log())
    assert len(picture) == 4
    assert labels(picture)[:2] == ["layer 3", "layer 7"]
    np.testing.assert_allclose(picture[0].Curve.Layer_3.dimension_values(1), [0.1, 0.05, 1 / 30, 0.025])
    plots.figure(picture, tmp_path / "training.png")
    many = xr.concat([log().assign_coords(layer=[at, at + 20]) for at in range(20)], "layer").sortby("layer")
    shown = [label for label in labels(plots.training_curves(many)) if label]
    assert shown[:10] == [f"layer {layer}" for layer in range(0, 40, 4)]
    with pytest.raises(MissingError, match="not measured anything yet"):
        plots.training_curves(log(0))
