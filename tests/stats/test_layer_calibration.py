"""Level and coverage of differences between layers, of selectivity, and of cosines between layers."""

import numpy as np
import pytest
import xarray as xr

import actkit
from tests.stats.test_probe_calibration import DESIGNS, FOREVER, HIDDEN, Design, differential, simulate

N_TYPES = 20
# the other designs take as long, and are left to the night
CHECKED = ["twins", *(pytest.param(design, marks=pytest.mark.nightly) for design in DESIGNS[1:])]

pytestmark = pytest.mark.slow


def with_types(cube: xr.Dataset, effect: float) -> xr.Dataset:
    """Add a type to each cluster at random, an offset for each type, and noise that layers share."""
    rng = np.random.default_rng(1)
    types = rng.integers(0, N_TYPES, len(np.unique(cube.scene)))[cube.scene.values]
    offsets = xr.DataArray(effect * rng.standard_normal((N_TYPES, HIDDEN))[types], dims=("sample", "hidden"))
    shared = cube.embedding.isel(token=0, drop=True)
    return cube.assign(pooled=cube.pooled + shared + offsets).assign_coords(
        type=("sample", types, {"label": True})
    )


@pytest.mark.parametrize("n_trials", [45, pytest.param(1000, marks=FOREVER)])
@pytest.mark.parametrize("design", CHECKED)
def test_layers_and_selectivity(design: Design, n_trials: int) -> None:
    """Layers represent the label and the type equally well; each language is a data set."""
    cube = with_types(simulate(design, n_trials, 100, 1, n_layers=3), effect=1)
    result = differential(cube, permutations=1, control="type")
    differs = (result.layer_difference_p <= 0.05).any(["layer", "layer_2"])
    margin = 2 * np.sqrt(0.05 * 0.95 / n_trials)  # 600 trials gave 0.04
    assert float(differs.mean()) <= 0.05 + margin
    outside = (result.layer_difference_low > 0) | (result.layer_difference_high < 0)
    assert float(outside.any(["layer", "layer_2"]).mean()) <= 0.05 + margin
    # both corrections agree, up to the draws
    assert float((outside.any(["layer", "layer_2"]) == differs).mean()) > 0.97
    assert float(result.auroc_control.mean()) > 0.6
    truth = result.selectivity.mean()
    covered = (result.selectivity_low <= truth) & (truth <= result.selectivity_high)
    assert 0.92 <= float(covered.mean()) <= 1  # the draws' variance is counted twice in part


@pytest.mark.nightly
@pytest.mark.timeout(7200)
def test_pairs_of_languages_keep_their_level() -> None:
    """Each result has two languages without a difference, which are corrected for each other."""
    result = differential(simulate("twins", 1000, 40, 0, n_layers=2), permutations=79)
    pairs = [result.isel(language=slice(at, at + 2)) for at in range(0, 1000, 2)]
    corrected = [actkit.holm([pair])[0] for pair in pairs]
    assert np.mean([float(pair.p_holm.min()) <= 0.05 for pair in corrected]) <= 0.07


@pytest.mark.parametrize("n_pairs", [100, pytest.param(400, marks=FOREVER)])
@pytest.mark.parametrize("design", CHECKED)
def test_intervals_cover_cosines_between_layers(design: Design, n_pairs: int) -> None:
    """Each pair of layers is a data set in which directions have a cosine of 0.6."""
    cube = simulate(design, 1, 100, 1.5, n_layers=2 * n_pairs)
    cosine, sine = 0.6, 0.8
    turned = cube.pooled.copy(deep=True)
    turned[1::2, :, 0] = cosine * cube.pooled[1::2, :, 0] - sine * cube.pooled[1::2, :, 1]
    turned[1::2, :, 1] = sine * cube.pooled[1::2, :, 0] + cosine * cube.pooled[1::2, :, 1]
    # layers of a pair share half of their noise
    turned[1::2, :, 2:] += turned[::2, :, 2:].values
    result = actkit.direction_cosines(cube.assign(pooled=turned), by="gender", cluster="scene").isel(
        language=0
    )
    first, second = (xr.DataArray(np.arange(side, 2 * n_pairs, 2), dims="pair") for side in (0, 1))
    pairs = result.isel(layer=first, layer_2=second)
    for name, truth in (("layers_disattenuated", cosine), ("layers", float(pairs.layers.mean()))):
        assert float(pairs[name].mean()) == pytest.approx(truth, abs=0.05)
        covered = (pairs[f"{name}_low"] <= truth) & (truth <= pairs[f"{name}_high"])
        assert (0.92 if n_pairs > 100 else 0.88) <= float(covered.mean()) <= 0.98
