"""Cosines between layers, against a plain computation that deletes clusters one by one."""

import numpy as np
import pytest

from actkit.stats.kernels.layer_directions import LAYER_SUMMARIES, deletion_changes, layer_cosines
from actkit.stats.kernels.split_halves import Cells, cluster_halves, deletion_weights, half_cosines

N_CLUSTERS, N_SPLITS, N_LAYERS = 15, 6, 3


def computed(
    layers: np.ndarray, samples: list[tuple[np.ndarray, ...]], language: int
) -> dict[str, np.ndarray]:
    cells = [Cells.of(*part, N_CLUSTERS) for part in samples]
    halves = cluster_halves(cells, N_SPLITS, seed=0)
    results = [half_cosines(x, cells, halves) for x in layers]
    directions = np.stack([each for _, _, each in results])
    reliable = np.array([reliabilities[1, language] > 0 for _, reliabilities, _ in results])
    changes = [deletion_changes(x, directions, cells, halves) for x in layers]
    found = layer_cosines(
        directions[:, :, :, language],
        np.stack([change[language] for change, _ in changes]),
        np.stack([lengths[language] for _, lengths in changes]),
        reliable,
        deletion_weights(cells[language], halves),
    )
    return dict(zip(LAYER_SUMMARIES, found, strict=True))


def data(seed: int, effect: float = 3.0) -> tuple[np.ndarray, list[tuple[np.ndarray, ...]]]:
    """Layers that share noise, and the rows, labels and clusters of two languages, one without a few."""
    rng = np.random.default_rng(seed)
    samples = []
    for start, n_clusters in ((0, N_CLUSTERS), (60, N_CLUSTERS - 3)):
        labels = rng.random(60) < 0.5
        samples.append((np.arange(start, start + 60), labels, rng.permutation(np.arange(60) % n_clusters)))
    layers = rng.standard_normal((N_LAYERS, 120, 5)) + rng.standard_normal((120, 5)) + 50
    for rows, labels, _ in samples:
        layers[:, rows[labels]] += effect * rng.standard_normal((N_LAYERS, 1, 5))
    return layers, samples


def plain(
    pair: np.ndarray,
    rows: np.ndarray,
    labels: np.ndarray,
    clusters: np.ndarray,
    halves: np.ndarray,
    deleted: int,
) -> tuple[float, float]:
    """Cosine and disattenuated cosine of two layers, from the formulas."""
    product, true, lengths = 0.0, np.zeros(2), np.zeros(2)
    for half_of in halves:
        directions = np.empty((2, 2, pair.shape[-1]))
        for half in (0, 1):
            kept = (half_of[clusters] == half) & (clusters != deleted)
            x, y = pair[:, rows[kept]], labels[kept]
            directions[:, half] = x[:, y].mean(axis=1) - x[:, ~y].mean(axis=1)
        product += (directions[0, 0] @ directions[1, 1] + directions[0, 1] @ directions[1, 0]) / 2
        true += (directions[:, 0] * directions[:, 1]).sum(axis=1)
        lengths += np.square(directions).sum(axis=(1, 2)) / 2
    return product / np.sqrt(lengths.prod()), product / np.sqrt(true.prod())


@pytest.mark.parametrize("language", [0, 1])
def test_values_and_intervals_are_those_of_the_formulas(language: int) -> None:
    layers, samples = data(0)
    found = computed(layers, samples, language)
    cells = [Cells.of(*part, N_CLUSTERS) for part in samples]
    halves = cluster_halves(cells, N_SPLITS, seed=0)
    present = np.unique(samples[language][2])
    for a, b in ((0, 1), (0, 2), (1, 2)):
        pair = layers[[a, b]]
        whole = plain(pair, *samples[language], halves, -1)
        without = np.array([plain(pair, *samples[language], halves, cluster) for cluster in present])
        factor = (len(present) - 1) / len(present)
        errors = np.sqrt(factor * np.square(without - without.mean(axis=0)).sum(axis=0))
        for name, value, error in zip(("layers", "layers_disattenuated"), whole, errors, strict=True):
            limits = [value, value - 1.959964 * error, value + 1.959964 * error]
            values = [found[f"{name}{end}"][a, b] for end in ("", "_low", "_high")]
            np.testing.assert_allclose(values, np.clip(limits, -1, 1), rtol=1e-6)
    for values in found.values():
        np.testing.assert_allclose(values, values.T)
        np.testing.assert_array_equal(np.diag(values), 1)


def test_noise_and_values_that_are_not_finite_are_undefined() -> None:
    layers, samples = data(1, effect=0)
    layers[2, 3, 1] = np.nan
    found = computed(layers, samples, 0)
    assert np.isnan(found["layers"][2]).all()
    assert np.isfinite(found["layers_low"][:2, :2]).all()
    assert np.isnan(found["layers_disattenuated"][:2, :2]).any()
