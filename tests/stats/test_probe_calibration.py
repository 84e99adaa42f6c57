"""Level of the tests and coverage of the intervals of probes, with dependent samples.

Each language of a cube is one simulated data set, and each layer another representation of its samples.
"""

from typing import Any, Literal

import numpy as np
import pytest
import xarray as xr

import actkit
from actkit.schema import TokenKind

Design = Literal["twins", "singles", "groups of one label"]
HIDDEN = 6
FOREVER = [pytest.mark.nightly, pytest.mark.timeout(7200)]
LAYERS = [200, pytest.param(2000, marks=FOREVER)]
DESIGNS = ["twins", "singles", "groups of one label"]

pytestmark = pytest.mark.slow


def simulate(
    design: Design, n_trials: int, n_clusters: int, distance: float, *, n_layers: int = 1, seed: int = 0
) -> xr.Dataset:
    """Return a cube whose samples depend on each other within clusters, and whose texts are empty.

    Parameters
    ----------
    design
        Twins differ in their label; groups of one label have 1 to 5 samples.
    n_trials
        Number of languages.
    n_clusters
        Number of clusters per language.
    distance
        Distance between the two labels, in standard deviations of the noise.
    n_layers
        Number of representations of each sample, with independent noise.
    seed
        Random seed.
    """
    rng = np.random.default_rng(seed)
    if design == "groups of one label":
        sizes = rng.integers(1, 6, (n_trials, n_clusters))
    else:
        sizes = np.full((n_trials, n_clusters), 2 if design == "twins" else 1)
    group = np.repeat(np.arange(sizes.size), sizes.ravel())
    trial = group // n_clusters
    within = np.arange(len(group)) - np.repeat(np.cumsum(sizes.ravel()) - sizes.ravel(), sizes.ravel())
    is_second = within % 2 == 1 if design == "twins" else group % 2 == 1
    shape = (n_layers + 1, len(group), HIDDEN)
    vectors = rng.standard_normal((n_layers + 1, group.max() + 1, HIDDEN))[:, group] * 0.8**0.5
    vectors += rng.standard_normal(shape) * 0.2**0.5
    vectors[..., 0] += distance * is_second
    names = np.array([f"{number:05d}" for number in range(n_trials)], dtype=object)
    n_samples = len(group)
    label = {"label": True}
    coords: dict[str, Any] = {
        "layer": np.arange(n_layers),
        "token": [0],
        "language": ("sample", names[trial]),
        "sample_id": ("sample", np.array([f"{at:07d}" for at in range(n_samples)], dtype=object)),
        "text": ("sample", np.full(n_samples, "", dtype=object)),
        "n_tokens": ("sample", np.full(n_samples, 1)),
        "token_kind": (("sample", "token"), np.full((n_samples, 1), TokenKind.TEXT)),
        "gender": ("sample", np.where(is_second, "male", "female").astype(object), label),
        "scene": ("sample", group, label),
    }
    values = {
        "pooled": (("layer", "sample", "hidden"), vectors[1:]),
        "embedding": (("sample", "token", "hidden"), vectors[0][:, None]),
    }
    return xr.Dataset(values, coords, {"first_is_content": True})


def coverage(result: xr.Dataset) -> float:
    truth = result.auroc.mean()
    return float(((result.auroc_low <= truth) & (truth <= result.auroc_high)).mean())


def differential(cube: xr.Dataset, **options: Any) -> xr.Dataset:
    return actkit.group_differential(cube, by="gender", cluster="scene", **{"seeds": 1, **options})


@pytest.mark.parametrize("n_trials", [80, pytest.param(2000, marks=FOREVER)])
@pytest.mark.parametrize("design", DESIGNS)
def test_p_keeps_its_level(design: Design, n_trials: int) -> None:
    """Without a difference, p over 2 layers is at most 0.05 in about 5% of the data sets."""
    result = differential(simulate(design, n_trials, 40, 0, n_layers=2), permutations=19)
    assert float((result.p.min("layer") <= 0.05).mean()) <= 0.07


@pytest.mark.parametrize("n_layers", LAYERS)
@pytest.mark.parametrize("distance", [0, pytest.param(1, marks=pytest.mark.nightly), 2])
@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_cover_the_auroc(design: Design, distance: float, n_layers: int) -> None:
    """The mean over many representations is the expected AUROC of a probe trained on as many samples."""
    result = differential(simulate(design, 1, 100, distance, n_layers=n_layers), permutations=1)
    # at chance, the influence in training is overestimated for twins
    assert 0.92 <= coverage(result) <= (0.98 if distance else 1)


@pytest.mark.parametrize("n_layers", LAYERS)
@pytest.mark.parametrize("design", DESIGNS)
def test_intervals_cover_the_auroc_of_transfer(design: Design, n_layers: int) -> None:
    cube = simulate(design, 2, 100, 1, n_layers=n_layers)
    result = actkit.transfer(cube, by="gender", cluster="scene")
    assert 0.92 <= coverage(result.isel(train=0, test=1)) <= 0.99


@pytest.mark.parametrize("n_layers", LAYERS)
@pytest.mark.parametrize("design", DESIGNS)
def test_equally_good_probes_rarely_differ(design: Design, n_layers: int) -> None:
    """The embedding and the layers represent the label equally well, with independent noise."""
    result = differential(simulate(design, 1, 100, 1, n_layers=n_layers), permutations=1)
    result = result.sel(baseline="embedding")
    assert float((result.auroc_difference_p <= 0.05).mean()) <= 0.07  # corrected over layers
    # without the correction: one embedding, whose luck all comparisons share, is compared with each layer
    truth = float(result.auroc.mean()) - result.auroc_embedding.item()
    covered = (result.auroc_difference_low <= truth) & (truth <= result.auroc_difference_high)
    assert float(covered.mean()) >= 0.92


@pytest.mark.parametrize("n_trials", [100, pytest.param(2000, marks=FOREVER)])
@pytest.mark.parametrize("distance", [0, 1])
def test_intervals_of_the_length_are_informative(distance: float, n_trials: int) -> None:
    """The weight of a single feature has no direction but its sign, so its relative error is no error."""
    cube = simulate("singles", n_trials, 100, 0)
    lengths = np.random.default_rng(1).standard_normal(cube.sizes["sample"])
    lengths += distance * (cube.gender.values == "male")
    cube["n_tokens"] = ("sample", np.round(1000 + 100 * lengths).astype(int))
    result = differential(cube.set_coords("n_tokens"), permutations=1)
    low, high, truth = result.auroc_length_low, result.auroc_length_high, result.auroc_length.mean()
    assert float(((low <= truth) & (truth <= high)).mean()) >= 0.88
    assert float((high - low).median()) < 0.4
